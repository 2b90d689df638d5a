"""What a scorer works through: decoded ahead, in order, within bounds of time and memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRACTIONS, RESOLUTION, make_bundle
from PIL import Image

from dsd_trt import Bundle, Scorer
from dsd_trt.image import decoding
from dsd_trt.image.decoding import images_ahead
from dsd_trt.jobs import Given, Job, decoded_ahead

ONE = np.zeros(1, np.intp)


def pictures(count: int) -> Iterator[Any]:
    """Flat ones, each with its number for a colour."""
    for i in range(count):
        yield np.full((RESOLUTION, RESOLUTION, 3), i % 256, np.uint8)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, threading.Thread]]:
    """Pictures that were decoded, and in which thread."""
    seen: list[tuple[int, threading.Thread]] = []

    def decode(picture: Any, *_: object) -> Any:
        seen.append((int(picture[0, 0, 0]), threading.current_thread()))
        return picture

    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    return seen


def given(images: Iterator[Any]) -> Iterator[Given]:
    for number, image in enumerate(images):
        yield Given(image, Job(str(number), ONE), image.nbytes)


def test_later_images_are_decoded_while_a_chunk_is_worked_on(
    bundle: Bundle, decoded: list[tuple[int, threading.Thread]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decoding_threads", lambda: 2)
    taken: list[threading.Thread] = []

    def images() -> Iterator[Any]:
        for picture in pictures(25):
            taken.append(threading.current_thread())
            yield picture

    found = []
    for place, chunk in enumerate(decoded_ahead(given(images()), bundle.manifest, 4)):
        ahead = min(4 * (place + 1) + images_ahead(4), 25)  # the next chunk, and 4 for 2 threads
        assert len(taken) == ahead
        for _ in range(1000):  # nothing here asks for it, and yet it is done
            if len(decoded) == ahead:
                break
            threading.Event().wait(0.01)
        assert len(decoded) == ahead
        found += [int(pixels[0, 0, 0]) for _, pixels in chunk]  # type: ignore[index]
        assert [job.name for job, _ in chunk] == [str(it) for it in found[-len(chunk) :]]
    assert found == sorted(number for number, _ in decoded) == list(range(25))
    assert set(taken) == {threading.current_thread()}
    assert threading.current_thread() not in {thread for _, thread in decoded}


def test_no_thread_idles_when_an_engine_takes_single_images(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decoding_threads", lambda: 4)
    together = threading.Barrier(4, timeout=60)

    def decode(picture: Any, *_: object) -> Any:
        together.wait()  # raises unless four threads decode at once
        return picture

    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    chunks = list(decoded_ahead(given(pictures(8)), bundle.manifest, 1))
    assert [[int(it[0, 0, 0]) for _, it in chunk] for chunk in chunks] == [[i] for i in range(8)]  # type: ignore[index]


def test_images_in_memory_are_bounded_in_bytes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a generator: nothing else keeps them, before they are decoded or after."""
    size = 100_000
    monkeypatch.setattr(decoding, "MOST_BYTES", 5 * size)
    monkeypatch.setattr("dsd_trt.jobs.preprocess", lambda *_: np.zeros((1, 1, 3), np.uint8))
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def images() -> Iterator[Any]:
        nonlocal alive, most
        for _ in range(60):
            picture = np.zeros(size, np.uint8)
            weakref.finalize(picture, gone)
            alive += 1
            most = max(most, alive)
            yield picture
            del picture

    chunks = list(decoded_ahead(given(images()), bundle.manifest, 20))
    assert [len(chunk) for chunk in chunks] == [20, 20, 20]
    # 5 wait, and each of the generators in between may hold the one that it gave last.
    assert 5 <= most <= 8


def test_images_that_the_caller_holds_are_not_bounded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decoding_threads", lambda: 4)
    monkeypatch.setattr(decoding, "MOST_BYTES", 3 * RESOLUTION**2 * 5)
    together = threading.Barrier(4, timeout=60)

    def decode(picture: Any, *_: object) -> Any:
        together.wait()
        return picture

    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    assert np.isfinite(scorer.score(list(pictures(8)), ["a dog"]).scores).all()


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_scores_are_the_same_to_the_bit_however_many_threads_decode(
    mode: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    files: list[Any] = []
    for number in range(23):
        files.append(tmp_path / f"{number}.{('png', 'jpg')[number % 2]}")
        Image.effect_noise((9 + number, 20), 90).convert("RGB").save(files[-1])
    files[7] = tmp_path / "gone.png"
    files[11].write_bytes(b"no image")
    files[13] = files[13].read_bytes()
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(decoding, "decoding_threads", lambda threads=threads: threads)
        scorer = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.2, mode=mode)
        matrix = scorer.score(iter(files), ["a dog", "a red circle"])
        pairs = scorer.score_pairs([(it, f"a dog {i % 5}") for i, it in enumerate(files)])
        found.append([(it.images, it.scores.tobytes(), it.errors) for it in (matrix, pairs)])
    assert found[0] == found[1]
    assert np.flatnonzero(np.isnan(matrix.scores[:, 0])).tolist() == [7, 11]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_goes_on_after_an_end_half_way(
    bundle: Bundle, decoded: list[tuple[int, threading.Thread]], error: type[BaseException]
) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.2)
    size = scorer._pipeline.batch.images

    def interrupted(done: int, total: int | None) -> None:
        raise error

    with pytest.raises(error):
        scorer.score(pictures(200 + 20 * size), ["a dog"], progress=interrupted)
    assert size <= len(decoded) <= size + images_ahead(size)
    assert not any(thread.is_alive() for _, thread in decoded)


def test_an_error_in_the_source_is_the_callers(bundle: Bundle) -> None:
    def broken() -> Iterator[Any]:
        yield from pictures(3)
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        Scorer.load(bundle.folder, "onnxruntime").score(broken(), ["a dog"])


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from dsd_trt import Scorer

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(it.split()[1]) for it in lines if it.startswith("VmHWM")) * 1024

images, texts = map(int, sys.argv[3:])
scorer = Scorer.load(*sys.argv[1:3])
words = [f"a {'red ' * (i % 60)}dog {i}" for i in range(texts)]
scorer.score([np.zeros((8, 8, 3), np.uint8)] * 40, words[:40], [0.2])
Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
found = scorer.score((np.full((8, 8, 3), i % 256, np.uint8) for i in range(images)), words, [0.2])
print(most(), found.scores.nbytes + found.probabilities.nbytes)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it"
)
@pytest.mark.slow
def test_memory_grows_by_the_results_alone(bundle: Bundle) -> None:
    assert 0.2 in FRACTIONS
    beyond = {}
    for images, texts in ((50, 50), (50, 500), (100, 500), (2000, 500)):
        arguments = [sys.executable, "-c", MEMORY, bundle.folder, "onnxruntime", images, texts]
        run = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        most, results = map(int, run.stdout.split())
        assert results == 2 * 4 * images * texts
        beyond[images, texts] = most - results
    # A text is its states, 77 D numbers, and its part in the batch of images that is scored.
    assert beyond[50, 500] - beyond[50, 50] < 450 * 12_000
    # Beyond a whole batch an image is its name. A second copy of the scores would be 4 MB.
    assert beyond[2000, 500] - beyond[100, 500] < 2.5e6
