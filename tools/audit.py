"""Look up every pinned package in the advisory database of PyPI, with pip-audit: `make audit`.

    python tools/audit.py constraints.txt constraints-triton.txt

pip-audit 2.10 reports "No known vulnerabilities found" and exits with 0 even if the index knows
none of the packages, for example a mirror without advisories. Here a package counts only if it was
looked up. Exit codes: 0 no advisory, 1 advisories, 2 packages that could not be looked up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMAND = ("-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off", "-f", "json")


def audit(path: Path) -> list[dict[str, Any]] | str:
    """Findings of pip-audit for every package in a file, or why it could not ask."""
    done = subprocess.run(
        [sys.executable, *COMMAND, "-r", path], capture_output=True, text=True, check=False
    )
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (done.stderr.strip() or "pip-audit said nothing").splitlines()[-1]
    return found


def judge(found: Sequence[dict[str, Any]] | str, name: str) -> int:
    """Print the findings, and return the exit code."""
    if isinstance(found, str):
        print(f"{name}: the advisory database cannot be reached: {found}")
        return 2
    skipped = [it["name"] for it in found if "vulns" not in it]
    advisories = [(it, fault) for it in found for fault in it.get("vulns", ())]
    for it, fault in advisories:
        fixed = ", ".join(fault["fix_versions"]) or "no version"
        print(f"{name}: {it['name']} {it['version']}: {fault['id']}, mended in {fixed}")
    if skipped:
        print(
            f"{name}: {len(skipped)} of {len(found)} packages could not be looked up "
            f"({', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''}): run this where "
            "PyPI itself can be reached, and not a mirror of its files"
        )
    if found and not advisories and not skipped:
        print(f"{name}: {len(found)} packages, no known advisory")
    if advisories:
        return 1
    return 2 if skipped or not found else 0


def main() -> int:
    """Look up the packages of every file given on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="file of pinned packages")
    files = parser.parse_args().files
    if importlib.util.find_spec("pip_audit") is None:
        print(f"pip-audit is not installed for {sys.executable}: run make audit, which installs it")
        return 2
    return max(judge(audit(Path(it)), it) for it in files)


if __name__ == "__main__":
    sys.exit(main())
