"""Blocks of shell and Python in the documents run, with the exceptions below.

- A block that cannot says so: `<!-- not run: REASON -->` stands directly above its fence. That its
  commands, options, targets and scripts exist is tests/repository/test_docs.py's to check.
- Pages and sections in `OWN_TESTS` have tests of their own, which run their blocks.
- docs/commands.md is left out: its blocks are help texts, which tools/make_commands.py writes.
- Blocks in other languages (`OTHER`), and those without one, do not run here.
- What would take minutes is made smaller, and some paths are others: see `SMALLER`. BF16 gives way
  to FP32 on processors without it.

The blocks of a page run in their order, in a folder like a clone's, with the demonstration. That
folder is also their home, so that nothing of this machine's caches is used or changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsd_trt.bundle.place import bundle_folder
from dsd_trt.engine.openvino.graph import computes_bf16

ROOT = Path(__file__).parents[2]
PAGES = [
    it
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "dsd_trt/data/*/*.md")
    for it in sorted(ROOT.glob(pattern))
]
BLOCK = re.compile(
    r"^(?P<mark><!-- not run: (?P<why>.*?) -->\n+)?^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
RUN = {"sh", "python"}
OTHER = {"bibtex", "cmake", "cpp", "json", "text"}  # nothing that a reader of these would run here
UNSEEN = re.compile(r"^(?:[ \t>*+-]+(?:```|~~~)|~~~).*", re.MULTILINE)  # a fence unlike `BLOCK`'s
COMMENT = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*")|[ \t]+#[^\n]*""")  # or what is in quotes
PROGRAMS = re.compile(r"^\s*(?:\$ )?(?:dsd-trt|pip|make|python3?|curl|docker|\./)\b", re.MULTILINE)

