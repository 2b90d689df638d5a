"""The best of many texts in one request, as `Scorer.rank_texts` finds them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import RESOLUTION, WORDS, closed_form, make_bundle, probability
from client import PROTOCOLS, Client, ask_json
from inputs import LIMITS, UNSCORED, encode
from listed_bundles import make_listed_bundle, random_pictures
from self_checked import add_self_check
from server import Server, eventually, settled
from test_engines import replace_backend
from tritonclient.utils import InferenceServerException

from dsd_trt import Bundle, RankedText, Scorer
from dsd_trt.engines.triton.repository import write_repository

TEXTS = ["a red circle", "blue dog", "a green square", "a red circle", "dog", "red", "blue square"]
NOISE = np.random.default_rng(6)
PIXELS = NOISE.integers(0, 256, (3, RESOLUTION, RESOLUTION, 3), np.uint8)
IMAGES = [encode(pixels) for pixels in PIXELS]


def request(images: list[bytes], texts: list[Any], top_k: int, error: float | None) -> Any:
    asked = {"images": images, "texts": texts, "top_k": [top_k]}
    return asked if error is None else {**asked, "error": [error]}


def require_same(answer: Any, ranked: list[list[RankedText]], top_k: int) -> None:
    """That an answer has the same texts with the same numbers, and nothing in other places."""
    assert answer["indices"].shape == (len(ranked), top_k)
    for row, places in enumerate(ranked):
        rest = top_k - len(places)
        assert answer["indices"][row].tolist() == [it.index for it in places] + [-1] * rest
        for name, numbers in (
            ("scores", [it.score for it in places]),
            ("probabilities", [it.probability for it in places]),
        ):
            expected = numbers + [UNSCORED] * rest
            np.testing.assert_allclose(answer[name][row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("top_k", "error"), [(1, None), (2, 0.2), (9, 0.01)])
def test_the_best_are_those_of_the_runtime(
    client: Client, bundle: Bundle, top_k: int, error: float | None
) -> None:
    """A text that occurs twice is found twice; what is beyond the texts has none."""
    scorer = Scorer.load(bundle.folder, engine="onnxruntime")
    told = 0.01 if error is None else error
    expected = scorer.rank_texts(IMAGES, TEXTS, top_k, prune=True, error=told)
    answer = client("dsd_rank_texts", request(IMAGES, TEXTS, top_k, error))
    require_same(answer, expected, top_k)
    assert [*answer["image_errors"], *answer["text_errors"]] == [b""] * 10


def test_what_is_bad_costs_itself_in_strict_json(server: Server) -> None:
    """With the default of `error`, and places in the order of the closed form."""
    texts = [b"\xff", "", *TEXTS[:3], b"dog " * 101, "square"]
    feeds = request([IMAGES[0], b"no image"], texts, 5, None)
    feeds["top_k"] = np.array(feeds["top_k"], np.int32)
    status, told = ask_json(server, "dsd_rank_texts", feeds)
    assert status == 200
    outputs = {it["name"]: it["data"] for it in told["outputs"]}
    known = {place: closed_form(PIXELS[0], str(texts[place])) for place in (2, 3, 4, 6)}
    order = sorted(known, key=lambda place: -known[place])
    assert outputs["indices"] == [*order, -1, *[-1] * 5]
    scores = [known[place] for place in order]
    assert outputs["scores"] == pytest.approx([*scores, *[UNSCORED] * 6], abs=1e-5)
    assert outputs["probabilities"][:4] == pytest.approx(list(map(probability, scores)), 1e-4)
    assert outputs["probabilities"][4:] == [UNSCORED] * 6
    assert outputs["image_errors"] == ["", "not an image of a known format"]
    reasons = ["not UTF-8", "a text has no words", "", "", "", "more than 400 characters", ""]
    for said, reason in zip(outputs["text_errors"], reasons, strict=True):
        assert said.startswith(reason)
        assert bool(said) == bool(reason)


def test_nothing_good_has_no_text_in_any_place(client: Client) -> None:
    answer = client("dsd_rank_texts", request([IMAGES[0], b"x"], [b"\xff"], 2, None))
    assert answer["indices"].tolist() == [[-1, -1]] * 2
    assert answer["scores"].tolist() == answer["probabilities"].tolist() == [[UNSCORED] * 2] * 2


@pytest.mark.parametrize(
    ("images", "texts", "top_k", "error", "complaint"),
    [
        (9, 1, 1, None, "1 to 8 images, this one 9.*configuration of dsd_rank_texts"),
        (1, 13, 1, None, "1 to 12 texts, this one 13"),
        (8, 9, 1, None, "1 to 64 pairs, this one 72"),
        (1, 2, 0, None, "top_k is a whole number from 1 to 12, max_texts, got 0"),
        (1, 2, -1, None, "top_k is a whole number from 1 to 12, max_texts, got -1"),
        (1, 2, LIMITS.max_texts + 1, None, "top_k is a whole number from 1 to 12.*got 13"),
        (1, 2, 1, 0.0, "error must be a probability above 0 and at most 0.5, got 0"),
        (1, 2, 1, 0.6, "error must be a probability above 0 and at most 0.5, got 0.6"),
        (1, 2, 1, float("nan"), "error must be a probability"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    client: Client, images: int, texts: int, top_k: int, error: float | None, complaint: str
) -> None:
    with pytest.raises(InferenceServerException, match=complaint):
        client("dsd_rank_texts", request(IMAGES[:1] * images, TEXTS[:1] * texts, top_k, error))


def test_metadata_says_what_a_client_needs(client: Client) -> None:
    assert client.tensors("dsd_rank_texts") == {
        "images": ("BYTES", [-1]),
        "texts": ("BYTES", [-1]),
        "top_k": ("INT32", [1]),
        "error": ("FP64", [1]),
        "indices": ("INT32", [-1, -1]),
        "probabilities": ("FP32", [-1, -1]),
        "scores": ("FP32", [-1, -1]),
        "image_errors": ("BYTES", [-1]),
        "text_errors": ("BYTES", [-1]),
    }


# Lists

# None has the tokens of another: of two with equal scores, either may come first.
MANY = [
    " ".join(words)
    for count in (1, 2, 3)
    for words in itertools.combinations_with_replacement(WORDS[4:], count)
]
PICTURES = [encode(it) for it in random_pictures(30, seed=7)]
COUNTED = ("dsd_image_encoder", "dsd_text_encoder", "dsd_pair_scorer", "dsd_matrix_scorer")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return add_self_check(make_listed_bundle(tmp_path_factory.mktemp("listed") / "bundle"))


@pytest.fixture(scope="module", params=["python", "onnxruntime"])
def with_lists(
    listed: Bundle, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose rankings have one instance, so that it has all audits and all texts."""
    scratch = tmp_path_factory.mktemp("with_lists")
    folder = write_repository(listed, scratch / "models", request.param, max_batch_size=8).folder
    assert replace_backend(folder) == (4 if request.param == "onnxruntime" else 0)
    config = folder / "dsd_rank_texts" / "config.pbtxt"
    written = config.read_text("utf-8")
    assert "{ count: 2 kind" in written
    config.write_text(written.replace("{ count: 2 kind", "{ count: 1 kind"), "utf-8")
    server = Server(folder, scratch)
    yield server
    server.stop()


