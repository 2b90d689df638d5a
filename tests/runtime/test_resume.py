"""A run of `dsd-trt score` that is stopped goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form, give_lists, make_bundle
from full_disk import files_of_at_most
from in_process import Run
from numpy.typing import NDArray
from PIL import Image
from torture import Figures, scaled

from dsd_trt import Bundle
from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.commands.formats import FORMATS, Streamed
from dsd_trt.job_scorer import JobScorer
from dsd_trt.journal import survey

pytest_plugins = ("in_process",)

TEXTS = [f"{color} {'dog ' * (i % 7)}{i}" for i, color in enumerate(("red", "green") * 25)]
OTHERS = [name for name in FORMATS if name != "jsonl"]
STREAMED = [name for name, it in FORMATS.items() if isinstance(it, Streamed)]


def write_inputs(folder: Path, images: int = 40) -> None:
    """More images than a batch has, one of them broken, and more texts than a part has pairs."""
    generator = np.random.default_rng(5)
    for place in range(images):
        noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3)).astype(np.uint8)
        (folder / "in").mkdir(exist_ok=True)
        Image.fromarray(noise).save(folder / f"in/{place:02}.png")
    (folder / "in/07.png").write_text("no image")
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    rows = [(f"in/{i % images:02}.png", TEXTS[i % 50]) for i in range(0, 4 * images, 3)]
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "text"), *rows])


@pytest.fixture
def run(
    dsd_trt: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Run `dsd-trt score`, whose fastest batch is known."""
    write_inputs(tmp_path)
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "cache"))

    def score(*arguments: str) -> Run:
        return dsd_trt("score", *arguments)

    score("in", "texts.txt", "-o", "warm.csv", "-f", "csv")
    return score