# Pages, and sections of pages, whose own tests run their blocks from the first to the last.
OWN_TESTS = {
    ("docs/cpp.md", ""): "tests/engines/test_cpp_install.py",
    ("docs/filter.md", ""): "tests/repository/test_filter_guide.py",
    ("docs/python.md", ""): "tests/repository/test_guide_python.py",
    ("docs/rerank.md", ""): "tests/repository/test_rerank_guide.py",
    ("docs/triton.md", ""): "tests/serving/test_guide.py",
    ("docs/train.md", "Your own table"): "tests/train/test_example_tables.py",
}
REASONS = {
    "computes for hours",
    "installs from the network",
    "needs a checkpoint of the released research code",
    "needs a GPU",
    "replaces files of the package",
    "runs these tests",
}
# What a page's blocks take for granted, in Python.
BEFORE = {
    "docs/speed.md": "from dsd_trt import Scorer\nscorer = Scorer.load()\n"
    "images, texts = ['examples/images/lone-star.png'], ['a large yellow star']\n",
}
# The same command, for less: few steps, questions and pairs; alternatives share a folder.
SMALLER = [
    (
        r"^(dsd-trt train .*--out (\S+).*)$",
        r"rm -rf \2; \1 --steps 1 --validation 0 --no-refit --allow-worse",
    ),
    (r"^(dsd-trt (?:train|imitate|eval|ablate) .*)--limit \d+", r"\1--limit 8"),
    (r"^(dsd-trt imitate .*)$", r"\1 --limit 60"),  # fewer images teach nothing
    (r"^(dsd-trt export .*--out (\S+).*)$", r"rm -rf \2; \1 --verify quick --no-bf16"),
    (r"^(.*--verify quick.*) --verify quick", r"\1"),
    (r"^(dsd-trt bench .*)$", r"\1 --images 2 --texts 2 --rounds 1 --requests 1"),
    (r"^dsd-trt pretrain shapes --out run$", "dsd-trt pretrain shapes --out run --smoke"),
    (r"/models/my-scorer", "my-scorer"),
    (r"\.\.\./dsd_trt/data/shapes-bundle", "my-scorer"),
]


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: path of the page, relative to the repository.
        section: heading of the second level above it.
        line: its first line.
        kind: what stands behind its fence.
        body: its text.
        why: the reason for which it is not run; None if it is.
    """

    page: str
    section: str
    line: int
    kind: str
    body: str
    why: str | None


def blocks_of(text: str, page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = []
    for it in BLOCK.finditer(text):
        before = text[: it.start()]
        sections = re.findall(r"^## (.*)$", before, re.MULTILINE)
        found.append(
            Block(
                page,
                sections[-1] if sections else "",
                before.count("\n") + 1,
                it["kind"],
                it["body"],
                it["why"],
            )
        )
    return found


BLOCKS = [
    block
    for path in PAGES
    for block in blocks_of(path.read_text("utf-8"), path.relative_to(ROOT).as_posix())
    if path.name != "commands.md"  # help texts
]
TO_RUN: dict[str, list[Block]] = {}
for _block in BLOCKS:
    owned = {(_block.page, ""), (_block.page, _block.section)} & OWN_TESTS.keys()
    if _block.kind in RUN and _block.why is None and not owned:
        TO_RUN.setdefault(_block.page, []).append(_block)


def test_blocks_are_found() -> None:
    text = "## A\n\n```sh\none\n```\n\n<!-- not run: needs a GPU -->\n\n```sh\ntwo\n```\n"
    first, second = blocks_of(text, "page.md")
    assert (first.section, first.body, first.why) == ("A", "one\n", None)
    assert (second.body, second.why) == ("two\n", "needs a GPU")


def test_every_fence_is_one_that_is_seen() -> None:
    assert [
        it[0] for it in UNSEEN.finditer("1\n  ```sh\na\n~~~\n> ```\n- ```sh\n```sh\nb ```c")
    ] == [
        *("  ```sh", "~~~", "> ```", "- ```sh"),
    ]
    unseen = {
        (path.relative_to(ROOT).as_posix(), it[0])
        for path in PAGES
        for it in UNSEEN.finditer(BLOCK.sub("", path.read_text("utf-8")))
    }
    assert unseen == set()


def test_quotes_keep_what_looks_like_a_comment() -> None:
    body = 'score "a # b" \'c # d\'  # it\'s a comment\necho "e\n # f" \\\n  g # "h\n'
    expected = 'score "a # b" \'c # d\'\necho "e\n # f"    g'
    assert smaller(body, bf16=True) == expected


def test_bf16_stays_where_it_is_computed() -> None:
    body = "dsd-trt score --engine openvino-bf16"
    assert smaller(body, bf16=True) == body
    assert smaller(body, bf16=False) == "dsd-trt score --engine openvino"


def test_blocks_have_a_home_and_a_cache_of_their_own(clone: Path) -> None:
    program = "import pathlib, dsd_trt.cache as it; print(pathlib.Path.home(), it.cache_folder())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    home, cache = done.stdout.split()
    assert Path(home) == clone
    assert clone in Path(cache).parents


def test_a_mark_stands_above_a_block_and_has_a_known_reason() -> None:
    mark = re.compile(r"^<!-- not run", re.MULTILINE)
    marks = sum(len(mark.findall(path.read_text("utf-8"))) for path in PAGES)
    assert marks == sum(it.why is not None for it in BLOCKS)
    unknown = {(it.page, it.line, it.why) for it in BLOCKS if it.why and it.why not in REASONS}
    assert unknown == set()


def test_what_looks_like_commands_is_marked_as_shell() -> None:
    """A block without a language, or of text, could hide commands that nothing runs."""
    kinds = {it.kind for it in BLOCKS}
    assert kinds <= RUN | OTHER | {""}
    hidden = [
        (it.page, it.line)
        for it in BLOCKS
        if it.kind in ("", "text") and it.why is None and PROGRAMS.search(it.body)
    ]
    owned = {page for page, _ in OWN_TESTS}
    assert [it for it in hidden if it[0] not in owned] == []


def test_pages_with_tests_of_their_own_are_named_in_them() -> None:
    for (page, section), test in OWN_TESTS.items():
        source = (ROOT / test).read_text("utf-8")
        assert Path(page).name in source
        assert section in source
        kinds = {it.kind for it in BLOCKS if it.page == page and section in ("", it.section)}
        assert kinds & RUN


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name: examples, bundles, photos, labelled pairs, keys.

    It is also the home of what runs in it, and has its cache.
    """
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "examples" / "images", tmp_path / "photos")
    shutil.copytree(bundle_folder(None), tmp_path / "my-scorer")
    shutil.copy(ROOT / "examples" / "texts.txt", tmp_path)
    for name in ("labelled.csv", "others.csv", "mine.csv", "held-out.csv"):
        table = (ROOT / "examples" / "labelled.csv").read_text("utf-8")
        (tmp_path / name).write_text(table.replace("images/", "photos/"), "utf-8")
    programs = tmp_path / "programs"
    programs.mkdir()
    minisign = programs / "minisign"
    minisign.write_text(f"#!{sys.executable}\n{MINISIGN}")
    minisign.chmod(0o755)
    path = (str(programs), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "cache"))
    return tmp_path


# `minisign -G -p PUBLIC -s SECRET`, whose own program asks for a password on the terminal.
MINISIGN = """
import sys
from minisign import KeyPair

assert sys.argv[1] == "-G", sys.argv
public, secret = (sys.argv[sys.argv.index(it) + 1] for it in ("-p", "-s"))
keys = KeyPair.generate()
open(public, "wb").write(bytes(keys.public_key))
open(secret, "wb").write(bytes(keys.secret_key))
"""


def smaller(body: str, *, bf16: bool) -> str:
    """A block's commands, each for less, without the comments that would hide added options.

    Args:
        body: text of the block.
        bf16: whether the processor computes in BF16.
    """
    lines = []
    joined = body.replace("\\\n", " ")
    for command in COMMENT.sub(lambda it: it[1] or "", joined).splitlines():
        if not bf16:
            command = command.replace("openvino-bf16", "openvino")
        for pattern, instead in SMALLER:
            command = re.sub(pattern, instead, command)
        lines.append(command)
    return "\n".join(lines)


@pytest.mark.slow  # some train or export
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", sorted(TO_RUN))
def test_blocks_run_in_their_order(page: str, clone: Path) -> None:
    bf16 = computes_bf16()
    for block in TO_RUN[page]:
        command = ["bash", "-euo", "pipefail", "-c", smaller(block.body, bf16=bf16)]
        if block.kind == "python":
            command = [sys.executable, "-c", BEFORE.get(page, "") + block.body]
        done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
        where = f"{page}:{block.line}"
        assert done.returncode == 0, (where, command[-1], done.stdout, done.stderr)
