from __future__ import annotations

import csv
import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form, probability
from in_process import Run
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import Bundle
from dsd_trt.commands.main import main
from dsd_trt.installation import install_command

pytest_plugins = ("in_process",)

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
TEXTS = ["a red circle", "dog", "a blue square, a green dog"]


@pytest.fixture
def run(dsd_trt: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Run `dsd-trt score`."""

    def score(*arguments: str, stdin: bytes = b"") -> Run:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return dsd_trt("score", *arguments)

    return score


def write_images(folder: Path, *names: str) -> dict[str, NDArray[np.uint8]]:
    """Images that need no resizing, and their pixels."""
    generator = np.random.default_rng(11)
    pixels = {}
    for name in names:
        brightness = generator.uniform(0, 1, 3)
        noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3))
        pixels[name] = (noise * brightness).astype(np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(folder / name)
    return pixels


def write_texts(folder: Path, texts: list[str] = TEXTS) -> None:
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")


def test_csv_holds_every_pair_with_its_score(run: Callable[..., Run], tmp_path: Path) -> None:
    pixels = write_images(tmp_path, "in/a.png", "in/deep/b.png")
    write_texts(tmp_path)
    ended = run("in", "texts.txt", "-f", "csv")
    assert ended.code == 0, ended.err
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [(row["image"], row["text"]) for row in rows] == [
        (image, text) for image in ("in/a.png", "in/deep/b.png") for text in TEXTS
    ]
    for row in rows:
        f = closed_form(pixels[row["image"]], row["text"])
        assert float(row["score"]) == pytest.approx(f, abs=1e-6)
        assert float(row["probability"]) == pytest.approx(probability(f), abs=1e-6)


def test_the_machine_formats_agree(run: Callable[..., Run], tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    write_texts(tmp_path)
    whole = json.loads(run("a.png", "b.png", "texts.txt", "-f", "json").out)
    lines = run("a.png", "b.png", "texts.txt", "-f", "jsonl").out.splitlines()
    rows = csv.DictReader(io.StringIO(run("a.png", "b.png", "texts.txt", "-f", "csv").out))
    assert [json.loads(line) for line in lines] == whole
    assert [
        {**row, "score": float(row["score"]), "probability": float(row["probability"])}
        for row in rows
    ] == whole
    assert len(whole) == 6
    assert set(whole[0]) == {"image", "text", "score", "probability"}


def test_only_results_go_to_stdout(run: Callable[..., Run], tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    ended = run("a.png", "-", "-f", "json", stdin=b"dog\n" + b"red " * 100)
    assert ended.code == 0
    assert len(json.loads(ended.out)) == 2
    assert re.search(r"engine: onnxruntime \S+ on CPU, fp32", ended.err)
    assert re.search(r"scored 2 pairs in \S+ s \(\S+ pairs/s\)", ended.err)
    assert "75 of 100 tokens" in ended.err
    assert "\x1b" not in ended.err  # no progress bar where nobody watches


def test_images_come_from_files_directories_and_globs_each_once(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    write_images(tmp_path, "x/b.png", "x/a.PNG", "x/y/c.jpg", "x/.hidden.png", "x/.cache/d.png")
    (tmp_path / "x/notes.txt").write_text("no image")
    write_texts(tmp_path, ["dog"])

    def images(*arguments: str) -> list[str]:
        return [row["image"] for row in json.loads(run(*arguments, "texts.txt", "-f", "json").out)]

    assert images("x") == ["x/a.PNG", "x/b.png", "x/y/c.jpg"]
    assert images("x/*.png") == ["x/b.png"]
    assert images("x/**") == ["x/a.PNG", "x/b.png", "x/y/c.jpg"]
    assert images("x/b.png", "x", "./x/b.png") == ["x/b.png", "x/a.PNG", "x/y/c.jpg"]
    assert images(str(tmp_path / "x/y/*")) == [str(tmp_path / "x/y/c.jpg")]
    (tmp_path / "x/odd[1].png").write_bytes((tmp_path / "x/b.png").read_bytes())
    assert images("x/odd[1].png") == ["x/odd[1].png"]  # a file, not a pattern


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa dog\r\n\r\n  blue square \r\n",
        b"a dog\n\n\n\tblue square",
        b"a dog\rblue square\r",
    ],
)
def test_texts_files_of_every_make(run: Callable[..., Run], tmp_path: Path, content: bytes) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "texts.txt").write_bytes(content)
    from_file = json.loads(run("a.png", "texts.txt", "-f", "json").out)
    assert [row["text"] for row in from_file] == ["a dog", "blue square"]
    assert json.loads(run("a.png", "-", "-f", "json", stdin=content).out) == from_file


PAIRS = [("in/a.png", "dog"), ("b.png", "red, and blue"), ("in/a.png", "a red dog")]


def pairs_csv() -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("id", "text", "image"), *((7, t, i) for i, t in PAIRS)])
    return "\ufeff" + buffer.getvalue()


def pairs_jsonl() -> str:
    return "\n\n".join(json.dumps({"text": t, "image": i, "label": 1}) for i, t in PAIRS)


@pytest.mark.parametrize("content", [pairs_csv(), pairs_jsonl()])
def test_pairs_are_scored_in_order_and_found_beside_their_file(
    run: Callable[..., Run], tmp_path: Path, content: str
) -> None:
    pixels = write_images(tmp_path / "set", "in/a.png", "b.png")
    (tmp_path / "set/pairs").write_text(content)
    ended = run("--pairs", "set/pairs", "-f", "json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert [(row["image"], row["text"]) for row in rows] == PAIRS
    for row in rows:
        f = closed_form(pixels[row["image"]], row["text"])
        assert row["score"] == pytest.approx(f, abs=1e-6)


def test_cells_of_any_length_are_read(run: Callable[..., Run], tmp_path: Path) -> None:
    """Also where another part of the program has set the limit that Python's module has."""
    pixels = write_images(tmp_path, "a.png")
    long = "red " * 50_000
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = [("image", "text", "html", ""), ("a.png", "dog", "<p>" * 70_000, "")]
        csv.writer(file).writerows([*rows, ("a.png", long, "", "")])
    before = csv.field_size_limit(1000)
    try:
        ended = run("--pairs", "pairs.csv", "-f", "json")
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)
    assert ended.code == 0, ended.err
    assert [row["score"] for row in json.loads(ended.out)] == [
        pytest.approx(closed_form(pixels["a.png"], text), abs=1e-6) for text in ("dog", long)
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("image,text\na.png,dog\na.png,red, dog\n", "line 3: a.png and 'red': 3 cells under 2"),
        ("image,text\n\na.png,\n", "line 3: a.png: text is empty"),
        ("image,text\na.png,dog\nmissing.png,dog\n", "no image file 'missing.png'"),
        ('image,text\na.png,"dog\n', "line 2: a.png and 'dog': not valid CSV"),
        ("image,text\n" + "x" * 5000 + ",dog\n", "no image file"),
        ('{"image": "a.png", "text": "dog"}\n{"image": \n', "line 2: no image: not valid JSON"),
        ('{"image": "a.png", "text": "dog"}\n["a.png", "dog"]\n', "line 2: no image: not a JSON"),
        ('{"image": "a.png", "text": 5}\n', "text must be text, got int 5"),
        ('{"image": "a.png", "text": "\\ud800"}\n', "text has a surrogate"),
        ('image,text\na.png,"dog"s\na.png,"red"\n', "line 2: a.png and 'dogs': not valid CSV"),
        ("image,text\ra.png,dog\rb.png,dog\r", "line 3: b.png and 'dog': no image file"),
        ('{"image": "a.png", "text": NaN}\n', "line 1: a.png: text is empty"),
        ('{"image": "a.png", "text": ["dog"]}\n', "text must be text, got a list"),
        ('{"image": "a.png", "text": "d\\u0000og"}\n', "text has a NUL character"),
        ('{"image": "a", "text": "b"}\n{"image": "a.png", "text": ' + "[" * 2000, "not valid JSON"),
    ],
)
def test_a_bad_row_is_listed_with_its_line_and_costs_no_other(
    run: Callable[..., Run], tmp_path: Path, content: str, complaint: str
) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "pairs.csv").write_text(content)
    ended = run("--pairs", "pairs.csv", "-f", "json")
    assert ended.code == 3, ended.err
    assert complaint in ended.err
    rows = json.loads(ended.out)
    assert [bool(row["error"]) for row in rows].count(True) >= 1
    assert all((row["score"] is None) == bool(row["error"]) for row in rows)
    assert max(map(len, ended.err.splitlines())) < 12_000


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "pairs.csv is empty"),
        ("image,text\n", "no rows"),
        ("picture,text\na.png,dog\n", "line 1: no column 'image'"),
        ("\x89PNG\r\n", "no column"),
        ("image,text\na.png,d\0og\n", "'pairs.csv' is not UTF-8 text (line 2)"),
        ("image,text\ra.png,dog\ra.png,d\0og\r", "'pairs.csv' is not UTF-8 text (line 3)"),
        ("i\0m\0a\0g\0e\0", "it is UTF-16: save it as UTF-8"),
        ("image,text, text\na.png,dog,cat\n", "line 1: the column 'text' is there twice"),
        ("a.png,dog\n", "line 1: no column 'image'"),
        ('{"image": "a.png"}\n', "no column 'text' among 'image'"),
    ],
)
def test_a_bad_pairs_file_is_a_usage_error_with_the_line(
    run: Callable[..., Run], tmp_path: Path, content: str, complaint: str
) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "pairs.csv").write_text(content)
    ended = run("--pairs", "pairs.csv")
    assert ended.code == 2
    assert complaint in ended.err
    assert ended.out == ""
    assert "engine:" not in ended.err  # nothing was run


