"""Check what is about to be published: contents, versions, and that files install and score.

Usage: check_release.py [--final] FOLDER, a folder with one sdist and its wheels. With --final, it
also needs a wheel for every Python and processor, and a heading and a tag for the version. Nothing
is uploaded.
"""

from __future__ import annotations

import itertools
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
LARGEST_MIB = 40  # the index allows 100; the demonstration is half of it
FOLDERS = ("dsd_trt", "engines", "export", "train")


def version() -> str:
    """The version of pyproject.toml, which the C++ library's has to be.

    Raises:
        SystemExit: the two versions differ.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = (ROOT / "engines" / "cpp" / "CMakeLists.txt").read_text("utf-8")
    if f"project(dsd VERSION {project['version']} " not in lists:
        raise SystemExit(f"engines/cpp/CMakeLists.txt is not of version {project['version']}")
    found: str = project["version"]
    return found


def check_sdist(path: Path) -> None:
    """Refuse an sdist that is large, has links, or lacks a module.

    Raises:
        SystemExit: it does; the message says what.
    """
    if path.stat().st_size > LARGEST_MIB * 2**20:
        raise SystemExit(f"{path.name} is larger than {LARGEST_MIB} MiB")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    if links := [it.name for it in members if it.issym() or it.islnk()]:
        raise SystemExit(f"{path.name} has links, which Windows does not unpack: {links}")
    packed = {str(PurePosixPath(*PurePosixPath(it.name).parts[1:])) for it in members}
    tracked = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    needed = {it for it in tracked if it.endswith(".py") and not it.startswith("engines/cpp/")}
    needed |= {it for it in tracked if it.startswith("dsd_trt/") and (ROOT / it).is_file()}
    needed |= {"LICENSE", "README.md", "pyproject.toml"}
    if missing := sorted(needed - packed):
        raise SystemExit(f"{path.name} lacks {', '.join(missing)}")
    stray = sorted(it for it in packed if it.split("/")[0] in ("docs", "tests", ".git", "build"))
    if stray:
        raise SystemExit(f"{path.name} has what no user needs: {', '.join(stray[:5])}")


def check_installed(path: Path) -> None:
    """Install a file into a bare environment, and score with it.

    Raises:
        SystemExit: it does not install, or does not score.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        for command in (
            ("-m", "pip", "install", "--quiet", f"{path.absolute()}[openvino]"),
            ("-m", "pip", "check"),
            ("-P", ROOT / "tools" / "try_wheel.py", "--kernel", ROOT / "examples"),
        ):
            if subprocess.run([python, *command], cwd=folder).returncode:
                raise SystemExit(f"{path.name} does not install and score")


def is_for(wheel: Path, python: str, arch: str) -> bool:
    """Whether a wheel is for a Python, such as cp311, on a processor, such as aarch64."""
    return f"-{python}-" in wheel.name and wheel.name.endswith(f"_{arch}.whl")


def check_final(wheels: list[Path]) -> None:
    """Refuse what a release lacks beyond files that work.

    Raises:
        SystemExit: a wheel, the changelog's heading or the commit's tag is missing.
    """
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["cibuildwheel"]
    for build, arch in itertools.product(config["build"], config["archs"]):
        python = build.removesuffix("-*")
        if not any(is_for(it, python, arch) for it in wheels):
            raise SystemExit(f"no wheel for {python} on {arch}: make release")
    if f"\n## [{version()}]" not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        raise SystemExit(f"CHANGELOG.md has no heading '## [{version()}]'")
    command = ["git", "tag", "--points-at", "HEAD"]
    tags = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    if f"v{version()}" not in tags.split():
        raise SystemExit(f"this commit has no tag: git tag v{version()}")


def main(folder: Path, final: bool) -> None:
    """Check all files of a folder that this Python installs on this processor.

    Raises:
        SystemExit: a file is missing, of another version, or fails its check.
    """
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}", platform.machine()
    sdists, wheels = list(folder.glob("*.tar.gz")), list(folder.glob("*.whl"))
    if len(sdists) != 1 or not wheels:
        raise SystemExit(
            f"{folder} has {len(sdists)} sdists and {len(wheels)} wheels: make release-check"
        )
    for path in (*sdists, *wheels):
        if not re.match(rf"dsd_trt-{re.escape(version())}(-|\.tar\.gz$)", path.name):
            raise SystemExit(f"{path.name} is not of version {version()}")
        if "-linux_" in path.name:
            raise SystemExit(f"{path.name}: an index takes manylinux wheels alone")
    check_sdist(sdists[0])
    if final:
        check_final(wheels)
    for path in (*sdists, *(it for it in wheels if is_for(it, *here))):
        print(f"installing {path.name}", flush=True)
        check_installed(path)


if __name__ == "__main__":
    arguments = [it for it in sys.argv[1:] if it != "--final"]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit(__doc__)
    main(Path(arguments[0]), "--final" in sys.argv)
