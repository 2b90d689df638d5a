"""How docstrings, comments and help read: short sentences, entries that stand alone, one language.

Files are parsed, never imported.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("dsd_trt", "engines", "export", "train", "benchmarks", "examples", "tools")

LONGEST = 40  # words of a sentence
AVERAGE = 20  # words of a file's sentences
FEWEST = 4  # words that describe an argument

UNITS = r"(?:pair|image|text|level|step|second|minute|call|batch|request|layer|head|GPU)"
COUNTED = r"(?:pairs|seconds|milliseconds|ms|MB|kB|GB|row|column|pass|passes|times|once)"
BANNED = {
    rf"\b{COUNTED} an? {UNITS}\b": "per: pairs per second, a row per image",
    r"\btriples?\b": "pass, or pair at one level",
    r"\btold\b": "callback; is reported; gets an error",
    r"\bright and wrong\b|\bwrong and right\b|\bwrong pairs?\b|\bright pairs?\b": (
        "positive and negative"
    ),
    r"\bthat says nothing\b|\bempty text\b|\bsilent text\b": "unconditional text",
    r"\bgoes without\b|\bdoes without\b": "omits, skips",
    r"\bgives? up on\b": "stops scoring, drops",
    r"\bvouch\w*": "has the hash of, lists, verifies",
    r"\bwithout a word\b": "without a message",
    r"\bby whomever\b|\bwhom\b": "name who",
    r"\banew\b": "from the beginning",
    r"\bhow many\b": "number of",
    r"\bplayed by\b": "restricted to",
    r"\b(?:keep|change)s? (?:its|their) order\b": "rank correlation",
    r"\bof (?:its|their) own accord\b": "unasked",
    r"\bsays of (?:itself|themselves)\b": "description",
    r"\blaid on white\b": "composited on white",
    r"\bwhoever\b|\bnobody\b": "name who",
    r"\bso many\b": "number of",
    r"\bas it goes\b": "as scores arrive",
    r"\bfor want of\b": "because there is no",
    r"\bbut for\b": "except",
    r"\bit is there to\b": "use it to",
    r"\bthere where\b|\bhave it that\b": "plain words",
    r"\btaken together\b|\bin turns\b": "fused; alternate",
}
SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:")


def _files() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.resolve().is_relative_to((ROOT / folder).resolve()):  # no link elsewhere
                yield path


FILES = list(_files())
IDS = [it.relative_to(ROOT).as_posix() for it in FILES]
file = pytest.mark.parametrize("path", FILES, ids=IDS)


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of the module, its classes and functions, and the strings below its constants."""
    for node in ast.walk(tree):
        for before, it in zip([None, *_body(node)], _body(node), strict=False):
            if isinstance(it, ast.Expr) and isinstance(it.value, ast.Constant):
                follows = before is None or isinstance(before, (ast.Assign, ast.AnnAssign))
                if follows and isinstance(it.value.value, str):
                    yield inspect.cleandoc(it.value.value)


def _body(node: ast.AST) -> list[ast.stmt]:
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return node.body if isinstance(node, nodes) else []


