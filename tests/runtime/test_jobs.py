"""What a scorer works through: decoded ahead, in order, within bounds of time and memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRACTIONS, RESOLUTION

from dsd_trt import Bundle, Scorer
from dsd_trt.jobs import Job, decoded_ahead

ONE = np.zeros(1, np.intp)


def pictures(count: int) -> Iterator[Any]:
    """Flat ones, each with its number for a colour."""
    for i in range(count):
        yield np.full((RESOLUTION, RESOLUTION, 3), i, np.uint8)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, threading.Thread]]:
    """Pictures that were decoded, and in which thread."""
    seen: list[tuple[int, threading.Thread]] = []

    def decode(picture: Any, *_: object) -> Any:
        seen.append((int(picture[0, 0, 0]), threading.current_thread()))
        return picture

    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    return seen


def test_a_chunk_is_decoded_while_the_one_before_is_worked_on(
    bundle: Bundle, decoding: list[tuple[int, threading.Thread]]
) -> None:
    taken: list[threading.Thread] = []

    def jobs() -> Iterator[Job]:
        for picture in pictures(11):
            taken.append(threading.current_thread())
            yield Job(picture, ONE)

    found = []
    for place, chunk in enumerate(decoded_ahead(jobs(), bundle.manifest, 4)):
        ahead = min(4 * (place + 2), 11)
        assert len(taken) == ahead  # one chunk more, and no further
        for _ in range(1000):  # nothing here asks for it, and yet it is done
            if len(decoding) == ahead:
                break
            threading.Event().wait(0.01)
        assert len(decoding) == ahead
        found += [int(pixels[0, 0, 0]) for _, pixels in chunk]  # type: ignore[index]
        assert all(pixels is job.image for job, pixels in chunk)
    assert found == sorted(number for number, _ in decoding) == list(range(11))
    assert set(taken) == {threading.current_thread()}
    assert threading.current_thread() not in {thread for _, thread in decoding}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_goes_on_after_an_end_half_way(
    bundle: Bundle,
    decoding: list[tuple[int, threading.Thread]],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.2)
    size = scorer._pipeline.batch.images

    def interrupted(done: int, total: int | None) -> None:
        raise error

    with pytest.raises(error):
        scorer.score(pictures(20 * size), ["a dog"], progress=interrupted)
    assert size <= len(decoding) <= 2 * size
    assert not any(thread.is_alive() for _, thread in decoding)


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
