"""`dsd-trt explain`: pictures, pages and numbers, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import HOSTILE
from in_process import Run
from page_parts import PageParts
from PIL import Image

from dsd_trt import ImageError, InputError, Scorer, explanation_html, read_bundle
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.explain import told_apart
from dsd_trt.explanation_png import SIDE, Pictured, best_words, sentences
from dsd_trt.failure import Failure
from dsd_trt.image import preprocess
from dsd_trt.job_scorer import JobScorer
from dsd_trt.pipeline import EncodedTexts

pytest_plugins = ("in_process",)

IMAGES = Path(__file__).parents[2] / "examples" / "images"
TEXT, OTHER = "the yellow star is above a white ring", "the yellow star is above a white square"


@pytest.fixture
def run(dsd_trt: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """Run `dsd-trt explain` in a folder with star.png, ring.png and an image that is none."""
    shutil.copyfile(IMAGES / "star-and-ring.png", tmp_path / "star.png")
    shutil.copyfile(IMAGES / "lone-ring.png", tmp_path / "ring.png")
    (tmp_path / "bad.png").write_bytes(b"no image")

    def explain(*arguments: str) -> Run:
        bundle = [] if "--bundle" in arguments else ["--bundle", str(EMBEDDED)]
        return dsd_trt("explain", *arguments, *bundle, "--engine", "onnxruntime")

    return explain


def assert_close(found: Any, expected: Any) -> None:
    """The same plain values, with numbers to 1e-6: engines round differently at another run."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == expected


def test_numbers_are_those_of_python(run: Callable[..., Run], tmp_path: Path) -> None:
    ended = run("star.png", "ring.png", TEXT, "a ring", "-o", "out.json")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert found["errors"] == []
    assert found["computed_with"]["noise levels"] == "0.02, 0.05, 0.1, 0.2"
    with Scorer.load(EMBEDDED, "onnxruntime") as scorer:
        expected = [
            it.to_plain()
            for name in ("star.png", "ring.png")
            for it in scorer.explain(name, [TEXT, "a ring"])
        ]
    assert_close([{**it, "contrast": None} for it in expected], found["explanations"])
    for it in found["explanations"]:
        for word in it["words"]:
            assert np.sum(word["heat"]) == pytest.approx(word["score"], abs=1e-6)


def test_choices_and_a_text_against_another(run: Callable[..., Run]) -> None:
    options = ("--layer", "6", "--head", "1", "--level", "0.05", "--levels", "0.05,0.2")
    ended = run("star.png", "--text", TEXT, "--against", OTHER, "-o", "-", *options)
    assert ended.code == 0, ended.err
    plain = json.loads(ended.out)
    (found,) = plain["explanations"]
    assert plain["computed_with"]["heat maps of"] == "layer 6, head 1, level 0.05"
    with Scorer.load(EMBEDDED, "onnxruntime") as scorer:
        both = scorer.explain("star.png", [TEXT, OTHER], [0.05, 0.2], layer=6, head=1, level=0.05)
    first, second = both
    assert_close(found, {**first.to_plain(), "contrast": first.against(second).to_plain()})
    decided = max(found["contrast"]["changes"], key=lambda it: it["difference"] * (not it["same"]))
    assert (decided["words"], decided["others"]) == (["ring"], ["square"])


def test_a_picture_has_a_panel_for_every_word(run: Callable[..., Run], tmp_path: Path) -> None:
    ended = run("star.png", TEXT, "-o", "out.png")
    assert ended.code == 0, ended.err
    with Image.open(tmp_path / "out.png") as opened:
        page = np.asarray(opened.convert("RGB"))
    # Nine panels: the image and eight words, and the end of the text, in two lines.
    lines = np.flatnonzero((page != 255).any(axis=2).mean(axis=1) > 0.5)
    starts = lines[np.flatnonzero(np.diff(lines, prepend=-9) > 1)]
    heights = [int(np.count_nonzero((lines >= at) & (lines < at + SIDE))) for at in starts]
    assert sum(height >= SIDE - 2 for height in heights) == 2
    first = page[starts[0] : starts[0] + SIDE]
    with Image.open("star.png") as opened:
        wanted = np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    left = int(np.flatnonzero((first != 255).any(axis=(0, 2)))[0])
    assert np.abs(first[:, left : left + SIDE].astype(int) - wanted[: len(first)]).mean() < 4