def test_bad_arguments_are_usage_errors_and_nothing_runs(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("dog\ncafé\n".encode("latin-1"))
    (tmp_path / "pairs.csv").write_text("image,text\na.png,dog\n")
    (tmp_path / "pointer.txt").write_text(LFS_POINTER)
    tarfile.open(tmp_path / "shard.tar", "w").close()
    for arguments, complaint in (
        ([], "IMAGES"),
        (["a.png"], "TEXTS"),
        (["missing.png", "texts.txt"], "no file or directory 'missing.png'"),
        (["a.png", "missing/b.png", "texts.txt"], "no file or directory 'missing/b.png'"),
        (["nothing", "texts.txt"], "no images in the directory 'nothing'"),
        (["*.webp", "texts.txt"], "no images match '*.webp'"),
        (["a.png", "missing.txt"], "cannot read texts from 'missing.txt'"),
        (["a.png", "nothing"], "Is a directory"),
        (["a.png", "empty.txt"], "no texts"),
        (["a.png", "latin.txt"], "'latin.txt' is not UTF-8 text (line 2)"),
        (["texts.txt", "a.png"], "not UTF-8"),
        (["a.png", "pointer.txt"], "'pointer.txt': it is a Git LFS pointer"),
        (["a.png", "-"], "standard input has no texts"),
        (["a.png", "texts.txt", "--pairs", "pairs.csv"], "--pairs"),
        (["--pairs", "missing.csv"], "missing.csv"),
        (["--pairs", "pointer.txt"], "git lfs pull"),
        (["a.png", "texts.txt", "--levels", "some"], "--levels"),
        (["a.png", "texts.txt", "--top-k", "0"], "--top-k"),
        (["a.png", "texts.txt", "-f", "xml"], "xml"),
        (["a.png", "texts.txt", "-o", "nothing"], "cannot write 'nothing': Is a directory"),
        (["a.png", "texts.txt", "-o", "no/where.csv"], "cannot write 'no/where.csv'"),
    ):
        ended = run(*arguments)
        assert ended.code == 2, arguments
        assert complaint in ended.err, arguments
        assert ended.out == "", arguments
        assert "engine:" not in ended.err, arguments


def test_a_level_the_bundle_lacks_is_a_usage_error(run: Callable[..., Run], tmp_path: Path) -> None:
    pixels = write_images(tmp_path, "a.png")
    write_texts(tmp_path, ["dog"])
    ended = run("a.png", "texts.txt", "--levels", "0.2,0.5")
    assert (ended.code, ended.out) == (2, "")
    assert "no noise level 0.5; it has 0.2, 0.4, 0.8" in ended.err
    (row,) = json.loads(run("a.png", "texts.txt", "--levels", "0.2, 0.8", "-f", "json").out)
    assert row["score"] == pytest.approx(closed_form(pixels["a.png"], "dog", [0, 2]), abs=1e-6)


def test_unreadable_images_are_listed_and_the_rest_is_scored(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    pixels = write_images(tmp_path, "in/a.png", "in/m.png", "in/z.png")
    cut = (tmp_path / "in/m.png").read_bytes()
    (tmp_path / "in/m.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "in/n.png").write_text("not an image")
    (tmp_path / "in/p.png").write_text(LFS_POINTER)
    write_texts(tmp_path, ["dog"])
    ended = run("in", "texts.txt", "-f", "json")
    assert ended.code == 3
    assert {row["image"]: row["score"] for row in json.loads(ended.out)} == {
        name: pytest.approx(closed_form(pixels[name], "dog"), abs=1e-6)
        for name in ("in/a.png", "in/z.png")
    }
    assert re.search(r"in/m\.png: .*truncated", ended.err)
    assert "in/n.png: not an image of a known format" in ended.err
    assert re.search(r"in/p\.png: .*git lfs pull", ended.err)
    assert run("in/n.png", "texts.txt", "-f", "csv").out == "image,text,score,probability\n"
    assert run("in/n.png", "texts.txt", "-f", "json").code == 3


def test_what_cannot_be_searched_is_listed_and_the_rest_is_scored(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    pixels = write_images(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in/more").symlink_to("../elsewhere")
    (tmp_path / "in/again").symlink_to("..")
    (tmp_path / "in/unmounted").symlink_to("nowhere")
    write_texts(tmp_path, ["dog"])
    ended = run("in", "texts.txt", "-f", "json")
    assert ended.code == 3
    assert {row["image"]: row["score"] for row in json.loads(ended.out)} == {
        "in/a.png": pytest.approx(closed_form(pixels["in/a.png"], "dog"), abs=1e-6),
        "in/again/elsewhere/b.png": pytest.approx(
            closed_form(pixels["elsewhere/b.png"], "dog"), abs=1e-6
        ),
    }
    assert "images that could not be scored: 1" in ended.err
    assert "in/unmounted: cannot be followed: No such file or directory" in ended.err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/unmounted").symlink_to("nowhere")
    for form in ("table", "json", "csv"):
        ended = run("empty", "texts.txt", "-f", form)
        assert ended.code == 3
        assert "empty/unmounted: cannot be followed" in ended.err


def test_a_file_name_that_is_not_unicode_stops_nothing(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    write_images(tmp_path, "in/a.png")
    odd = os.fsencode(tmp_path / "in") + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes((tmp_path / "in/a.png").read_bytes())
    write_texts(tmp_path, ["dog"])
    for form in ("table", "json", "csv"):
        ended = run("in", "texts.txt", "-f", form, "-o", f"out.{form}")
        assert ended.code == 0, ended.err
        name = r"caf\\udce9.png" if form == "json" else r"caf\udce9.png"
        assert name in (tmp_path / f"out.{form}").read_text()


def test_top_k_keeps_each_images_best_texts_best_first(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    pixels = write_images(tmp_path, "a.png", "b.png")
    write_texts(tmp_path)
    rows = json.loads(run("a.png", "b.png", "texts.txt", "--top-k", "2", "-f", "json").out)
    expected = [
        (name, text)
        for name, image in pixels.items()
        for text in sorted(TEXTS, key=lambda text: -closed_form(image, text))[:2]
    ]
    assert [(row["image"], row["text"]) for row in rows] == expected


def test_top_k_by_text_keeps_each_texts_best_images_best_first(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    pixels = write_images(tmp_path, "a.png", "b.png", "c.png")
    write_texts(tmp_path)
    (tmp_path / "broken.png").write_text("no image")
    options = ("--top-k", "2", "--by", "text", "-f", "json")
    ended = run("a.png", "broken.png", "b.png", "c.png", "texts.txt", *options)
    assert (ended.code, "broken.png" in ended.err) == (3, True)
    rows = json.loads(ended.out)
    assert [(row["text"], row["image"]) for row in rows] == [
        (text, name)
        for text in TEXTS
        for name in sorted(pixels, key=lambda name: -closed_form(pixels[name], text))[:2]
    ]
    for row in rows:
        f = closed_form(pixels[row["image"]], row["text"])
        assert row["score"] == pytest.approx(f, abs=1e-6)
        assert row["probability"] == pytest.approx(probability(f), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--by", "text"), "give --top-k K with --by text"),
        (("--by", "text", "--top-k", "1", "--prune"), "leave out --by text"),
    ],
)
def test_by_goes_with_top_k_and_without_pruning(
    options: tuple[str, ...], message: str, run: Callable[..., Run], tmp_path: Path
) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    ended = run("a.png", "texts.txt", *options)
    assert ended.code == 2
    assert message in ended.err


def starred(table: str) -> dict[str, str]:
    """Which score is marked in each row of a table."""
    return {
        line.split()[0]: re.findall(r"\* (\S+)", line)[0]
        for line in table.splitlines()
        if line.strip() and re.search(r"\* 0\.", line)
    }


def test_a_small_matrix_is_shown_whole_with_the_best_text_marked(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    pixels = write_images(tmp_path, "in/a.png", "in/b.png")
    write_texts(tmp_path)
    ended = run("in", "texts.txt")
    for text in TEXTS:
        assert text.split()[-1] in ended.out
    best = {name: max(closed_form(image, text) for text in TEXTS) for name, image in pixels.items()}
    assert starred(ended.out) == {
        name.removeprefix("in/"): f"{score:.4f}" for name, score in best.items()
    }
    scores = sorted(f"{closed_form(i, t):.4f}" for i in pixels.values() for t in TEXTS)
    assert sorted(re.findall(r"0\.\d{4}", ended.out)) == scores


def test_a_table_of_one_text_marks_the_best_image(run: Callable[..., Run], tmp_path: Path) -> None:
    pixels = write_images(tmp_path, "a.png", "b.png", "c.png")
    best = max(pixels, key=lambda name: closed_form(pixels[name], "dog"))
    table = run("a.png", "b.png", "c.png", "-", stdin=b"dog").out
    assert list(starred(table)) == [best]


@pytest.mark.parametrize("width", [80, 100])
def test_twelve_by_twelve_stays_readable_on_a_terminal(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    pixels = write_images(tmp_path, *(f"in/scene-{i:02}.png" for i in range(12)))
    texts = [
        f"a {color} circle to the left of a {other} square"
        for color in ("red", "green", "blue")
        for other in ("dog", "red", "green", "blue")
    ]
    write_texts(tmp_path, texts)
    lines = run("in", "texts.txt").out.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 24  # one screen
    for name, image in pixels.items():
        best = max(texts, key=lambda text: closed_form(image, text))
        (row,) = [line for line in lines if name.removeprefix("in/") in line]
        assert best in row
        assert f"{closed_form(image, best):.4f}" in row


def test_output_is_written_whole_or_not_at_all(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path, ["dog"])
    assert run("a.png", "texts.txt", "-f", "csv", "-o", "out.csv").out == ""
    before = (tmp_path / "out.csv").read_text()
    assert before.startswith("image,text,score,probability\na.png,dog,0.")
    (tmp_path / "link.csv").symlink_to("out.csv")

    def disk_full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", disk_full)
        ended = run("a.png", "texts.txt", "-f", "json", "-o", "out.csv")
    assert ended.code == 1
    assert "cannot write 'out.csv': No space left on device" in ended.err
    assert "out.csv.journal: free space, and the same command with --resume goes on" in ended.err
    assert (tmp_path / "out.csv").read_text() == before
    ended = run("a.png", "texts.txt", "-f", "json", "-o", "out.csv", "--resume")
    assert "going on after 1 of 1 pair" in ended.err
    assert run("a.png", "texts.txt", "-f", "jsonl", "-o", "link.csv").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert json.loads((tmp_path / "out.csv").read_text())["text"] == "dog"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png", "link.csv", "out.csv", "texts.txt",
    ]  # fmt: skip


def test_a_full_device_is_a_clear_error(run: Callable[..., Run], tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path, ["dog"])
    ended = run("a.png", "texts.txt", "-o", "/dev/full")
    assert ended.code == 1
    assert "cannot write '/dev/full': No space left on device" in ended.err
    assert not Path("/dev/full").is_file()


def test_a_damaged_bundle_and_an_engine_that_is_absent(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["score", "a.png", "texts.txt", "--bundle", "no-such-folder"])
    assert ended.value.code == 2
    assert "no folder 'no-such-folder'. A bundle is a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["score", "a.png", "texts.txt", "--bundle", "texts.txt"])
    assert ended.value.code == 2
    assert "'texts.txt' is a file, not a folder. A bundle is a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openvino", None)
    for module in ("graph", "runner"):
        monkeypatch.delitem(sys.modules, f"dsd_trt.engine.openvino.{module}", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(
            ["score", "a.png", "texts.txt", "--bundle", str(bundle.folder), "--engine", "openvino"]
        )
    assert ended.value.code == 4
    assert install_command("openvino") in capsys.readouterr().err


def command(*arguments: str) -> list[str]:
    script = "import sys; from dsd_trt.commands.main import main; main(sys.argv[1:])"
    return [sys.executable, "-c", script, *arguments]


def test_help_imports_nothing_heavy() -> None:
    for arguments in (["--help"], ["score", "--help"]):
        script = (
            "import sys\n"
            "from dsd_trt.commands.main import main\n"
            "try: main(sys.argv[1:])\n"
            "finally:\n"
            "    heavy = {'numpy', 'PIL', 'tokenizers', 'rich', 'onnxruntime', 'openvino'}\n"
            "    print('LOADED', sorted({*heavy, 'torch'} & set(sys.modules)))\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert ended.stdout.endswith("LOADED []\n")
        assert "Usage: dsd-trt" in ended.stdout
    for name in ("score", "export", "pretrain"):
        assert name in subprocess.run(command("--help"), capture_output=True, text=True).stdout


@pytest.fixture
def long_job(bundle: Bundle, tmp_path: Path) -> list[str]:
    """A command line that keeps the stand-in busy for many seconds."""
    write_images(tmp_path, *(f"in/{i}.png" for i in range(400)))
    write_texts(tmp_path, [f"{'dog ' * (i % 50)}{i}" for i in range(2_000)])
    job = ["score", str(tmp_path / "in"), str(tmp_path / "texts.txt")]
    out = ["-f", "csv", "-o", str(tmp_path / "out.csv")]
    return command(*job, *out, "--bundle", str(bundle.folder), "--engine", "onnxruntime")


def _heed_ctrl_c() -> None:
    """A shell without job control has what runs in its background ignore it, children included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_says_how_to_go_on_and_leaves_no_half_written_line(
    long_job: list[str], tmp_path: Path, stop: signal.Signals
) -> None:
    process = subprocess.Popen(long_job, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("engine:")
    time.sleep(0.5)
    process.send_signal(stop)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    *kept, interrupted = filter(None, rest.splitlines())
    assert interrupted == "interrupted"
    for line in kept:  # none where it was stopped before a part was scored
        assert re.fullmatch(
            r"\d+ of 800000 pairs are kept in \S+/out\.csv\.journal: .* --resume .*", line
        )
    there = {it.name for it in tmp_path.glob("*out.csv*")}
    assert there <= {"out.csv", "out.csv.journal"}
    assert bool(kept) == ("out.csv.journal" in there)
    if "out.csv" in there:
        assert (tmp_path / "out.csv").read_text().endswith("\n")


def test_progress_shows_rate_and_time_left_only_on_a_terminal(long_job: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        long_job,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
        preexec_fn=_heed_ctrl_c,
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 240
    shown = re.compile(rb"\d+/800000.*pairs.* \d+\.\d pairs/s.*\d:\d\d:\d\d", re.DOTALL)
    while not shown.search(seen) and time.monotonic() < deadline:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    os.close(ours)
    assert shown.search(seen), seen[-500:]


def test_without_a_terminal_a_line_tells_how_far_it_is(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, *(f"in/{i}.png" for i in range(10)))
    write_texts(tmp_path)
    assert "of 30 pairs\n" not in run("in", "texts.txt").err
    monkeypatch.setattr("dsd_trt.commands.console._LINE_EVERY", 0)
    told = re.findall(r"^(\d+) of 30 pairs$", run("in", "texts.txt").err, re.M)
    assert told == sorted(told, key=int)
    assert told[-1] == "30"


def test_pruning_says_what_it_saved_and_whether_it_cost_anything(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    write_texts(tmp_path)
    images = ["a.png", "bad.png", "b.png", "c.png"]
    pruned = run(*images, "texts.txt", "--top-k", "1", "--prune", "--check-prune", "3", "-f", "csv")
    full = run(*images, "texts.txt", "--top-k", "1", "-f", "csv")
    assert pruned.code == 3
    for mine, theirs in zip(
        *(csv.reader(it.out.splitlines()) for it in (pruned, full)), strict=True
    ):
        assert mine[:2] == theirs[:2]
        if mine[0] != "image":  # in other batches, which the engine rounds differently
            assert list(map(float, mine[2:])) == pytest.approx(
                list(map(float, theirs[2:])), abs=1e-6
            )
    assert re.search(r"passes: \d+ instead of 27, ", pruned.err)
    assert "the full computation: 2 of the first 2 that could be read" in pruned.err


def test_pruning_of_nothing_saves_nothing(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    write_texts(tmp_path)
    ended = run("bad.png", "texts.txt", "--top-k", "1", "--prune", "--check-prune", "1")
    assert ended.code == 3
    assert "passes" not in ended.err


def test_a_pipe_costs_its_own_pairs_alone(run: Callable[..., Run], tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path, ["dog"])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pairs.csv").write_text("image,text\na.png,dog\npipe.png,dog\n")
    ended = run("a.png", "pipe.png", "texts.txt", "-f", "jsonl")
    assert (ended.code, len(ended.out.splitlines())) == (3, 1)
    assert "  pipe.png: a pipe, not a regular file\n" in ended.err
    for kind in ("a pipe, not a regular file", "no image file 'pipe.png'", "Is a directory"):
        ended = run("--pairs", "pairs.csv", "-f", "jsonl")
        first, second = map(json.loads, ended.out.splitlines())
        assert (ended.code, first["error"], second["score"]) == (3, None, None)
        assert kind in second["error"]
        if kind.startswith("a pipe"):
            (tmp_path / "pipe.png").unlink()
        else:
            (tmp_path / "pipe.png").mkdir(exist_ok=True)


@pytest.mark.parametrize("arguments", [("", "texts.txt"), ("a.png", "texts.txt", "--bundle=")])
def test_an_empty_argument_is_no_path(
    run: Callable[..., Run], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "an argument is empty" in ended.err


@pytest.mark.parametrize("name", ["x" * 300, "loop", "a.png/scores.csv"])
def test_what_cannot_be_written_is_said_before_scoring(
    run: Callable[..., Run], tmp_path: Path, name: str
) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    ended = run("a.png", "texts.txt", "-o", name)
    assert ended.code == 2
    assert "cannot write" in ended.err
    assert "scored" not in ended.err


def test_what_is_read_is_not_written_over(run: Callable[..., Run], tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    (tmp_path / "pairs.csv").write_text("image,text\na.png,dog\n")
    (tmp_path / "link.csv").symlink_to("texts.txt")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments in (
        ("a.png", "texts.txt", "-o", "texts.txt"),
        ("a.png", "texts.txt", "-o", "link.csv"),
        ("a.png", "texts.txt", "-o", "a.png"),
        ("--pairs", "pairs.csv", "-o", "pairs.csv"),
        ("--pairs", "pairs.csv", "-o", "a.png"),
    ):
        ended = run(*arguments, "-f", "csv")
        assert ended.code == 2, arguments
        assert "is read as an input" in ended.err, arguments
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["out.csv.journal", "out.csv.journal.old"])
def test_a_file_that_is_no_journal_is_left_alone(
    run: Callable[..., Run], tmp_path: Path, name: str
) -> None:
    write_images(tmp_path, "a.png")
    write_texts(tmp_path)
    (tmp_path / name).write_text("my diary")
    ended = run("a.png", "texts.txt", "-f", "csv", "-o", "out.csv")
    assert ended.code == 2
    assert "is no journal of dsd-trt" in ended.err
    assert (tmp_path / name).read_text() == "my diary"
    if hasattr(os, "mkfifo"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        ended = run("a.png", "texts.txt", "-f", "csv", "-o", "out.csv")
        assert (ended.code, "a pipe, not a regular file" in ended.err) == (2, True)


def test_a_disk_that_fails_is_told_without_a_traceback(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "texts").write_text("red\n")
    monkeypatch.setattr(os, "fsync", broken)
    ended = run("a.png", "texts", "-f", "csv", "-o", "out.csv")
    assert ended.code == 1
    assert "Input/output error" in ended.err
    assert "Traceback" not in ended.err
