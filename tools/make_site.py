"""Builds the pages of docs/ as a site that needs no network: `make site`.

Pages keep their places, so that links between them are the same on GitHub and on the site. A file
that a page links to becomes a page that shows it. The API reference is written by mkdocstrings from
docstrings, and the notebook becomes a page with its outputs.

    python tools/make_site.py [--stage FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "mkdocs.yml"
MARK = ".made-by-make-site"  # a file in folders that this tool may empty
PAGES = ("*.md", "docs/*.md")
IMAGES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".toml": "toml", ".jsonl": "json", ".csv": "text"}
UNSEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def public_names() -> list[str]:
    """Names of `dsd_trt.__all__`, read without importing the package."""
    tree = ast.parse((ROOT / "dsd_trt" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise SystemExit("dsd_trt/__init__.py has no __all__; name the public names there")


def api_page() -> str:
    """A page with a directive of mkdocstrings for each public name."""
    parts = [
        "# API reference\n\nEach public name of `dsd_trt`, from its docstring. "
        "[Python](python.md) shows them at work.\n"
    ]
    parts += [f"::: dsd_trt.{name}\n" for name in sorted(public_names())]
    return "\n".join(parts)


def fenced(language: str, text: str) -> str:
    """A block of code, whose fence is longer than all backticks in it."""
    fence = "`" * max([3, *(1 + len(it) for it in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def notebook_page(notebook: dict[str, Any], images: Path) -> str:
    """A notebook as Markdown with its outputs.

    Args:
        notebook: content of the .ipynb file.
        images: folder beside the page, for pictures among the outputs.
    """
    parts: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(fenced("python", source))
        for place, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"output-{number}-{place}.png"
                images.mkdir(parents=True, exist_ok=True)
                (images / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![Output]({images.name}/{name})")
                continue
            if "text/html" in data:
                parts.append("".join(data["text/html"]))
                continue
            text = "".join(output.get("text", data.get("text/plain", "")))
            if text.strip():
                parts.append(fenced("text", text.rstrip()))
    return "\n\n".join(parts) + "\n"


class Stage:
    """A folder with every page of the site, at the places that the repository has them.

    Attributes:
        folder: folder that MkDocs reads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: set[Path] = set()

    def add_page(self, path: Path) -> None:
        """Copy a page, and add the files that it links to."""
        if path in self._done:
            return
        self._done.add(path)
        text = path.read_text("utf-8")
        prose = FENCE.split(text)
        code = FENCE.findall(text)
        linked = [LINK.sub(lambda it: self._link(path, it), part) for part in prose]
        pieces = [part for pair in zip(linked, [*code, ""], strict=True) for part in pair]
        self.write(path.relative_to(ROOT), _tables("".join(pieces)))

    def write(self, place: Path | str, text: str) -> None:
        """Write a page.

        Args:
            place: path of the page, relative to the repository.
            text: content of the page, in Markdown.
        """
        target = self.folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")

    def _link(self, page: Path, found: re.Match[str]) -> str:
        """A link of a page, led to the page that the site has for its target."""
        before, target, after = found.groups()
        path = Path(os.path.normpath(page.parent / target))
        if "://" in target or target.startswith("mailto:") or not path.exists():
            return found[0]  # what does not exist is MkDocs' to report
        if path.suffix == ".md":
            self.add_page(path)
            return found[0]
        if path.suffix in IMAGES or (path.is_file() and not _is_text(path)):
            copy = self.folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            return found[0]
        self._show(path)
        return f"{before}{target.rstrip('/')}.md{after}"

    def _show(self, path: Path) -> None:
        """Add a page that shows a file, or lists a folder."""
        place = path.relative_to(ROOT)
        page = place.with_name(place.name + ".md")
        if path.suffix == ".ipynb":
            images = self.folder / place.with_name(f"{place.stem}-outputs")
            self.write(page, notebook_page(json.loads(path.read_text("utf-8")), images))
        elif path.is_dir():
            names = sorted(it.name for it in path.iterdir() if not it.name.startswith((".", "__")))
            self.write(
                page, f"{UNSEARCHED}# {place}/\n\n" + "".join(f"- `{name}`\n" for name in names)
            )
        else:
            shown = fenced(LANGUAGES.get(path.suffix, "text"), path.read_text("utf-8").rstrip())
            self.write(page, f"{UNSEARCHED}# {place}\n\n{shown}\n")


def _is_text(path: Path) -> bool:
    """Whether a file can be shown."""
    try:
        return "\0" not in path.read_text("utf-8")
    except UnicodeDecodeError:
        return False


def _tables(text: str) -> str:
    """Tables as Python-Markdown reads them: a bar between backticks needs no backslash."""

    def row(found: re.Match[str]) -> str:
        return re.sub(r"`[^`\n]*`", lambda it: it[0].replace(r"\|", "|"), found[0])

    return re.sub(r"^\|.*$", row, text, flags=re.MULTILINE)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that has files and was not written by this tool.

    Raises:
        SystemExit: it is such a folder, or no folder.
    """
    if folder.is_dir():
        foreign = any(folder.iterdir()) and not (folder / MARK).is_file()
    else:
        foreign = folder.exists()
    if foreign:
        raise SystemExit(
            f"{folder} is not empty, and this tool did not write it: name a new folder, or "
            "delete this one if nothing in it is needed"
        )


def empty(folder: Path) -> None:
    """Make a folder of this tool, or empty it.

    Raises:
        SystemExit: the folder has files of others.
    """
    refuse_foreign(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def stage(folder: Path) -> None:
    """Write everything that MkDocs reads.

    Args:
        folder: empty folder to write.
    """
    staged = Stage(folder)
    staged.write("docs/api.md", api_page())
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            staged.add_page(path)
    nav = CONFIG.read_text("utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"\S+\.(?:md)$", nav, re.MULTILINE))
    missing = {str(it.relative_to(ROOT)) for it in ROOT.glob("docs/*.md")} - listed
    if missing:
        raise SystemExit(f"mkdocs.yml lists no {', '.join(sorted(missing))}: add it to `nav`")


def main() -> None:
    """Stage the pages, then build the site with warnings as errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "site", help="folder to write")
    parser.add_argument(
        "--stage", type=Path, default=ROOT / "build" / "site", help="folder for the staged pages"
    )
    parser.add_argument(
        "--requirements", action="store_true", help="only print the packages that this needs"
    )
    arguments = parser.parse_args()
    if arguments.requirements:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        print(*project["optional-dependencies"]["docs"])
        return
    for folder in (arguments.stage, arguments.out):
        refuse_foreign(folder)
    for folder in (arguments.stage, arguments.out):  # MkDocs keeps the mark, a hidden file
        empty(folder)
    stage(arguments.stage)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(CONFIG), "--site-dir", str(arguments.out.absolute())]
    environment = {
        **os.environ,
        "MAKE_SITE_STAGE": str(arguments.stage.absolute()),
        "NO_MKDOCS_2_WARNING": "1",  # an advertisement
    }
    raise SystemExit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
