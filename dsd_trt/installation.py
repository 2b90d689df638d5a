"""Where this package was installed from: commands that add to it, and that start it again."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NAME = "dsd-trt"
PACKAGE = Path(__file__).absolute().parent


def own_command() -> list[str]:
    """Command line of this package, as a child process, up to its subcommand.

    It names the file of `__main__`, and `-P` keeps the current folder off the import path. So a
    child runs the package that its parent runs, whatever the folder holds: a clone of this
    repository, or a file with the name of a library's module.
    """
    return [sys.executable, "-P", str(PACKAGE / "__main__.py")]


def install_command(extra: str, *options: str) -> str:
    """Shell command that installs an extra into the running environment.

    Args:
        extra: name of the extra, such as "train"; "" is this package with what it requires.
        options: options of `pip install`, such as "--force-reinstall".

    Returns:
        A command that names the origin of this installation: a clone, a wheel, a repository, or the
        package index. If its folder or file is gone, it names what the extra requires.
    """
    return " ".join([_pip("install"), *options, *_origin(extra)])


def reinstall_command(*requirements: str) -> str:
    """Shell command that writes the files of installed packages again, and of no others."""
    return " ".join(
        [_pip("install"), "--force-reinstall", "--no-deps", *map(_quoted, requirements)]
    )


def upgrade_command(*requirements: str) -> str:
    """Shell command that installs packages in versions that fit, such as "numpy>=1.26"."""
    return " ".join([_pip("install"), "--upgrade", *map(_quoted, requirements)])


def rebuild_command() -> str:
    """Shell command that installs this package again from where it came from, and compiles it.

    A clone is installed as an editable one, whose kernel lies where the clone's own files look.
    """
    origin = _origin("")
    if _is_source(PACKAGE.parent) and "--editable" not in origin:
        origin = ["--editable", *origin]
    return " ".join([_pip("install"), "--force-reinstall", "--no-deps", *origin])


def uninstall_command(*packages: str) -> str:
    """Shell command that removes packages from the running environment without asking."""
    return " ".join([_pip("uninstall"), *map(_quoted, packages)])


def _pip(action: str) -> str:
    """Pip of the running environment: plainly `pip` only if a shell would find that one."""
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):  # which leaves it out
        return f"uv pip {action} --python {_quoted(sys.executable)}"
    found = shutil.which("pip")
    here = found is not None and Path(found).parent == Path(sys.executable).parent
    yes = " --yes" if action == "uninstall" else ""
    return f"{'pip' if here else f'{_quoted(sys.executable)} -m pip'} {action}{yes}"


def _origin(extra: str) -> list[str]:
    """Arguments of `pip install` for this package with an extra; "" is none."""
    with_extra = f"[{extra}]" if extra else ""
    record = _direct_url()
    editable = ["--editable"] if record.get("dir_info", {}).get("editable") else []
    if _is_source(PACKAGE.parent):
        return [*editable, _quoted(f"{PACKAGE.parent}{with_extra}")]
    if not record:
        return [_quoted(f"{NAME}{with_extra}")]
    url = record["url"]
    path = _file(url)
    if path is not None and not path.exists():
        return [_quoted(it) for it in _requirements(extra)] or [NAME]
    if path is not None and "dir_info" in record:
        return [*editable, _quoted(f"{path}{with_extra}")]
    if version := record.get("vcs_info"):
        url = f"{version['vcs']}+{url}@{version['commit_id']}"
    if folder := record.get("subdirectory"):
        url += f"#subdirectory={folder}"
    return [_quoted(f"{NAME}{with_extra} @ {url}")]


def _is_source(folder: Path) -> bool:
    """Whether a folder is this project's; other packages may leave a file of this name."""
    try:
        return f'name = "{NAME}"' in (folder / "pyproject.toml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _file(url: str) -> Path | None:
    """Path of a local URL; None for others."""
    from urllib.request import url2pathname  # takes 0.02 s

    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _distribution() -> Distribution | None:
    """What an installer recorded about this package.

    The record lies beside the package, or elsewhere for an editable one. What a build leaves in a
    clone, an egg-info, counts for nothing.
    """
    from importlib.metadata import distributions  # takes 0.03 s

    found = [
        *distributions(name=NAME, path=[str(PACKAGE.parent)]),
        *distributions(name=NAME),
    ]
    return next((it for it in found if it.read_text("METADATA")), None)


def _direct_url() -> dict[str, Any]:
    """The record of an origin other than an index (PEP 610); empty if there is none."""
    found = _distribution()
    text = found.read_text("direct_url.json") if found else None
    record: dict[str, Any] = json.loads(text) if text else {}
    return record


def _requirements(extra: str) -> Iterator[str]:
    """What an extra requires, with the extras that it includes."""
    found = _distribution()
    for line in (found.requires if found else None) or []:
        requirement, _, marker = line.partition(";")
        if f'extra == "{extra}"' not in marker.replace("'", '"'):
            continue
        included = re.fullmatch(rf"{NAME}\[(.*)\]", requirement.strip())
        for name in included[1].split(",") if included else ():
            yield from _requirements(name.strip())
        if not included:
            yield requirement.strip()


def _quoted(word: str) -> str:
    """A word for the shell, always in quotes if it has brackets."""
    return f'"{word}"' if os.name == "nt" else shlex.quote(word)