def counted(server: Server) -> list[float]:
    """Items that each graph has computed."""
    return [server.metric("nv_inference_count", model=model) for model in COUNTED]


def test_lists_find_the_same_best_in_fewer_passes(
    with_lists: Server, listed: Bundle, tmp_path: Path
) -> None:
    scorer = Scorer.load(listed.folder, "onnxruntime")
    expected = scorer.rank_texts(PICTURES, MANY, 2, prune=True, error=0.05)
    full = scorer.rank_texts(PICTURES, MANY, 2)
    assert [[it.index for it in row] for row in expected] == [
        [it.index for it in row] for row in full
    ]
    eliminated = Scorer.load(make_bundle(tmp_path / "plain").folder, "onnxruntime").score(
        PICTURES, MANY, top_k=2, error=0.05
    )
    with Client(with_lists, "http") as client:
        # Its self-check, and with a text alone no list.
        client("dsd_rank_texts", request(PICTURES[:1], MANY[:1], 1, None))
        before = settled(lambda: counted(with_lists))
        answer = client("dsd_rank_texts", request(PICTURES, MANY, 2, 0.05))
        require_same(answer, expected, 2)
        images, texts, passes, walks = np.subtract(settled(lambda: counted(with_lists)), before)
        # Triton counts a request without batches as one item; a check is one more.
        assert 30 <= walks <= 31
        assert (images, texts) == (30, len(MANY) - 1)
        assert passes + walks < 0.6 * eliminated.passes

        # The audits of the request before count: this list is not scored in full.
        before = settled(lambda: counted(with_lists))
        again = client("dsd_rank_texts", request(PICTURES[3:4], MANY, 2, 0.05))
        require_same(again, expected[3:4], 2)
        _, texts, passes, walks = np.subtract(settled(lambda: counted(with_lists)), before)
        assert (texts, walks) == (0, 1)
        assert passes < len(MANY)


def test_estimates_of_no_use_are_noticed_and_leave_the_answers(
    listed: Bundle, tmp_path: Path
) -> None:
    folder = write_repository(listed, tmp_path / "models", "python", max_batch_size=8).folder
    module = folder / "dsd_rank_texts" / "1" / "dsd_trt" / "job_scorer.py"
    source, right = module.read_text("utf-8"), "return self._pipeline.score_matrix("
    assert source.count(right) == 1
    module.write_text(source.replace(right, "return -self._pipeline.score_matrix("), "utf-8")
    server = Server(folder, tmp_path)
    try:
        with Client(server, "http") as client:
            answer = client("dsd_rank_texts", request(PICTURES, MANY, 2, 0.05))
        said = server.log.read_text()
    finally:
        server.stop()
    require_same(answer, Scorer.load(listed.folder, "onnxruntime").rank_texts(PICTURES, MANY, 2), 2)
    assert re.search(r"\d+ of \d+ audited lists would have lost one of the best", said)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_than_was_measured_makes_no_list(
    with_lists: Server, listed: Bundle, protocol: str
) -> None:
    scorer = Scorer.load(listed.folder, "onnxruntime")
    before = settled(lambda: counted(with_lists))
    with Client(with_lists, protocol) as client:
        answer = client("dsd_rank_texts", request(PICTURES[:2], MANY, 4, None))
        require_same(answer, scorer.rank_texts(PICTURES[:2], MANY, 4, prune=True), 4)
    assert eventually(lambda: counted(with_lists)[3], before[3])