def test_a_wide_picture_keeps_its_shape(run: Callable[..., Run], tmp_path: Path) -> None:
    Image.new("RGB", (320, 80), "red").save(tmp_path / "wide.png")
    ended = run("wide.png", "a star", "-o", "out.png")
    assert ended.code == 0, ended.err
    with Image.open(tmp_path / "out.png") as opened:
        red = (np.asarray(opened.convert("RGB")) == (255, 0, 0)).all(axis=2)
    assert (red.any(axis=0).sum(), red.any(axis=1).sum()) == (SIDE, SIDE // 4)


def test_a_page_needs_nothing_and_runs_nothing(run: Callable[..., Run], tmp_path: Path) -> None:
    """Texts of others stay text: no element or attribute but those of a page without them."""
    names = [it for it in HOSTILE if "/" not in it and "\x00" not in it]
    for name in names:
        shutil.copyfile("star.png", tmp_path / f"{name}.png")
    texts = [it.replace("\x00", "").replace("\ud800", "") for it in HOSTILE]
    parts = []
    for images, more in ([f"{it}.png" for it in names], texts), (["star.png"] * 2, ["a dog"] * 2):
        given = [f"--text={it}" for it in (TEXT, *more)]
        ended = run(*images, *given, "--against", OTHER, "-o", "out.html")
        assert ended.code == 0, ended.err
        parts.append(PageParts((tmp_path / "out.html").read_text("utf-8")))
    hostile, plain = parts
    known = [{(it.name, *sorted(it.attributes)) for it in page.elements} for page in parts]
    assert known[0] == known[1]
    assert not hostile.all("script")
    for it in hostile.elements:
        assert (it.attributes.get("href") or "#").startswith(("#", "data:,"))
        assert re.match(
            "data:image/jpeg;base64,", it.attributes.get("src") or "data:image/jpeg;base64,"
        )
    assert "\x1b" not in hostile.content
    shown = {it.text for it in hostile.all("bdi")}
    assert {it.replace("\x1b", "\ufffd") for it in texts} <= shown  # and apart in their direction
    assert {f"{it}.png" for it in names} <= shown
    ids = [it.attributes["id"] for it in hostile.elements if "id" in it.attributes]
    assert len({*ids}) == len(ids)
    linked = {str(it.attributes["href"])[1:] for it in hostile.all("a")}
    assert linked <= {*ids}
    facts = [it.text for it in plain.all("dt")]
    assert {"bundle sha256", "engine", "noise levels", "heat maps of", "command"} <= {*facts}


def test_a_page_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a photograph, whose overlays are the largest; a comparison halves their room."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    with Scorer.load(EMBEDDED, "onnxruntime") as scorer:
        first, second = (it.without_maps() for it in scorer.explain(noise, [TEXT, OTHER]))
    for most in (120_000, 400_000):
        monkeypatch.setattr(explanation_html, "PAGE_BYTES", explanation_html._FRAME + most)
        for contrast in (None, first.against(second)):
            results = [Pictured(first, contrast, picture)] * 3
            page = "".join(explanation_html.to_html(results, 3, [], dict))
            assert len(page.encode()) < most + 30_000  # with its style
            pictures = len(results) * sum(1 + len(it.words) for it in results[0].both)
            assert page.count("data:image/jpeg") == pictures + 3  # each has its legend


def test_a_page_shows_every_word_and_says_where_it_is(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    run("star.png", TEXT, "-o", "out.html")
    page = PageParts((tmp_path / "out.html").read_text("utf-8"))
    pictures = [it.attributes for it in page.all("img")]
    with Scorer.load(EMBEDDED, "onnxruntime") as scorer:
        found = scorer.explain("star.png", TEXT)
    assert len(pictures) == 1 + len(found.words) + 1  # the image, the words, the legend
    for word, picture in zip(found.words, pictures[1:-1], strict=True):
        assert word.heat is not None
        row, column = divmod(int(word.heat.argmax()), 8)
        where = [100 * (at + 0.5) / 8 for at in (column, row)]
        expected = "{}: most heat {:.0f} % from the left and {:.0f} % from the top"
        assert picture["alt"] == expected.format(word.text, *where)
        content = base64.b64decode(str(picture["src"]).partition(",")[2])
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.size == (SIDE, SIDE)
        assert f"{word.text} {word.score:.4f}" in page.all("main")[0].text


@pytest.mark.parametrize("form", ["json", "html", "png"])
def test_an_image_that_cannot_be_read_costs_no_other(
    run: Callable[..., Run], tmp_path: Path, form: str
) -> None:
    ended = run("bad.png", "star.png", "a star", "-o", f"out.{form}")
    assert ended.code == 3
    assert "bad.png: not an image of a known format" in ended.err
    content = (tmp_path / f"out.{form}").read_bytes()
    if form == "json":
        (error,) = json.loads(content)["errors"]
        assert error == {
            "image": "bad.png",
            "text": None,
            "reason": "not an image of a known format",
        }
    if form == "html":
        assert b"not an image of a known format" in content


@pytest.mark.parametrize("form", ["json", "html", "png"])
def test_a_text_that_cannot_be_encoded_costs_no_other(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """It is named once, however many images there are."""
    encode = JobScorer.encode_texts

    def failing(jobs: JobScorer, texts: Sequence[str]) -> tuple[EncodedTexts, list[Failure]]:
        encoded, lost = encode(jobs, texts)
        return encoded, [*lost, *(Failure(None, "no states", it) for it in texts if "ring" in it)]

    monkeypatch.setattr(JobScorer, "encode_texts", failing)
    texts = [f"--text={it}" for it in ("a star", "a ring", "a dog")]
    ended = run("star.png", "ring.png", *texts, "-o", f"out.{form}")
    assert ended.code == 3
    assert ended.err.count("'a ring': no states") == 1
    if form == "json":
        plain = json.loads((tmp_path / "out.json").read_text("utf-8"))
        found = [(it["image"], it["text"]) for it in plain["explanations"]]
        assert found == [(i, t) for i in ("star.png", "ring.png") for t in ("a star", "a dog")]
        assert plain["errors"] == [{"image": None, "text": "a ring", "reason": "no states"}]


def test_an_image_that_cannot_be_shown_costs_no_other(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = preprocess.load_image

    def failing(source: Any, *rest: Any) -> Any:
        if source == Path("ring.png"):
            raise ImageError("it was replaced")
        return load(source, *rest)

    monkeypatch.setattr(preprocess, "load_image", failing)
    ended = run("ring.png", "star.png", "a star", "-o", "out.html")
    assert ended.code == 3
    assert "ring.png: it was replaced" in ended.err
    assert "star.png" in (tmp_path / "out.html").read_text("utf-8")


def test_the_end_of_a_text_is_never_its_best_word() -> None:
    """Also where it has the score of the best word."""
    with Scorer.load(EMBEDDED, "onnxruntime") as scorer:
        found = scorer.explain(IMAGES / "lone-star.png", "a star")
    tied = tuple(replace(it, tokens=(replace(it.tokens[0], score=0.5),)) for it in found.words)
    assert [it.text for it in best_words(replace(found, words=tied))] == ["a", "star"]
    assert best_words(replace(found, words=tied[-1:])) == ()


def test_images_of_a_tar_file_and_of_an_index(
    dsd_trt: Callable[..., Run], run: Callable[..., Run], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "star.png", "star.png")
    index = ("star.png", "some.index", "--bundle", str(EMBEDDED))
    assert dsd_trt("index", *index, "--engine", "onnxruntime").code == 0
    scores = []
    for given in ("star.png", "in.tar", "some.index"):
        ended = run(given, TEXT, "-o", "-")
        assert ended.code == 0, ended.err
        scores.append(json.loads(ended.out)["explanations"][0]["score"])
        for form in ("png", "html"):
            assert run(given, TEXT, "-o", f"out.{form}").code == 0
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give IMAGES to explain"),
        (("a dog",), "'a dog' is no file, so it is taken for a text"),
        (("star.png",), "give a TEXT to explain"),
        (("star.png", "ring.png"), "give a TEXT to explain"),
        (("none.png", "a dog"), "no file or directory 'none.png'"),
        (("folder/none.png", "a dog"), "no file or directory"),
        (("*.gif", "a dog"), "no images match"),
        (("star.png", "a dog", "--level", "0.3"), "no noise level 0.3"),
        (("star.png", "a dog", "--levels", "0.3"), "no noise level 0.3"),
        (("star.png", "a dog", "--layer", "9"), "no scored layer 9"),
        (("star.png", "a dog", "--layer", "1", "--head", "4"), "heads are numbered 0 to 3"),
        (("star.png", "a dog", "--bundle", "none"), "none"),
        (("star.png", " "), "is empty"),
        (("star.png", "a dog", "--against", " "), "--against is empty"),
        (("bad.png", "a dog"), "no image could be explained"),
    ],
)
def test_mistakes(run: Callable[..., Run], arguments: tuple[str, ...], message: str) -> None:
    ended = run(*arguments, "-o", "out.json")
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.gif", "FILE.png, FILE.html or FILE.json, not 'out.gif'"),
        ("out", "FILE.png, FILE.html or FILE.json, not 'out'"),
        ("none/out.png", "mkdir -p none"),
        ("star.png", "star.png"),
    ],
)
def test_outputs_that_cannot_be(run: Callable[..., Run], output: str, message: str) -> None:
    before = Path("star.png").read_bytes()
    ended = run("star.png", "a dog", "-o", output)
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert Path("star.png").read_bytes() == before


