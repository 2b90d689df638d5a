"""What `make audit` makes of pip-audit: no package counts as sound that nobody looked up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOUND: dict[str, Any] = {"name": "numpy", "version": "2.4.6", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI: torch (2.13.0)"}
FAULTY = {
    "name": "pillow",
    "version": "13.0.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["13.0.1"], "aliases": []}],
}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([SOUND], 0, "1 packages, no known advisory"),
        ([SOUND, SKIPPED], 2, r"1 of 2 packages could not be looked up (torch)"),
        ([SOUND, FAULTY], 1, "pillow 13.0.0: PYSEC-2026-1, mended in 13.0.1"),
        ([SKIPPED, FAULTY], 1, "1 of 2 packages could not be looked up (torch)"),
        ([], 2, ""),
        (None, 2, "cannot be reached: gaierror: Name or service not known"),
    ],
)
def test_what_was_not_looked_up_is_not_sound(
    tmp_path: Path, found: list[dict[str, Any]] | None, code: int, said: str
) -> None:
    """pip-audit itself exits with 0 where it has skipped every package."""
    (tmp_path / "pip_audit.py").write_text(
        "import sys\n"
        f"found = {found!r}\n"
        "if found is None:\n"
        "    sys.exit('Traceback ...\\ngaierror: Name or service not known')\n"
        f"import json; print(json.dumps({{'dependencies': found}}))\n"
    )
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[2] / "tools" / "audit.py", "pinned.txt"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout
