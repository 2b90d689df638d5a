"""Many clients at once: no answer lost, wrong or another's, memory bounded, models replaced."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CALIBRATION, RESOLUTION, WORDS, closed_form
from client import PROTOCOLS, Client
from inputs import LIMITS, UNSCORED, encode
from numpy.typing import NDArray
from server import Server, eventually, settled
from torture import Figures, scaled
from tritonclient.utils import InferenceServerException

from dsd_trt import Bundle
from dsd_trt.bundle.folder import write_bundle
from dsd_trt.bundle.manifest import Calibration
from dsd_trt.engines.triton.repository import write_repository

CLIENTS, FEW, MANY, MOST = 32, 320, 2000, scaled(3000, 320)
REPLACED = ("dsd_image_encoder", "dsd_text_encoder", "dsd_pair_scorer", "dsd_score")
MIB = 2**20

RANDOM = np.random.default_rng(11)
PIXELS = RANDOM.integers(0, 256, (40, RESOLUTION, RESOLUTION, 3), np.uint8)
TEXTS = [" ".join(RANDOM.choice(WORDS[4:], 1 + i % 5)) + " x" * (i // 5) for i in range(60)]
GOOD_IMAGES = {encode(pixels): i for i, pixels in enumerate(PIXELS)}
GOOD_TEXTS = {text.encode(): j for j, text in enumerate(TEXTS)}
BAD_IMAGES = [b"", b"no image", next(iter(GOOD_IMAGES))[:50]]
BAD_TEXTS = [b"\xff\xfe", b"dog " * 200]


@dataclass(frozen=True)
class Request:
    """One call, and what is to be answered: scores, or None where it is to be refused."""

    images: list[bytes]
    texts: list[bytes]
    scores: NDArray[np.float64] | None


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float64]:
    return np.array([[closed_form(pixels, text) for text in TEXTS] for pixels in PIXELS])


@pytest.fixture(scope="module")
def requests(expected: NDArray[np.float64]) -> list[Request]:
    """Every fourth has something bad in it, every twentieth is refused as a whole."""
    random = np.random.default_rng(12)

    def draw(good: list[bytes], bad: list[bytes], with_bad: bool) -> list[bytes]:
        chosen = [good[i] for i in random.integers(0, len(good), random.integers(1, 4))]
        if with_bad:
            chosen.insert(random.integers(0, len(chosen) + 1), bad[random.integers(0, len(bad))])
        return chosen

    made = []
    for i in range(3000):
        images = draw(list(GOOD_IMAGES), BAD_IMAGES, i % 8 == 0)
        texts = draw(list(GOOD_TEXTS), BAD_TEXTS, i % 8 == 4)
        if i % 20 == 1:
            texts = [texts[0]] * (LIMITS.max_texts + 1)
            made.append(Request(images, texts, None))
            continue
        rows = [GOOD_IMAGES.get(image) for image in images]
        columns = [GOOD_TEXTS.get(text) for text in texts]
        scores = np.array(
            [
                [
                    UNSCORED if row is None or column is None else expected[row, column]
                    for column in columns
                ]
                for row in rows
            ]
        )
        made.append(Request(images, texts, scores))
    return made


def probability(scores: NDArray[Any], calibration: Calibration) -> NDArray[np.float64]:
    logit = np.where(scores == UNSCORED, 0, calibration.a * scores + calibration.b)
    return np.where(scores == UNSCORED, UNSCORED, 1 / (1 + np.exp(-logit)))


def ask(client: Client, request: Request) -> dict[str, NDArray[Any]] | None:
    """Call `dsd_score` and check the scores; None is a refusal that was to be."""
    try:
        answer = client("dsd_score", {"images": request.images, "texts": request.texts})
    except InferenceServerException as error:
        if request.scores is None and "1 to 12 texts, this one 13" in str(error):
            return None
        raise
    assert request.scores is not None
    np.testing.assert_allclose(answer["scores"], request.scores, atol=1e-5, rtol=0)
    bad = [image not in GOOD_IMAGES for image in request.images]
    assert [bool(it) for it in answer["image_errors"]] == bad
    bad = [text not in GOOD_TEXTS for text in request.texts]
    assert [bool(it) for it in answer["text_errors"]] == bad
    return answer


@pytest.mark.parametrize(
    "count",
    [
        FEW,
        pytest.param(MANY, marks=pytest.mark.slow),
        pytest.param(MOST, marks=pytest.mark.torture),
    ],
)
def test_requests_of_32_clients_are_answered_each_with_its_own(
    server: Server, requests: list[Request], count: int, figures: Figures
) -> None:
    figures.look_for(
        "Triton requests of 32 clients, every fourth with something bad",
        *("lost", "wrong", "left behind"),
    )
    queue: Iterator[Request] = iter(requests[:count])
    lock = threading.Lock()
    latencies: list[float] = []
    held: list[int] = []

    def work(number: int) -> int:
        answered = 0
        with Client(server, PROTOCOLS[number % 2]) as client:
            while True:
                with lock:
                    request = next(queue, None)
                if request is None:
                    return answered
                began = time.monotonic()
                answer = ask(client, request)
                latencies.append(time.monotonic() - began)
                answered += 1
                figures.ended("refused, as they had to be" if answer is None else "right")
                if answer is not None:
                    np.testing.assert_allclose(
                        answer["probabilities"],
                        probability(np.asarray(request.scores), CALIBRATION),
                        atol=1e-5,
                    )
                if answered % (count // 250) == 0 and number == 0:
                    held.append(server.memory())

    def counted() -> int:
        stats = client.statistics("dsd_score")["inference_stats"]
        return sum(int(stats[outcome].get("count", 0)) for outcome in ("success", "fail"))

    with Client(server, "grpc") as client:
        before = settled(counted)
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            answered = sum(pool.map(work, range(CLIENTS)))
        took = time.monotonic() - began
        assert eventually(lambda: counted() - before, count)

    assert answered == count
    refused = sum(request.scores is None for request in requests[:count])
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    figures.measured |= {"median ms": round(p50), "99th percentile ms": round(p99)}
    print(
        f"\n{count} requests in {took:.1f} s, {refused} refused; "
        f"median {p50:.0f} ms, 99 % within {p99:.0f} ms; "
        f"memory {max(held) / MIB:.0f} MiB"
    )
    if count < MANY:
        return
    # Once the caches and buffers are there, nothing is added: the second half holds what the
    # first did.
    half = len(held) // 2
    growth = max(held[half:]) - max(held[:half])
    print(f"{growth / MIB:+.1f} MiB in the second half")
    figures.measured["MiB more in the second half"] = round(growth / MIB, 1)
    assert growth < 32 * MIB


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(scaled(4), marks=pytest.mark.torture)],
)
def test_models_are_replaced_under_load(
    server: Server,
    repository: Path,
    requests: list[Request],
    bundle: Bundle,
    tmp_path: Path,
    rounds: int,
    figures: Figures,
) -> None:
    """A second version, of another calibration: every answer is of one of them, none is missing."""
    figures.look_for("Triton requests while models are replaced and put back", "lost", "wrong")
    other = Calibration(a=-1.0, b=0.25)
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    changed = write_bundle(tmp_path / "bundle", replace(bundle.manifest, calibration=other))
    written = write_repository(changed, tmp_path / "models", "python").folder
    good = [it for it in requests if it.scores is not None and (it.scores > UNSCORED).all()]
    stop = threading.Event()

    def work(number: int) -> list[str]:
        seen: list[str] = []
        with Client(server, PROTOCOLS[number % 2]) as client:
            for request in itertools.cycle(good[number * 10 :]):
                if stop.is_set():
                    return seen
                answer = ask(client, request)
                assert answer is not None
                versions = {
                    name
                    for name, it in (("old", CALIBRATION), ("new", other))
                    if np.allclose(
                        answer["probabilities"],
                        probability(np.asarray(request.scores), it),
                        atol=1e-5,
                    )
                }
                assert len(versions) == 1
                seen += versions
        return seen

    def wait_for(model: str, version: str) -> None:
        with Client(server, "grpc") as client:
            until = time.monotonic() + 60
            while not client.triton.is_model_ready(model, version):
                assert time.monotonic() < until
                time.sleep(0.05)

    def put_back(client: Client, model: str) -> None:
        shutil.rmtree(repository / model / "2", ignore_errors=True)
        client.triton.load_model(model)
        wait_for(model, "1")

    with ThreadPoolExecutor(8) as pool, Client(server, "grpc") as client:
        jobs = [pool.submit(work, number) for number in range(8)]
        try:
            for number in range(rounds):
                for model in REPLACED if number else ():
                    put_back(client, model)
                for model in REPLACED:
                    shutil.copytree(written / model / "1", repository / model / "2")
                    client.triton.load_model(model)
                    wait_for(model, "2")
                figures.outcomes["models replaced"] += len(REPLACED)
            time.sleep(0.5)
        finally:
            stop.set()
            answers = [job.result() for job in jobs]
            for model in REPLACED:  # and back, for the other tests
                put_back(client, model)
    for seen in answers:
        assert {"old", "new"} == set(seen)
        assert seen[-1] == "new"
        figures.ended("right", len(seen))
    print(f"\n{sum(map(len, answers))} answers while {len(REPLACED)} models were replaced")