def helps(tree: ast.Module) -> Iterator[str]:
    """Literal help texts of options and commands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("help", "summary", "short_help"):
            for it in ast.walk(node.value):
                if isinstance(it, ast.Constant) and isinstance(it.value, str):
                    yield it.value


def comments(source: str) -> Iterator[str]:
    """Comments; those on consecutive lines are one."""
    text, last = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.string.lstrip("#!: ")
        if token.start[0] == last + 1 and token.line.lstrip().startswith("#"):
            text += f" {line}"
        else:
            yield text
            text = line
        last = token.start[0]
    yield text


def entries(docstring: str) -> Iterator[tuple[str, str, str]]:
    """Section, name and description of each entry of a docstring."""
    section, name, text = "", "", ""
    for line in [*docstring.splitlines(), "end"]:
        entry = re.match(r"    ([\w*., ]+): ?(.*)", line)
        if (entry and section in SECTIONS) or not line.startswith("    "):
            if name:
                yield section, name, text
            name, text = entry.groups() if entry else ("", "")
            if not entry and line.strip():
                section = line
        elif name:
            text += f" {line.strip()}"


def sentences(docstring: str) -> Iterator[str]:
    """Sentences of the prose; a code span is one word, an entry's name and code blocks are none."""
    text = re.sub(r"^```.*?^```$", "\n", docstring, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\x08\n(?:.+\n?)+", "\n", text, flags=re.MULTILINE)
    text = re.sub(rf"^(?:{'|'.join(SECTIONS)})$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^    [\w*., ]+: |^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        line = re.sub(r"`[^`]*`", "Code", " ".join(block.split()))
        line = re.sub(r"\b(Eq|Fig|No|vs)\. ", r"\1 ", line)
        yield from re.split(r"(?<=[.!?])[\"')]* ", line)


def words(sentence: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in sentence.split())


def _prose(path: Path) -> list[str]:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    return [*docstrings(tree), *helps(tree), *filter(None, comments(source))]


def test_every_kind_of_text_is_found() -> None:
    source = (
        '"""Module. Two `a b. C`.\n\n    run it\n"""\n\n# one\n# two\n'
        'A = 1  # three\n"""Four."""\n\n'
        'def f(x):\n    """Five.\n\n    Args:\n        x: six seven\n            eight.\n\n'
        '    Raises:\n        E: nine; ten.\n    """\n    g(help="eleven")\n'
    )
    tree = ast.parse(source)
    found = list(docstrings(tree))
    assert found[1:] == ["Four.", found[2]]
    assert list(entries(found[2])) == [
        ("Args:", "x", "six seven eight."),
        ("Raises:", "E", "nine; ten."),
    ]
    assert list(helps(tree)) == ["eleven"]
    assert list(filter(None, comments(source))) == ["one two", "three"]
    assert [words(it) for it in sentences(found[0])] == [1, 2, 2]
    assert [words(it) for it in sentences(found[2]) if it] == [1, 3, 2]


@file
def test_entries_stand_alone(path: Path) -> None:
    short = [
        f"{name}: {text}"
        for docstring in docstrings(ast.parse(path.read_text("utf-8")))
        for section, name, text in entries(docstring)
        if section in ("Args:", "Attributes:", "Raises:") and words(text) < FEWEST
    ]
    assert short == []


FILLERS = {
    *("a", "all", "an", "each", "for", "from", "given", "in", "is", "it", "its"),
    *("name", "of", "that", "the", "this", "to"),
}


def says_its_name_alone(name: str, text: str) -> bool:
    """Whether an entry adds nothing to its name: "path: path of the file"."""
    if "`" in text:
        return False
    known = {it.rstrip("s") for it in re.findall(r"[a-z]+", name.lower())} | {"file", "folder"}
    said = set(re.findall(r"[a-z]+", text.lower())) - FILLERS
    return {it.rstrip("s") for it in said} <= known


def test_what_says_its_name_alone() -> None:
    assert says_its_name_alone("path", "path of the file.")
    assert says_its_name_alone("bundle", "folder of the bundle.")
    assert not says_its_name_alone("path", "path of the file to write.")
    assert not says_its_name_alone("stage", "name of the stage, one of `STAGES`.")


@file
def test_entries_say_more_than_their_name(path: Path) -> None:
    empty = [
        f"{name}: {text}"
        for docstring in docstrings(ast.parse(path.read_text("utf-8")))
        for section, name, text in entries(docstring)
        if section in ("Args:", "Attributes:") and says_its_name_alone(name, text)
    ]
    assert empty == []


@file
def test_sentences_are_short(path: Path) -> None:
    lengths = {it: words(it) for text in _prose(path) for it in sentences(text) if words(it)}
    assert {it: n for it, n in lengths.items() if n > LONGEST} == {}
    if lengths:
        assert sum(lengths.values()) / len(lengths) <= AVERAGE


@file
def test_one_language(path: Path) -> None:
    found = {
        sentence: better
        for text in _prose(path)
        for sentence in sentences(text)
        for form, better in BANNED.items()
        if re.search(form, sentence, re.IGNORECASE)
    }
    assert found == {}
