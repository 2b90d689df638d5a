"""How much of the installed package has a type that pyright knows: `make types`.

The package is installed as users do, from a copy of the sources, beside the packages of the
environment that runs this. `pyright --verifytypes` then reads every public name in it.

    python tools/check_types.py --pyright .venv-types/bin/pyright
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LEAST = 0.97


def install(folder: Path) -> None:
    """Make an environment with the package, and with the packages of the one that runs this."""
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    others = [it for it in sys.path if it.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(packages), str(source)]
    subprocess.run(command, check=True)


def verify(pyright: Path, folder: Path) -> dict[str, Any]:
    """What pyright says of the types.

    Args:
        pyright: path of pyright's command.
        folder: folder that the package was installed into.
    """
    work = folder / "work"  # without the sources, which would be found first
    work.mkdir()
    # It looks for packages where the first `python` of PATH does.
    path = f"{folder / 'environment' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [pyright.absolute(), "--verifytypes", "dsd_trt", "--ignoreexternal", "--outputjson"],
        cwd=work,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    start = done.stdout.find("{")
    if start < 0:
        raise SystemExit(f"{pyright} printed no report: {done.stderr or done.stdout}")
    report: dict[str, Any] = json.loads(done.stdout[start:])
    return report


def main() -> None:
    """Print the share, and the names without a known type if it is too low."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pyright", type=Path, required=True, help="pyright's command")
    parser.add_argument("--least", type=float, default=LEAST, help="lowest share to accept")
    arguments = parser.parse_args()
    if not arguments.pyright.is_file():
        raise SystemExit(f"there is no {arguments.pyright}; make types installs one")
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        report = verify(arguments.pyright, Path(folder))
    types = report["typeCompleteness"]
    share = types["completenessScore"]
    if share < arguments.least:
        for symbol in types["symbols"]:
            if symbol["isExported"] and not symbol["isTypeKnown"]:
                for it in symbol["diagnostics"]:
                    print(symbol["name"], " ".join(it["message"].split()), sep=": ")
    counts = types["exportedSymbolCounts"]
    print(
        f"{share:.2%} of {sum(counts.values())} public names have a known type, at least "
        f"{arguments.least:.0%} are wanted (pyright {report['version']})"
    )
    raise SystemExit(share < arguments.least)


if __name__ == "__main__":
    main()
