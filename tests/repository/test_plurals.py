"""Numbers agree with their nouns: messages take both from `counted`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsd_trt.errors import counted

ROOT = Path(__file__).parents[2]
FOLDERS = ("dsd_trt", "train", "export", "engines")
NOUNS = (
    "answer|bin|bit|bundle|byte|candidate|cell|channel|character|column|core|device|error|example|"
    "failure|file|folder|GPU|graph|head|hit|id|image|input|item|key|label|layer|level|line|minute|model|"
    "negative|node|number|output|pair|part|pixel|plan|positive|product|question|record|result|round|"
    "row|run|sample|scene|score|second|sentence|shape|shard|source|state|step|table|tensor|text|"
    "thread|token|twin|update|value|weight|word|worker"
)
BETWEEN = "attention|best|few-shot|labelled|more|noise|other|scored|tar|test|training|validation"
COUNTED = re.compile(rf" (?:(?:{BETWEEN}) )?(?:(?:{NOUNS})s|passes|entries|misses)\b(?!/)")
# Where a number is never 1, or is part of what must not change, by the file and the words after it.
ALLOWED = {
    ("dsd_trt/session.py", " threads"),  # a part of the key of cached scores
    ("dsd_trt/pipeline.py", " threads"),  # a part of the key of remembered batch sizes
    ("dsd_trt/image/tiff.py", " samples"),  # more than four
    ("dsd_trt/files/schema.py", " levels"),  # limits of the package
    ("dsd_trt/files/schema.py", " bytes"),
    ("dsd_trt/commands/inspect.py", " heads"),  # of each layer, in a list
    ("dsd_trt/commands/inspect.py", " pixels"),
    ("dsd_trt/commands/table.py", " texts"),  # more than fit into a table
    ("dsd_trt/doctor/gpu.py", " runs"),  # a verb
    ("dsd_trt/doctor/threads.py", " cores"),  # a part of one, or several
    ("dsd_trt/engine/pooled_attention.py", " bits"),
    ("export/benchmark/gpu_peers.py", " records"),  # a verb
    ("dsd_trt/commands/remaining.py", " seconds"),  # ten or more
    ("dsd_trt/commands/remaining.py", " minutes"),  # two or more
    ("export/parity.py", " graphs"),  # after a precision
    ("dsd_trt/pairs/choice.py", " positives"),  # a percentage of them
    ("dsd_trt/pairs/choice.py", " pairs"),  # more than there are labels
    ("train/data/files.py", " images"),  # after the name of a split
    ("dsd_trt/engine/tensorrt/runner.py", " runs"),  # a verb
    ("engines/triton/scoring/texts.py", " characters"),
}


def _numbered_nouns(path: Path) -> Iterator[tuple[str, int]]:
    """Words after a value in a string, where they are nouns in the plural, and their line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            if found := COUNTED.match(str(text.value)):
                yield found[0], node.lineno


def _files() -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(part.is_symlink() for part in path.parents)
    ]


def test_every_number_of_things_is_counted() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), words): line
        for path in _files()
        for words, line in _numbered_nouns(path)
    }
    loose = {f"{name}:{line}:{words}" for (name, words), line in found.items()}
    allowed = {f"{name}:{found.get((name, words))}:{words}" for name, words in ALLOWED}
    assert sorted(loose - allowed) == [], "use counted(number, 'noun')"


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'f"{n} pairs"; f"{n} labelled pairs of {m} images"; f"{n:,} rows"; f"{n} pairs/s"; '
        'f"{path} has pairs"; f"the {n} best pairs"; f"{n} pair"\n'
    )
    found = [words for words, _ in _numbered_nouns(tmp_path / "a.py")]
    assert found == [" pairs", " labelled pairs", " images", " rows", " best pairs"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "pair"), "0 pairs"),
        (counted(1, "pair"), "1 pair"),
        (counted(2, "labelled pair"), "2 labelled pairs"),
        (counted(1000, "row"), "1000 rows"),
        (counted(1, "miss", "misses"), "1 miss"),
        (counted(3, "text or pair", "texts or pairs"), "3 texts or pairs"),
    ],
)
def test_a_number_agrees_with_its_noun(said: str, expected: str) -> None:
    assert said == expected