def test_more_than_a_picture_has_room_for(run: Callable[..., Run]) -> None:
    texts = [f"--text=dog {number}" for number in range(31)]
    ended = run("star.png", *texts, "--against", "a cat", "-o", "out.png")
    assert ended.code == 2
    assert "31 explanations, and FILE.png has room for 30" in ended.err
    assert "-o FILE.html" in ended.err


def test_a_bundle_without_maps_says_how_to_get_them(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    from dsd_trt import write_bundle

    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "older"))
    (folder / "maps.onnx").unlink()
    write_bundle(folder, replace(read_bundle(EMBEDDED).manifest, maps=None))
    ended = run("star.png", "a dog", "-o", "out.png", "--bundle", "older")
    assert ended.code == 2
    assert "dsd-trt export --maps" in " ".join(ended.err.split())


def test_images_and_texts_are_told_apart(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    assert told_apart(["a star", "star.png", "star"], []) == (["star.png"], ["a star", "star"])
    assert told_apart(["none.JPG", "is it? a star"], []) == (["none.JPG"], ["is it? a star"])
    assert told_apart(["in/*", "*.png", "a * star"], []) == (["in/*", "*.png"], ["a * star"])
    assert told_apart(["dog", "a dog"], []) == (["dog"], ["a dog"])
    assert told_apart(["a.tar", "x" * 400], []) == (["a.tar"], ["x" * 400])
    assert told_apart(["star.png"], ["dog", "star.png"]) == (["star.png"], ["dog", "star.png"])
    with pytest.raises(InputError, match="give IMAGES"):
        told_apart([], ["dog"])


def test_what_reads_as_a_lost_path_is_no_text() -> None:
    with pytest.raises(InputError, match=r"no file or folder 'photo/x'.*--text photo/x"):
        told_apart(["a.png", "photo/x"], [])
    with pytest.raises(InputError, match="no file or folder 'exampels/images'"):
        told_apart(["exampels/images", "a.png", "a star"], [])
    assert told_apart(["a.png", "a star and/or a ring"], []) == (
        ["a.png"],
        ["a star and/or a ring"],
    )
    assert told_apart(["a.png"], ["photo/x"]) == (["a.png"], ["photo/x"])


def test_names_that_are_not_utf8_are_written_escaped(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "star.png").rename(tmp_path / os.fsdecode(b"bad\xff.png"))
    done = run(".", "a star", "-o", "out.json")
    assert done.code == 3  # bad.png is no image
    plain = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert "bad\\udcff.png" in {it["image"] for it in plain["explanations"]}


def test_the_changes_of_a_picture_sum_to_the_difference() -> None:
    with Scorer.load(EMBEDDED, engine="onnxruntime") as scorer:
        first, second = scorer.explain(IMAGES / "star-and-ring.png", [TEXT, OTHER])
    lines = sentences(first.against(second))
    numbers = [float(re.search(r": ([+-][0-9.]+)", line)[1]) for line in lines[1:]]  # type: ignore[index]
    assert len(lines) == 6
    assert "5 other changes" in lines[-1]
    assert sum(numbers) == pytest.approx(first.score - second.score, abs=3e-4)
