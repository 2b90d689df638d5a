"""The generated repository on the real server, called by the real client."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bundles import LENGTH, RESOLUTION, closed_form, probability
from client import Client, ask_json
from inputs import LIMITS, UNSCORED, encode
from PIL import Image
from server import Server, eventually, settled
from tritonclient.utils import InferenceServerException

from dsd_trt import Bundle, Scorer

TEXTS = ["a red circle", "blue dog", "a green square", "a red circle"]  # one twice
NOISE = np.random.default_rng(5)
PHOTOS = [NOISE.integers(0, 256, (60, 40 + 7 * i, 3), np.uint8) for i in range(5)]


def test_the_server_runs_on_the_numpy_it_needs(server: Server) -> None:
    assert np.__version__.startswith("1.")  # the models' environment is this one
    assert "onnxruntime" in server.log.read_text()


def test_the_log_names_the_engine_and_why_others_were_passed_over(server: Server) -> None:
    log = server.log.read_text()
    for graph in ("image_encoder", "text_encoder", "pair_scorer"):
        assert re.search(rf"{graph}: (onnxruntime|openvino) \S+ on CPU", log)
        assert re.search(rf"{graph}: passed over: .*onnxruntime-cuda.*: ", log)


def test_scores_are_those_of_the_runtime(client: Client, bundle: Bundle) -> None:
    images = [encode(photo, kind) for photo, kind in zip(PHOTOS, ["PNG", "JPEG"] * 3, strict=False)]
    expected = Scorer.load(bundle.folder, engine="onnxruntime").score(images, TEXTS)
    answer = client("dsd_score", {"images": images, "texts": TEXTS})
    assert answer["scores"].shape == (5, 4)
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-5, rtol=0)
    np.testing.assert_allclose(answer["probabilities"], expected.probabilities, atol=1e-5, rtol=0)
    assert [*answer["image_errors"], *answer["text_errors"]] == [b""] * 9


def test_scores_are_those_of_the_closed_form(client: Client) -> None:
    pixels = NOISE.integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    answer = client("dsd_score", {"images": [encode(pixels)], "texts": TEXTS})
    expected = [closed_form(pixels, text) for text in TEXTS]
    np.testing.assert_allclose(answer["scores"][0], expected, atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"][0], list(map(probability, expected)), 1e-5)


def test_metadata_says_what_a_client_needs(client: Client) -> None:
    assert client.tensors("dsd_score") == {
        "images": ("BYTES", [-1]),
        "texts": ("BYTES", [-1]),
        "probabilities": ("FP32", [-1, -1]),
        "scores": ("FP32", [-1, -1]),
        "image_errors": ("BYTES", [-1]),
        "text_errors": ("BYTES", [-1]),
    }


def test_what_is_bad_has_its_error_and_the_rest_its_scores(client: Client) -> None:
    pixels = np.full((RESOLUTION, RESOLUTION, 3), (200, 30, 90), np.uint8)
    large = np.zeros((300, 301, 3), np.uint8)
    noise = NOISE.integers(0, 256, (190, 190, 3), np.uint8)
    images = {
        encode(pixels): "",
        b"no image": "not an image of a known format",
        b"": "the file is empty",
        encode(pixels)[:50]: "image file is truncated",
        encode(large): "more than 0.09 million pixels",
        encode(noise): "more than 100000 bytes",
    }
    texts = {
        b"blue": "",
        b"\xff\xfe": "not UTF-8",
        b"dog " * 101: "more than 400 characters",
        "a größer".encode(): "",
    }
    answer = client("dsd_score", {"images": list(images), "texts": list(texts)})
    for said, expected in zip(answer["image_errors"], images.values(), strict=True):
        assert re.search(expected, said.decode()) if expected else said == b""
    for said, expected in zip(answer["text_errors"], texts.values(), strict=True):
        assert re.search(expected, said.decode()) if expected else said == b""
    wanted = np.full((6, 4), UNSCORED)
    wanted[0, [0, 3]] = closed_form(pixels, "blue"), closed_form(pixels, "a größer")
    np.testing.assert_allclose(answer["scores"], wanted, atol=1e-5)
    assert np.array_equal(answer["probabilities"] == UNSCORED, wanted == UNSCORED)


def test_nothing_good_is_all_unscored(client: Client) -> None:
    answer = client("dsd_score", {"images": [b"x", b"y"], "texts": ["a dog"]})
    assert answer["scores"].tolist() == answer["probabilities"].tolist() == [[UNSCORED]] * 2


def test_an_answer_is_strict_json_whatever_is_bad(server: Server) -> None:
    pixels = NOISE.integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    images, texts = [encode(pixels), b"no image"], ["a dog", "a green square"]
    status, told = ask_json(server, "dsd_score", {"images": images, "texts": texts})
    assert status == 200
    outputs = {it["name"]: it["data"] for it in told["outputs"]}
    expected = [closed_form(pixels, text) for text in texts]
    assert outputs["scores"][:2] == pytest.approx(expected, abs=1e-5)
    assert outputs["probabilities"][:2] == pytest.approx(list(map(probability, expected)), 1e-5)
    for name in ("scores", "probabilities"):
        assert outputs[name][2:] == [UNSCORED] * 2
    assert outputs["image_errors"] == ["", "not an image of a known format"]
    assert outputs["text_errors"] == ["", ""]


@pytest.mark.parametrize(
    ("images", "texts", "complaint"),
    [
        (LIMITS.max_images + 1, 1, "1 to 8 images, this one 9"),
        (1, LIMITS.max_texts + 1, "1 to 12 texts, this one 13"),
        (8, 9, "1 to 64 pairs, this one 72"),
        (0, 1, "1 to 8 images, this one 0"),
    ],
)
def test_requests_beyond_the_limits_are_refused(
    client: Client, images: int, texts: int, complaint: str
) -> None:
    image = encode(PHOTOS[0])
    with pytest.raises(InferenceServerException, match=complaint):
        client("dsd_score", {"images": [image] * images, "texts": ["dog"] * texts})


def test_pairs_are_counted_beside_tritons_own_metrics(client: Client, server: Server) -> None:
    def counted() -> list[float]:
        refused = [server.metric("dsd_inputs_refused_total", kind=it) for it in ("image", "text")]
        successes = server.metric("nv_inference_request_success", model="dsd_score")
        return [server.metric("dsd_pairs_scored_total"), *refused, successes]

    before = settled(counted)
    images = [encode(PHOTOS[0]), encode(PHOTOS[1]), b"bad"]
    client("dsd_score", {"images": images, "texts": ["a", "dog", b"\xff"]})
    assert eventually(lambda: np.subtract(counted(), before).tolist(), [4, 1, 1, 1])


def test_requests_are_scored_in_batches(server: Server) -> None:
    """Those of one client are of 3, a pair at each noise level: larger ones are of several."""
    image = encode(PHOTOS[0])

    def ask(_: int) -> None:
        with Client(server, "grpc") as client:
            for _ in range(20):
                client("dsd_score", {"images": [image], "texts": ["a dog"]})

    def sizes() -> dict[int, int]:
        with Client(server, "grpc") as client:
            batches = client.statistics("dsd_pair_scorer")["batch_stats"]
        return {int(it["batch_size"]): int(it["compute_infer"]["count"]) for it in batches}

    before = settled(sizes)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    formed = {size: count - before.get(size, 0) for size, count in settled(sizes).items()}
    print({size: count for size, count in sorted(formed.items()) if count})
    assert sum(size * count for size, count in formed.items()) == 8 * 20 * 3
    assert sum(count for size, count in formed.items() if size > 3) >= 10
    assert max(formed) <= 16


def test_match_takes_what_the_tokenizer_gives(client: Client) -> None:
    pixels = NOISE.integers(0, 256, (3, RESOLUTION, RESOLUTION, 3), np.uint8)
    texts = ["a red circle", "dog", "green square " * 5]
    tokens = client("dsd_tokenizer", {"text": [[text] for text in texts]})
    assert tokens["input_ids"].shape == tokens["token_mask"].shape == (3, LENGTH)
    answer = client("dsd_match", {"pixels": pixels, "level": [[0], [2], [1]], **tokens})
    expected = [
        closed_form(pixels[i], text, [level])
        for i, (text, level) in enumerate(zip(texts, (0, 2, 1), strict=True))
    ]
    np.testing.assert_allclose(answer["score"][:, 0], expected, atol=1e-5)
    assert answer["token_scores"].shape == (3, LENGTH)


def test_the_tokenizer_refuses_what_is_no_text(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="utf-8"):
        client("dsd_tokenizer", {"text": [[b"\xff"]]})


def test_texts_and_images_that_come_again_are_not_encoded_again(
    client: Client, server: Server
) -> None:
    image, text = encode(NOISE.integers(0, 256, (9, 9, 3), np.uint8)), "square dog " * 3

    def runs() -> list[float]:
        models = ("dsd_text_encoder", "dsd_image_encoder", "dsd_pair_scorer")
        return [server.metric("nv_inference_exec_count", model=model) for model in models]

    request = {"images": [image], "texts": [text]}
    client("dsd_score", request)
    before = settled(runs)
    client("dsd_score", request)
    assert eventually(lambda: np.subtract(runs(), before).tolist(), [0, 0, 1])


def test_an_image_in_any_mode_is_as_in_the_runtime(client: Client, bundle: Bundle) -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE.integers(0, 256, (20, 20, 4), np.uint8), "RGBA").save(stream, "PNG")
    images = [stream.getvalue(), encode(NOISE.integers(0, 256, (20, 30), np.uint8))]
    expected = Scorer.load(bundle.folder, engine="onnxruntime").score(images, TEXTS)
    answer = client("dsd_score", {"images": images, "texts": TEXTS})
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-5, rtol=0)


def test_a_model_that_is_not_there_is_an_error_and_no_score(client: Client, server: Server) -> None:
    request = {"images": [encode(PHOTOS[0])], "texts": ["a dog"]}
    client.triton.unload_model("dsd_pair_scorer")
    try:
        while client.triton.is_model_ready("dsd_pair_scorer"):
            time.sleep(0.05)
        with pytest.raises(InferenceServerException, match="EngineError: dsd_pair_scorer failed"):
            client("dsd_score", request)
    finally:
        client.triton.load_model("dsd_pair_scorer")
    assert np.isfinite(client("dsd_score", request)["scores"]).all()
