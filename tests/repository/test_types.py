"""The installed package is typed: what `make types` measures, where pyright is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ROOT / ".venv-types" / "bin" / "pyright"  # of `make types`
MADE = (ROOT / ".venv-types" / "installed").exists()  # whole
PYRIGHT = str(OWN) if MADE else shutil.which("pyright")


@pytest.mark.slow
@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed: make types")
def test_pyright_knows_the_types_of_the_installed_package() -> None:
    script = str(ROOT / "tools" / "check_types.py")
    command = [sys.executable, script, "--pyright", str(PYRIGHT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "public names have a known type" in done.stdout