class Stops:
    """Stops the run at its n-th write to a journal or a growing file, half way through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.count, self._real = -1, 0, os.pwrite
        monkeypatch.setattr(os, "pwrite", self._write)

    def _write(self, file: int, content: bytes, offset: int) -> int:
        self.count += 1
        if self.left == 0:
            self.left = -1
            self._real(file, content[: len(content) // 2], offset)
            raise KeyboardInterrupt
        self.left -= 1
        return self._real(file, content, offset)


WAYS = {
    "matrix of images and texts": ("in", "texts.txt"),
    "few texts": ("in", "few.txt"),
    "the best": ("in", "texts.txt", "--top-k", "2"),
    "pruned": ("in", "texts.txt", "--top-k", "2", "--prune"),
    "pairs": ("--pairs", "pairs.csv"),
    "the best of pairs": ("--pairs", "pairs.csv", "--top-k", "1"),
    "one level": ("in", "texts.txt", "--levels", "0.4"),
}


@pytest.mark.parametrize(
    ("way", "form"), [*((way, "jsonl") for way in WAYS), *(("few texts", form) for form in OTHERS)]
)
def test_stopped_anywhere_it_ends_with_the_same_bytes(
    run: Callable[..., Run], tmp_path: Path, way: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few.txt").write_text("dog\n")
    arguments = (*WAYS[way], "-f", form)
    whole = run(*arguments, "-o", "whole")
    assert whole.code == 3
    expected = (tmp_path / "whole").read_bytes()
    stops = Stops(monkeypatch)
    stopped = 0
    for left in itertools.chain(range(3), (9 * 3**n for n in itertools.count())):
        stops.left = left
        ended = run(*arguments, "-o", "out", "--resume")
        if ended.code == 3:
            break
        assert ended.code == 130
        stopped += 1
        if form in STREAMED and (tmp_path / "out").exists():
            there = (tmp_path / "out").read_bytes()
            assert expected.startswith(there)
            assert there[-1:] in (b"", b"\n")
        else:
            assert not (tmp_path / "out").exists()
    assert stopped >= 3, stopped
    assert undated((tmp_path / "out").read_bytes()) == undated(expected)
    assert pairs_told(ended.err) == pairs_told(whole.err)
    again = re.sub(r".*(engine|scored|going on|to resume).*\n", "", ended.err)
    assert again == re.sub(r".*(engine|scored).*\n", "", whole.err)  # failures and all
    assert {it.name for it in tmp_path.iterdir()} - {"cache"} == {
        "in", "texts.txt", "few.txt", "pairs.csv", "warm.csv", "whole", "out",
    }  # fmt: skip


def undated(content: bytes) -> bytes:
    """An output without the time at which a page was written."""
    return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", b"", content)


def pairs_told(errors: str) -> int:
    """Pairs of which the command says that it has scored them, now or before."""
    (told,) = re.findall(r"^scored .*", errors, re.M)
    counts = re.findall(r"(-?\d+) (?:pairs\b(?!/)|were scored before)", told)
    assert all(int(count) >= 0 for count in counts), told
    return sum(map(int, counts))


def test_matrix_mode_goes_on_too(
    tmp_path: Path, dsd_trt: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    bundle = make_bundle(tmp_path / "matrix", matrix=True)
    own = ("--bundle", str(bundle.folder))
    arguments = ("score", "in", "texts.txt", "--mode", "matrix", "-f", "csv", *own)
    assert dsd_trt(*arguments, "-o", "whole").code == 3
    Stops(monkeypatch).left = 700
    ended = dsd_trt(*arguments, "-o", "out")
    assert ended.code == 130
    assert "kept in out.journal: the same command with --resume" in ended.err
    ended = dsd_trt(*arguments, "-o", "out", "--resume")
    assert "going on after" in ended.err
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("fails", [False, True])
def test_lists_go_on_with_their_audits(
    tmp_path: Path, dsd_trt: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Estimates of dark images, from the 16th on, are misleading: audits then end the lists."""
    write_inputs(tmp_path)
    for path in sorted((tmp_path / "in").iterdir())[16:]:
        with Image.open(path) as image:
            dark = image.point(lambda value: value // 3)
        dark.save(path)
    third, sixth = (sorted((tmp_path / "in").iterdir())[it] for it in (3, 6))
    shutil.copyfile(third, sixth)  # its search is made in other company
    lists = Lists(0, len(TEXTS), 0.0, {"2": Measured(1000, (1.0,))}, {}, RULE)
    bundle = give_lists(make_bundle(tmp_path / "listed", matrix=True), lists)
    own = ("--bundle", str(bundle.folder), "--memory-budget", "1")  # chunks of few images
    arguments = ("score", "in", "texts.txt", "--top-k", "2", "--prune", "--error", "0.1", *own)
    real, asked = JobScorer.estimates, []

    def estimates(jobs: JobScorer, latent: NDArray[Any], *rest: Any) -> NDArray[Any]:
        dark = latent.mean(axis=(1, 2, 3)) < 0.3
        asked.extend(dark.tolist())
        return real(jobs, latent, *rest) * np.where(dark & fails, -1, 1)[:, None]

    monkeypatch.setattr(JobScorer, "estimates", estimates)
    whole = dsd_trt(*arguments, "-f", "jsonl", "-o", "whole")
    assert whole.code == 3
    passes, warned = told_of_lists(whole.err)
    assert warned == fails
    assert (len(asked) < 39, any(asked)) == (fails, True)  # lists end in the middle of the run
    stops = Stops(monkeypatch)
    stopped = 0
    for left in itertools.chain(range(12), itertools.count(30, 25)):
        stops.left = left
        ended = dsd_trt(*arguments, "-f", "jsonl", "-o", "out", "--resume")
        if ended.code == 3:
            break
        stopped += 1
    assert stopped >= 8
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert told_of_lists(ended.err) == (passes, warned)


def told_of_lists(errors: str) -> tuple[str, int]:
    """Passes that the command reports, and its warnings that lists fail."""
    (passes,) = re.findall(r"^passes: (\d+) instead", errors, re.M)
    return passes, errors.count("audited lists would have lost")


def test_what_is_known_is_not_scored_again(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = Stops(monkeypatch)
    stops.left = 1700  # lines of 2000
    stopped = run("in", "texts.txt", "-f", "jsonl", "-o", "out")
    kept = int(re.findall(r"(\d+) of 2000 pairs are kept in out.journal", stopped.err)[0])
    assert kept == survey(tmp_path / "out.journal").pairs
    ended = run("in", "texts.txt", "-f", "jsonl", "-o", "out", "--resume")
    (scored,) = re.findall(r"^scored (\d+) pairs", ended.err, re.M)
    assert int(scored) == 39 * len(TEXTS) - kept
    assert kept > 1500
    assert f"going on after {kept} of 2000 pairs" in ended.err


def test_an_image_that_can_no_longer_be_read_moves_no_other_images_scores(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = Stops(monkeypatch)
    stops.left = 3  # lines of the journal, the last of them of a part of the first images
    assert run("in", "texts.txt", "-f", "json", "-o", "out").code == 130
    image = tmp_path / "in/00.png"
    status = image.stat()  # what tells whether it is the same
    image.write_bytes(b"x" * status.st_size)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run("in", "texts.txt", "-f", "json", "-o", "whole").code == 3
    ended = run("in", "texts.txt", "-f", "json", "-o", "out", "--resume")
    assert (ended.code, "going on after" in ended.err) == (3, True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_other_limits_are_another_run(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stops(monkeypatch).left = 500
    assert run("in", "texts.txt", "-f", "csv", "-o", "out").code == 130
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "10")
    ended = run("in", "texts.txt", "-f", "csv", "-o", "out", "--resume")
    assert ended.code == 2
    assert "limits (DSD_TRT_MAX_IMAGE_PIXELS then 178956970, now 10)" in ended.err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "texts.txt").write_text("dog\n"), "texts (then 50, now 1)"),
        (
            lambda folder: (folder / "texts.txt").write_text("dog\n" * 50),
            "texts (50 then and now, but others)",
        ),
        (
            lambda folder: (folder / "in/03.png").write_bytes(b"other"),
            "images (40 then and now, but a name, or a file's size or time of change, is another)",
        ),
        (lambda folder: (folder / "in/99.png").write_bytes(b"more"), "images (then 40, now 41)"),
        (lambda folder: ["--levels", "0.2"], "levels (then all, now 0.2)"),
        (lambda folder: ["--top-k", "3"], "top-k (then all, now 3)"),
        (
            lambda folder: ["--top-k", "3", "--prune"],
            "top-k (then all, now 3), prune (then no, now yes)",
        ),
        (
            lambda folder: ["--top-k", "3", "--by", "text"],
            "top-k (then all, now 3), by (then image, now text)",
        ),
        (lambda folder: ["-f", "json"], "format (then csv, now json)"),
    ],
)
def test_another_run_is_refused_by_what_differs(
    run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], list[str] | None],
    named: str,
) -> None:
    Stops(monkeypatch).left = 500
    assert run("in", "texts.txt", "-f", "csv", "-o", "out").code == 130
    before = (tmp_path / "out").read_bytes(), (tmp_path / "out.journal").read_bytes()
    others = change(tmp_path)
    more = others if isinstance(others, list) else []
    ended = run("in", "texts.txt", "-f", "csv", "-o", "out", "--resume", *more)
    assert ended.code == 2
    assert f"out.journal is of another run, which differs in: {named}. Give" in ended.err
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "out.journal").read_bytes()) == before


