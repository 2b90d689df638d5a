"""Pages of scores, read without a browser: their data, their policy, and text that stays text."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import itertools
import json
import math
import os
import pty
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from bundles import RESOLUTION
from hostile import HOSTILE
from in_process import Run
from page_parts import PageParts
from PIL import Image
from pyarrow import parquet
from scored_folder import fill

from dsd_trt import Bundle
from dsd_trt.commands.html import refuse_terminal, write_html
from dsd_trt.commands.layout import MATRIX, PAIRS, Layout
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record, shortest
from dsd_trt.commands.record_images import GivenImages
from dsd_trt.errors import InputError
from dsd_trt.failure import Failure
from dsd_trt.html.escaped import escaped, json_escaped
from dsd_trt.html.tables import Bar, table
from dsd_trt.html.thumbnails import PAGE_BYTES, ThumbnailSize, thumbnail
from dsd_trt.installation import own_command

pytest_plugins = ("in_process",)

TEXTS = ["a red circle", "dog", "a blue square, a green dog"]


@pytest.fixture
def run(dsd_trt: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """`dsd-trt score` in a folder with two images and one that is none."""
    fill(tmp_path, TEXTS)
    rows = [{"image": "b.png", "text": text, "id": place} for place, text in enumerate(TEXTS)]
    rows.append({"image": "missing.png", "text": "dog", "id": 3})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(it) + "\n" for it in rows))
    return lambda *arguments: dsd_trt("score", *arguments)


def read(path: Path) -> PageParts:
    return PageParts(path.read_text("utf-8"))


GIVEN = ("a.png", "broken.png", "b.png", "texts.txt")


@pytest.mark.parametrize(
    ("what", "grid"),
    [
        (GIVEN, True),
        ((*GIVEN, "--top-k", "2"), False),
        ((*GIVEN, "--top-k", "1", "--by", "text"), False),
        (("--pairs", "pairs.jsonl"), False),
        (("--pairs", "pairs.jsonl", "--top-k", "1"), False),
    ],
)
def test_it_holds_what_json_holds(
    run: Callable[..., Run], tmp_path: Path, what: tuple[str, ...], grid: bool
) -> None:
    expected = json.loads(run(*what, "-f", "json").out)
    ended = run(*what, "-o", "scores.html")
    assert (ended.code, ended.out) == (3, ""), ended.err
    parts = read(tmp_path / "scores.html")
    shared = ("image", "text", "score", "probability")
    assert parts.pairs() == [{name: row[name] for name in shared} for row in expected]
    assert parts.data("setup")["grid"] is grid
    (pictures,) = (parts.data("pictures-0"),)
    for name, picture in zip(parts.data("names")["images"], pictures, strict=True):
        if name == "missing.png":
            assert picture is None
        else:
            shown = Image.open(io.BytesIO(base64.b64decode(picture)))
            assert shown.size == (RESOLUTION, RESOLUTION)
    if "--pairs" in what and "--top-k" not in what:
        assert [row[4] for row in parts.data("rows")] == [row["error"] for row in expected]
        assert [row[5]["id"] for row in parts.data("rows")] == ["0", "1", "2", "3"]


def test_what_could_not_be_scored_and_what_made_it_are_named(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    run(*GIVEN, "-o", "scores.html")
    parts = read(tmp_path / "scores.html")
    assert "Could not be scored: 1" in parts.all("caption")[0].text
    (row,) = parts.all("tbody")[0].text.splitlines()
    assert row.startswith("broken.png")
    assert "not an image of a known format" in row
    facts = facts_of(tmp_path / "scores.html")
    assert {"bundle", "bundle sha256", "mode", "engine", "versions", "command", "date"} <= {*facts}
    assert re.fullmatch(r"[0-9a-f]{64}", facts["bundle sha256"])
    assert "onnxruntime" in facts["engine"]
    run("--pairs", "pairs.jsonl", "-o", "pairs.html")
    assert "no image file 'missing.png'" in read(tmp_path / "pairs.html").all("tbody")[0].text


def facts_of(path: Path) -> dict[str, str]:
    parts = read(path)
    names = [it.text for it in parts.all("dt")]
    return dict(zip(names, [it.text for it in parts.all("dd")], strict=True))


def test_its_date_is_not_before_the_last_record(tmp_path: Path) -> None:
    """The first record comes in an earlier second than the last."""
    times: list[datetime.datetime] = []

    def records() -> Iterator[Record]:
        for record in itertools.islice(synthetic(1), 2):
            times.append(datetime.datetime.now(datetime.UTC).replace(microsecond=0))
            yield record
            while datetime.datetime.now(datetime.UTC).replace(microsecond=0) == times[0]:
                time.sleep(0.01)

    written(tmp_path, records(), Origin(MATRIX, True))
    date = datetime.datetime.strptime(
        facts_of(tmp_path / "page.html")["date"], "%Y-%m-%d %H:%M:%S UTC"
    )
    assert times[0] < times[1] <= date.replace(tzinfo=datetime.UTC)


def test_its_command_is_the_one_that_was_given(
    run: Callable[..., Run], bundle: Bundle, tmp_path: Path
) -> None:
    given = ["score", "a.png", "b.png", "texts.txt", "--bundle", str(bundle.folder)]
    given += ["--engine", "onnxruntime", "-o", "two words.html"]
    subprocess.run([*own_command(), *given], cwd=tmp_path, check=True, capture_output=True)
    command = facts_of(tmp_path / "two words.html")["command"]
    assert shlex.split(command) == ["dsd-trt", *given]


def colours(parts: PageParts) -> list[str | None]:
    """Red, green or blue, whichever a thumbnail has most of; None for no thumbnail."""
    found: list[str | None] = []
    for picture in parts.data("pictures-0"):
        if picture is None:
            found.append(None)
            continue
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        found.append(("red", "green", "blue")[int(pixels.mean(axis=(0, 1)).argmax())])
    return found


def painted(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), {"green": "lime"}.get(colour, colour)).save(file, "PNG")
    return file.getvalue()


def test_images_of_an_index_are_shown_while_they_are_what_was_indexed(
    dsd_trt: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for colour in ("red", "green", "blue"):
        (tmp_path / f"in/{colour}.png").write_bytes(painted(colour))
    (tmp_path / "texts.txt").write_text("dog\n")
    assert dsd_trt("index", "in", "kept").code == 0
    (tmp_path / "in/green.png").unlink()
    (tmp_path / "in/red.png").write_bytes(painted("blue"))  # is another now
    assert dsd_trt("score", "kept", "texts.txt", "-o", "scores.html").code == 0
    parts = read(tmp_path / "scores.html")
    names = ["in/blue.png", "in/green.png", "in/red.png"]
    assert parts.data("names")["images"] == names
    assert colours(parts) == ["blue", None, None]


def test_stored_images_of_one_name_are_told_apart(
    dsd_trt: Callable[..., Run], tmp_path: Path
) -> None:
    kinds = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    order = ("red", "blue", "red", "green")
    images = [{"bytes": painted(it), "path": "image.png"} for it in order]
    table = pyarrow.table({"image": pyarrow.array(images, kinds), "text": ["dog"] * 4})
    parquet.write_table(table, tmp_path / "pairs.parquet")
    assert dsd_trt("score", "--pairs", "pairs.parquet", "-o", "scores.html").code == 0
    parts = read(tmp_path / "scores.html")
    shown = colours(parts)
    assert shown == ["red", "blue", "green"]  # each once
    assert [shown[row[0]] for row in parts.data("rows")] == list(order)


def test_images_of_a_tar_file_are_shown(dsd_trt: Callable[..., Run], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for place, colour in enumerate(("green", "red")):
            for suffix, content in (("png", painted(colour)), ("txt", b"dog")):
                member = tarfile.TarInfo(f"{place}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    (tmp_path / "texts.txt").write_text("dog\n")
    for arguments in (("in.tar", "texts.txt"), ("--pairs", "in.tar")):
        assert dsd_trt("score", *arguments, "-o", "scores.html").code == 0
        assert colours(read(tmp_path / "scores.html")) == ["green", "red"]


def hostile(texts: list[str]) -> Iterator[Record]:
    for image, text in itertools.product(texts, texts):
        yield Record(image, text, 0.25, None)


def written(tmp_path: Path, records: Iterator[Record], origin: Origin) -> str:
    write_html(str(tmp_path / "page.html"), records, origin)
    return (tmp_path / "page.html").read_bytes().decode("utf-8")


@pytest.mark.parametrize("texts", [HOSTILE, [it for it in HOSTILE if "\ud800" not in it]], ids=len)
def test_hostile_names_and_texts_stay_text(tmp_path: Path, texts: list[str]) -> None:
    """With a half of a character, which JSON then has to escape, and without it."""
    failures = [Failure(it, it, it) for it in texts]
    facts = {it: it for it in texts}
    origin = Origin(MATRIX, True, lambda: facts, failures=lambda: failures)
    page = written(tmp_path, hostile(texts), origin)
    parts = PageParts(page)
    plain = PageParts(written(tmp_path, hostile([]), Origin(MATRIX, True)))
    # No element, attribute or handler but those of a page without any of these.
    known = {(it.name, *sorted(it.attributes)) for it in plain.elements}
    known |= {(it, "class") for it in ("td", "tr")} | {("tr",), ("td",), ("tbody",), ("section",)}
    known |= {("th", "class", "scope"), ("table", "class"), ("caption",), ("thead",)}
    known |= {("div", "aria-label", "class", "role", "tabindex")}
    assert {(it.name, *sorted(it.attributes)) for it in parts.elements} <= known
    assert len(parts.all("script")) == len(plain.all("script")) + 1  # the thumbnails
    assert parts.data("names") == {"images": texts, "texts": texts}
    shown = [it.text for it in parts.all("dt")]
    assert shown[0] == texts[0]  # the very text, not what a parser would make of it
    assert "\x00" not in page
    assert "\x1b" not in page


def test_failures_that_are_not_listed_are_where_the_page_says(tmp_path: Path) -> None:
    """Failed images of a grid have no record: other formats have none of them."""
    failed = [Failure(f"{number}.png", "no image") for number in range(1002)]
    written(tmp_path, hostile(["a"]), Origin(MATRIX, True, failures=lambda: failed))
    (line,) = (it.text for it in read(tmp_path / "page.html").all("p") if "more" in it.text)
    assert line == "2 more are not listed here: stderr has them."
    rows = (Record("a", "b", math.nan, None, error="no image") for _ in range(1003))
    written(tmp_path, rows, Origin(Layout(PAIRS)))
    (line,) = (it.text for it in read(tmp_path / "page.html").all("p") if "more" in it.text)
    assert line == "3 more are not listed here: -f json or -f csv has them."


@pytest.mark.parametrize("text", HOSTILE)
def test_escaping_is_undone_by_a_parser(text: str) -> None:
    parts = PageParts(f'<p title="{escaped(text)}">{escaped(text)}</p>')
    expected = re.sub(r"[\x00\x1b]", "\ufffd", text).replace("\ud800", "?")
    (element,) = parts.elements
    assert (element.text, element.attributes["title"]) == (expected, expected)
    assert json.loads(json_escaped(text)) == text
    assert not re.search("[<>&]", json_escaped(text))


def test_nothing_but_its_own_script_and_style_may_run(tmp_path: Path) -> None:
    parts = PageParts(written(tmp_path, hostile(HOSTILE), Origin(MATRIX, True)))
    (policy,) = (
        it.attributes["content"]
        for it in parts.all("meta")
        if it.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(it.strip().partition(" ")[::2] for it in str(policy).split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    (style,) = parts.all("style")
    (script,) = (it for it in parts.all("script") if "type" not in it.attributes)
    for name, element in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert set(rules) == {
        *("default-src", "base-uri", "form-action", "img-src", "style-src", "script-src")
    }
    outside = [
        (it.name, name)
        for it in parts.elements
        for name, value in it.attributes.items()
        if name in ("src", "href", "style", "action") and value != "data:,"
    ]
    assert outside == []


def test_a_score_that_is_not_there_is_null(tmp_path: Path) -> None:
    records = iter([Record("a", "b", float("nan"), None, "no image"), Record("a", "c", 0.5, 0.5)])
    page = written(tmp_path, records, Origin(Layout(("image", "text", "score", "error"))))
    assert "NaN" not in page
    assert [row[2] for row in PageParts(page).data("rows")] == [None, 0.5]


IMAGES, COLUMNS = 2000, 50


def noisy(folder: Path) -> list[Path]:
    """Images of noise, which compress worst; a few files under many names."""
    generator = np.random.default_rng(7)
    files = []
    for place in range(8):
        noise = generator.integers(0, 256, (400, 400, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{place}.jpg", quality=95)
        files.append(folder / f"{place}.jpg")
    return [files[place % 8] for place in range(IMAGES)]


def synthetic(count: int) -> Iterator[Record]:
    generator = np.random.default_rng(1)
    for image in range(count):
        for text, score in enumerate(generator.random(COLUMNS, np.float32)):
            yield Record(f"{image}.jpg", f"text {text}", shortest(score), 0.5, place=image)


def test_two_thousand_images_of_noise_fit_in_forty_megabytes(tmp_path: Path) -> None:
    images = noisy(tmp_path)
    page = written(tmp_path, synthetic(IMAGES), Origin(MATRIX, True, images=GivenImages(images)))
    assert len(page.encode()) <= PAGE_BYTES == 40_000_000
    parts = PageParts(page)
    assert len(parts.data("rows")) == IMAGES * COLUMNS
    blocks = [
        parts.data(f"pictures-{n}") for n in range(-(-IMAGES // parts.data("setup")["block"]))
    ]
    pictures = list(itertools.chain(*blocks))
    assert len(pictures) == IMAGES
    assert all(pictures)


@pytest.mark.parametrize(("count", "room"), [(1, 10**7), (2000, 10**7), (100_000, 10**7)])
def test_thumbnails_fill_no_more_than_their_room(count: int, room: int) -> None:
    generator = np.random.default_rng(2)
    noise = generator.integers(0, 256, (300, 900, 3)).astype(np.uint8)
    size = ThumbnailSize.fitting(count, room)
    if count == 100_000:
        assert size is None  # a tenth of a kilobyte each is no picture
        return
    assert size is not None
    picture = thumbnail(noise, size)
    assert picture is not None
    assert count * len(picture) <= room
    shown = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert max(shown.size) <= size.side
    assert shown.width / shown.height == pytest.approx(3, rel=0.1)  # nothing is stretched


def test_rows_are_written_as_they_arrive(tmp_path: Path) -> None:
    """The unfinished file has the first rows before the last ones are scored."""
    sizes = list[int]()

    def records() -> Iterator[Record]:
        for record in synthetic(400):
            if record.text == "text 0":
                sizes.extend(it.stat().st_size for it in tmp_path.glob(".page.html*"))
            yield record

    written(tmp_path, records(), Origin(MATRIX, True))
    assert sizes[-1] > 300 * COLUMNS * 10
    assert (tmp_path / "page.html").exists()


def test_a_terminal_gets_no_page(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    leader, terminal = pty.openpty()
    with os.fdopen(leader), os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        with pytest.raises(InputError, match=r"-o FILE\.html"):
            refuse_terminal("-")
        refuse_terminal("page.html")
        monkeypatch.undo()


def test_a_pipe_gets_the_page_of_a_file(run: Callable[..., Run], tmp_path: Path) -> None:
    ended = run(*GIVEN, "-f", "html")
    assert ended.code == 3
    run(*GIVEN, "-o", "scores.htm")
    there = (tmp_path / "scores.htm").read_text("utf-8")
    date = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
    assert len(date.findall(ended.out)) == len(date.findall(there)) == 1
    assert date.sub("", ended.out) == date.sub("", there)


def test_filter_writes_no_page(dsd_trt: Callable[..., Run], run: Callable[..., Run]) -> None:
    ended = dsd_trt("filter", "pairs.jsonl", "--keep-best", "1", "-o", "kept.html")
    assert ended.code == 2
    assert "dsd-trt score --pairs" in ended.err


def test_bars_are_as_long_as_their_numbers() -> None:
    bar = Bar("25.0", 0.25, (0.1, 2.0), 0.5)
    parts = PageParts(table("A", ["Name", "Number"], [["<b>", bar]]))
    (length,) = parts.all("rect")
    assert float(str(length.attributes["width"])) == pytest.approx(25)
    interval, mark = (it.attributes["d"] for it in parts.all("path"))
    assert (interval, mark) == ("M10.00 5H100.00", "M50.00 0V10")
    assert [it.text for it in parts.all("th")] == ["Name", "Number", "<b>"]
