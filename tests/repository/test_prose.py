"""How the documents read: short sentences, and none of the forms that outsiders read twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
IDS = [str(path.relative_to(ROOT)) for path in PAGES]

LONGEST = 40  # words of a sentence
AVERAGE = 20  # words of a page's sentences
README_LINES = 160

UNITS = r"(?:pair|image|text|level|step|second|minute|call|batch|request|channel|layer|head|GPU)"
COUNTED = r"(?:pairs|seconds|milliseconds|ms|MB|kB|GB|GMAC|row|column|pass|passes|time|times|once)"
BANNED = {
    rf"\b{COUNTED} an? {UNITS}\b": "per: pairs per second, a row per image",
    r"\bsays? nothing\b": "the unconditional text; is not evidence",
    r"\bright and wrong\b|\bwrong and right\b": "positive and negative",
    r"\b(?:same|keeps?|change) (?:their|its|the)? ?order\b": "rank correlation",
    r"\bbest of ten\b": "top-1 agreement",
    r"\bprobabilities are made of\b": "calibration (a, b)",
    r"\b(?:goes?|does|do) without\b": "skips",
    r"\bfor want of\b": "because there is no",
    r"\bplayed by\b": "restricted to",
    r"\bgives? up on\b": "stops scoring",
    r"\bwhat (?:is no longer|was never|is kept|lies|of it)\b": "the noun first",
    r"\bis alike\b|\bare alike\b": "are the same",
    r"\bit is there to\b": "use it to",
    r"\b(?:is|are) told\b": "is reported; gets an error",
    r"\bbut for\b": "except",
    r"\bwithout a word\b": "without a message",
    r"\bas it goes\b": "as scores arrive",
    r"\bthere where\b|\bhave it that\b|\bby the hour\b": "plain words",
}
WALKS = {
    *("score.md", "search.md", "speed.md", "tensorrt.md", "triton.md", "CHANGELOG.md"),
}  # pages of matrix mode

page = pytest.mark.parametrize("path", PAGES, ids=IDS)


def blocks(text: str) -> Iterator[str]:
    """Paragraphs and list items, each on one line: no code, tables, headings or pictures."""
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\s*```.*?^\s*```$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\s*(?:\||#).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        if line := " ".join(block.split()):
            yield line


def sentences(text: str) -> Iterator[str]:
    """Sentences of the prose; code between backticks is one word, of a link its text is read."""
    for block in blocks(text):
        line = re.sub(r"`[^`]*`", "Code", block)
        line = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line).replace("*", "")
        line = re.sub(r"\b(Eq|Fig|No|vs)\. ", r"\1 ", line)
        yield from re.split(r"(?<=[.!?])[\"')]* (?=[\"'(]*[A-Z0-9])", line)


def words(sentence: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in sentence.split())


def test_sentences_are_found_and_code_and_tables_are_not() -> None:
    text = (
        "# A heading. Not read\n\nOne `a b. C` two, Eq. 3 and 2.5.\nThree [four](x.md#y)? Five:\n\n"
        "```sh\nrun it. Now\n```\n\n| a | b. C |\n|---|---|\n\n"
        "- six\n  seven\n- **Eight.** `nine`\n"
    )
    assert list(map(words, sentences(text))) == [7, 2, 1, 2, 1, 1]


@page
def test_sentences_are_short(path: Path) -> None:
    lengths = {it: words(it) for it in sentences(path.read_text("utf-8"))}
    assert {it: n for it, n in lengths.items() if n > LONGEST} == {}
    if lengths:
        assert sum(lengths.values()) / len(lengths) <= AVERAGE


@page
def test_forms_that_are_read_twice_are_not_used(path: Path) -> None:
    prose = "\n".join(sentences(path.read_text("utf-8")))
    found = {
        line: better
        for form, better in BANNED.items()
        for line in re.findall(rf".*(?:{form}).*", prose, re.IGNORECASE)
    }
    assert found == {}
    if path.name not in WALKS:
        assert not re.findall(r".*\bwalks?\b.*", prose, re.IGNORECASE)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


def test_every_page_is_listed_with_a_sentence() -> None:
    listed = dict(
        re.findall(
            r"^\| \[[^\]]+\]\(([\w-]+\.md)\) \| (.+) \|$",
            (ROOT / "docs" / "README.md").read_text("utf-8"),
            re.MULTILINE,
        )
    )
    assert listed.keys() == {it.name for it in ROOT.glob("docs/*.md")} - {"README.md"}
    assert all(sentence.endswith(".") for sentence in listed.values())