def test_another_bundle_is_refused(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stops(monkeypatch).left = 500
    assert run("in", "texts.txt", "-f", "csv", "-o", "out").code == 130
    other = make_bundle(tmp_path / "other", token_mask="all")
    again = ("in", "texts.txt", "-f", "csv", "-o", "out", "--resume")
    ended = run(*again, "--bundle", str(other.folder))
    assert ended.code == 2
    assert re.search(r"differs in: bundle \(then [0-9a-f]{12}, now [0-9a-f]{12}\)", ended.err)


def test_pairs_and_images_are_other_inputs(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stops(monkeypatch).left = 500
    assert run("in", "texts.txt", "-f", "csv", "-o", "out").code == 130
    ended = run("--pairs", "pairs.csv", "-f", "csv", "-o", "out", "--resume")
    assert ended.code == 2
    told = "images (then 40, now none), texts (then 50, now none), pairs (then none, now 54)"
    assert f"differs in: {told}. Give" in ended.err


def test_a_run_with_nothing_to_resume_says_so(run: Callable[..., Run], tmp_path: Path) -> None:
    ended = run("in", "texts.txt", "-f", "csv", "-o", "out", "--resume")
    assert "there is no out.journal to resume: scoring from the beginning" in ended.err
    assert (tmp_path / "out").read_bytes() == (tmp_path / "warm.csv").read_bytes()


def test_without_resume_it_starts_anew_and_sets_aside_what_was_there(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("in", "texts.txt", "-f", "csv", "-o", "out")
    stops = Stops(monkeypatch)
    stops.left = 1500
    assert run(*arguments).code == 130
    kept = (tmp_path / "out.journal").read_bytes()
    pairs = survey(tmp_path / "out.journal").pairs
    for left, options in ((900, []), (2, []), (2, ["--resume"]), (3, [])):
        stops.left = left
        ended = run(*arguments, *options)
        assert ended.code == 130
        assert f"{pairs} pairs of a run that was stopped are set aside" in ended.err
        assert "mv out.journal.old out.journal, and give --resume" in ended.err
        assert (tmp_path / "out.journal.old").read_bytes() == kept  # not what has less
    (tmp_path / "out.journal.old").replace(tmp_path / "out.journal")
    assert "going on" in run(*arguments, "--resume").err
    assert (tmp_path / "out").read_bytes() == (tmp_path / "warm.csv").read_bytes()
    assert not list(tmp_path.glob("out.*"))


def test_a_full_disk_keeps_what_is_done_and_says_how_to_go_on_elsewhere(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    with files_of_at_most(60_000):
        ended = run("in", "texts.txt", "-f", "csv", "-o", "out")
    assert ended.code == 1
    assert "cannot write 'out': File too large" in ended.err
    there = (tmp_path / "out").read_bytes()
    assert there.endswith(b"\n")
    assert (tmp_path / "warm.csv").read_bytes().startswith(there)
    cause, go_on, elsewhere, stays = ended.err.splitlines()[-4:]
    assert cause.startswith("Error: cannot write 'out': File too large")
    kept = survey(tmp_path / "out.journal").pairs
    assert go_on == (
        f"{kept} of 2000 pairs are kept in out.journal: free space, and the same command with "
        "--resume goes on from there"
    )
    assert elsewhere.startswith("Or go on elsewhere: mv")
    assert stays.startswith("What is written of out stays")
    move = re.findall(r"Or go on elsewhere: mv (\S+) (\S+), .* -o (\S+) --resume", ended.err)
    assert move == [("out.journal", "OTHER/out.journal", "OTHER/out")]
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "out.journal").rename(tmp_path / "OTHER/out.journal")
    ended = run("in", "texts.txt", "-f", "csv", "-o", "OTHER/out", "--resume")
    assert "going on after" in ended.err
    assert (tmp_path / "OTHER/out").read_bytes() == (tmp_path / "warm.csv").read_bytes()


@pytest.mark.parametrize("damage", [b"\0" * 500, b"{}\n", b"00000000 {}\n", b"\xff\n"])
def test_a_damaged_journal_is_used_up_to_the_damage(
    run: Callable[..., Run], tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("in", "texts.txt", "-f", "csv", "-o", "out")
    Stops(monkeypatch).left = 1800
    assert run(*arguments).code == 130
    lines = (tmp_path / "out.journal").read_bytes().splitlines(keepends=True)
    for place in (0, 1, len(lines) // 2, len(lines)):
        (tmp_path / "out.journal").write_bytes(b"".join([*lines[:place], damage, *lines[place:]]))
        ended = run(*arguments, "--resume")
        if place == 0:  # it does not say what it is
            assert ended.code == 2
            assert "is no journal" in ended.err
            continue
        assert ended.code == 3, ended.err
        assert ("going on after" in ended.err) == (place > 1)
        assert (tmp_path / "out").read_bytes() == (tmp_path / "warm.csv").read_bytes()
        cut_short = place == len(lines) and not damage.endswith(b"\n")
        assert ("out.journal is damaged after" in ended.err) != cut_short
        (tmp_path / "out.journal.old").unlink(missing_ok=True)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("line", "kept"), [(0, False), (1, False), (-1, True)], ids=["header", "first", "last"]
)
def test_a_flipped_byte_is_told_and_the_damaged_journal_is_set_aside(
    run: Callable[..., Run],
    tmp_path: Path,
    line: int,
    kept: bool,
    resume: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("in", "texts.txt", "-f", "csv", "-o", "out")
    Stops(monkeypatch).left = 1800
    assert run(*arguments).code == 130
    path, old = tmp_path / "out.journal", tmp_path / "out.journal.old"
    content = path.read_bytes()
    content = content[: content.rfind(b"\n") + 1]  # without what was cut short
    lines = content.splitlines(keepends=True)
    place = len(content) - len(lines[-1]) if line == -1 else sum(map(len, lines[:line]))
    damaged = bytearray(content)
    damaged[place + 60] ^= 1
    path.write_bytes(damaged)
    pairs = survey(path).pairs
    assert bool(pairs) == kept
    old.write_bytes(content)  # of a run before, which is not to be lost
    ended = run(*arguments, *(["--resume"] if resume else []))
    assert ended.code == 3, ended.err
    again = "what follows is scored again" if resume else "this run starts anew"
    told = f"out.journal is damaged after {pairs} of 2000 pairs: {again}. The damaged file is set "
    assert f"{told}aside as out.journal.old.2\n" in ended.err
    assert ended.err.index(told) < ended.err.index("scored ")
    assert ("going on after" in ended.err) == (resume and kept)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "warm.csv").read_bytes()
    assert not path.exists()
    assert not old.exists()
    assert (tmp_path / "out.journal.old.2").read_bytes() == damaged
    # The first name is taken where it is free, and what lies there stays.
    path.write_bytes(damaged)
    assert run(*arguments, *(["--resume"] if resume else [])).code == 3
    assert old.read_bytes() == damaged
    assert run(*arguments).code == 3
    assert old.read_bytes() == damaged


@pytest.mark.parametrize("change", ["one more image", "one score less"])
def test_a_journal_of_more_or_less_work_than_the_run_has_is_refused(
    run: Callable[..., Run], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksums fit."""
    arguments = ("in", "texts.txt", "-f", "csv", "-o", "out")
    Stops(monkeypatch).left = 1800
    assert run(*arguments).code == 130
    path, lines = tmp_path / "out.journal", []
    for line in path.read_bytes().splitlines():
        content = json.loads(line.partition(b" ")[2])
        if chunk := content.get("chunk"):
            scored = next(it for it in chunk if "scores" in it)
            if change == "one more image":
                chunk += [scored] * 40
            else:
                scored["scores"] = base64.b64encode(base64.b64decode(scored["scores"])[4:]).decode()
        text = json.dumps(content, separators=(",", ":")).encode()
        lines.append(b"%08x %s\n" % (zlib.crc32(text), text))
    path.write_bytes(b"".join(lines))
    ended = run(*arguments, "--resume")
    assert ended.code == 2
    assert "does not belong to this run" in ended.err
    assert "goes on from there" not in ended.err


def test_a_run_to_a_pipe_goes_on_from_the_cache(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("in", "texts.txt", "-f", "jsonl")
    Stops(monkeypatch).left = 30  # parts alone are written to a file
    stopped = run("in", "texts.txt", "-f", "jsonl")
    assert stopped.code == 130
    assert stopped.out
    assert whole.out.startswith(stopped.out)
    (journal,) = (tmp_path / "cache/scores").iterdir()
    assert str(journal) in stopped.err
    ended = run("in", "texts.txt", "-f", "jsonl", "--resume")
    assert "going on after" in ended.err
    assert ended.out == whole.out
    assert not list((tmp_path / "cache/scores").iterdir())
    monkeypatch.setenv("DSD_TRT_CACHE", "")
    assert run("in", "texts.txt", "-f", "jsonl").out == whole.out
    ended = run("in", "texts.txt", "-f", "jsonl", "--resume")
    assert (ended.code, "-o FILE" in ended.err) == (2, True)


@pytest.mark.parametrize("cache", ["", "file"])
def test_a_run_without_a_journal_says_at_its_start_that_it_cannot_go_on(
    run: Callable[..., Run], tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DSD_TRT_CACHE", cache and str(tmp_path / cache))
    told = "a run that is stopped cannot go on"
    ended = run("in", "texts.txt", "-f", "jsonl")
    assert ended.err.count(told) == 1
    assert "-o FILE, or a folder in DSD_TRT_CACHE" in ended.err
    assert ended.err.index(told) < ended.err.index("scored ")
    assert told not in run("in", "texts.txt", "-f", "jsonl", "-o", "out").err

    def stop(content: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsd_trt.commands.output.write_standard_output", stop)
    stopped = run("in", "texts.txt", "-f", "jsonl")
    assert stopped.code == 130
    assert "kept" not in stopped.err.partition(told)[2]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_disk_that_is_full_from_the_start_has_no_empty_journal(
    run: Callable[..., Run], tmp_path: Path, form: str
) -> None:
    before = {it.name for it in tmp_path.iterdir()}
    with files_of_at_most(50):
        ended = run("in", "texts.txt", "-f", form, "-o", "out")
    assert ended.code == 1
    assert "cannot write 'out.journal': File too large" in ended.err
    assert {it.name for it in tmp_path.iterdir()} == before


def test_a_full_cache_says_where_else_a_run_to_a_pipe_may_be_kept(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    with files_of_at_most(50):  # less than the first line of a journal
        ended = run("in", "texts.txt", "-f", "jsonl")
    assert ended.code == 1
    assert "-o FILE, or another folder in DSD_TRT_CACHE" in ended.err


def test_two_runs_to_one_file_do_not_mix(run: Callable[..., Run], tmp_path: Path) -> None:
    from dsd_trt.files.lock import sole_writer

    with sole_writer(tmp_path / "out"):
        ended = run("in", "texts.txt", "-f", "csv", "-o", "out")
    assert ended.code == 2
    assert re.search(rf"out is being written by process {os.getpid()} on ", ended.err)
    assert not (tmp_path / "out").exists()


@contextmanager
def started(bundle: Bundle, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, once it scores."""
    code = "import sys; from dsd_trt.commands.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "score", "in", "texts.txt", *arguments]
    command += ["--bundle", str(bundle.folder), "--engine", "onnxruntime"]
    process = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and not line.startswith("engine:"):
            pass
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("kills", [3, pytest.param(scaled(60, 3), marks=pytest.mark.torture)])
@pytest.mark.parametrize("form", STREAMED)
def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    bundle: Bundle,
    tmp_path: Path,
    form: str,
    kills: int,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    figures.look_for(
        f"kills of `score -f {form} --resume`", "lost", "doubled", "half-written", "left behind"
    )
    write_inputs(tmp_path, 64)
    (tmp_path / "texts.txt").write_text("".join(f"dog {i}\n" for i in range(150)))
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "cache"))
    for name in ("warm", "whole"):
        with started(bundle, tmp_path, "-f", form, "-o", name) as process:
            assert process.wait() == 3
    expected = (tmp_path / "whole").read_bytes()
    for kill in range(kills):
        with started(bundle, tmp_path, "-f", form, "-o", "out", "--resume") as process:
            time.sleep(0.02 + 0.01 * (kill * 17 % 40))
            process.send_signal(signal.SIGKILL)
        if (tmp_path / "out").exists():
            there = (tmp_path / "out").read_bytes()
            if there and not there.endswith(b"\n"):
                figures.fault("half-written", f"kill {kill}: {there[-99:]!r}")
            elif not expected.startswith(there):
                figures.fault("lost", f"kill {kill}: {len(there)} bytes are others")
        figures.ended()
    with started(bundle, tmp_path, "-f", form, "-o", "out", "--resume") as process:
        assert process.wait() == 3
    ended = (tmp_path / "out").read_bytes()
    if ended != expected:
        lines, wanted = ended.splitlines(), expected.splitlines()
        figures.fault("doubled" if len(lines) > len(wanted) else "lost", f"{len(lines)} lines")
    if left := {it.name for it in tmp_path.iterdir()} & {"out.journal", "out.journal.old"}:
        figures.fault("left behind", sorted(left))


def test_rows_are_there_while_others_are_scored(bundle: Bundle, tmp_path: Path) -> None:
    write_inputs(tmp_path, 400)
    (tmp_path / "texts.txt").write_text("".join(f"dog {i}\n" for i in range(2000)))
    with started(bundle, tmp_path, "-f", "jsonl", "-o", "out.jsonl") as process:
        deadline = time.monotonic() + 120
        out = tmp_path / "out.jsonl"
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
        first = json.loads(out.read_text().splitlines()[0])
    pixels = np.asarray(Image.open(tmp_path / "in/00.png"))
    assert first["score"] == pytest.approx(closed_form(pixels, "dog 0"), abs=1e-6)
