"""Measure the rank correlation of the demonstration's pair scorer in INT8 with FP32.

python benchmarks/measure_int8.py, after pip install nncf (3.4.0 was measured)

Post-training quantization is calibrated on 300 pairs of drawn images and captions, half of them
positive. FP32, BF16 and INT8 then score 40 other images with 40 captions each. INT8 is accepted at
a rank correlation (Spearman) of 0.999 with FP32 and a top-1 agreement among ten captions of 99 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import dsd_trt  # noqa: F401  # before OpenVINO: it turns its telemetry off

# isort: split
import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dsd_trt.agreement import spearman
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.engine.openvino.backend import FP32
from dsd_trt.pipeline import Pipeline
from dsd_trt.train.shapes.twins import draw_twins, sample_twins

CALIBRATION_PAIRS = 300
PICTURES = 40
STREAMS = 2
Feeds = dict[str, NDArray[Any]]


class Pairs:
    """Drawn images and their captions, encoded."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        pixels: list[NDArray[np.uint8]] = []
        texts: list[str] = []
        for index in range(PICTURES // 2):
            pixels += [drawing.pixels for drawing in draw_twins(seed, index)]
            texts += sample_twins(seed, index).captions(np.random.default_rng([seed, index]))
        self.latent = pipeline.encode_images(pixels)
        self.texts = pipeline.encode_texts(texts)

    def feeds(self, picture: int, text: int, level: int) -> Feeds:
        """Batches of one, as inputs of the pair scorer."""
        return {
            "latent": self.latent[[picture]],
            "level": np.array([level], np.int32),
            "text_states": self.texts.states[[text]],
            "token_mask": self.texts.mask[[text]],
        }


def score(model: ov.Model, precision: str, pairs: Pairs, levels: int) -> NDArray[np.float32]:
    """Scores of every image with every text, (images, texts); prints the time per pass."""
    hints = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": STREAMS}
    queue = ov.AsyncInferQueue(ov.Core().compile_model(model, "CPU", hints), STREAMS)
    scores = np.zeros((PICTURES, PICTURES, levels), np.float32)
    queue.set_callback(
        lambda request, place: scores.__setitem__(place, request.get_output_tensor(0).data[0])
    )
    begin = time.perf_counter()
    for place in np.ndindex(*scores.shape):
        queue.start_async(pairs.feeds(*place), place)
    queue.wait_all()
    print(f"  {1000 * (time.perf_counter() - begin) / scores.size:.2f} ms a pass", end="")
    return scores.mean(axis=2)


def same_best_of_ten(scores: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Top-1 agreement among ten captions, over 25 sets of ten per image."""
    rng, same = np.random.default_rng(1), []
    for ours, theirs in zip(scores, reference, strict=True):
        tens = [rng.choice(PICTURES, 10, replace=False) for _ in range(25)]
        same += [ours[ten].argmax() == theirs[ten].argmax() for ten in tens]
    return float(np.mean(same))


def main() -> None:
    """Quantize, score, and print the agreement."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        import nncf
    except ImportError as error:
        sys.exit(f"nncf cannot be used here ({error}). Install it with: pip install nncf")
    bundle = read_bundle(bundle_folder(None))
    levels = len(bundle.manifest.method.noise_levels.fractions)
    pipeline = Pipeline(bundle, FP32, None)
    known, new = Pairs(pipeline, 77), Pairs(pipeline, 5)
    model = ov.Core().read_model(bundle.path(bundle.manifest.graphs["pair_scorer"].file))
    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})

    rng = np.random.default_rng(0)
    items = []
    for index in range(CALIBRATION_PAIRS):
        picture, other = rng.integers(0, PICTURES, 2)
        items.append(
            known.feeds(picture, (picture, other)[index % 2], int(rng.integers(0, levels)))
        )
    quantized = nncf.quantize(
        model.clone(),
        nncf.Dataset(items),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=CALIBRATION_PAIRS,
        model_type=nncf.ModelType.TRANSFORMER,
    )
    weights = nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM)

    print("FP32:", end="")
    reference = score(model, "f32", new, levels)
    print()
    for name, graph, precision in (
        ("BF16", model, "bf16"),
        ("INT8 weights, computed in FP32", weights, "f32"),
        ("INT8", quantized, "f32"),
    ):
        print(f"{name}:", end="")
        scores = score(graph, precision, new, levels)
        print(
            f", Spearman {spearman(scores.ravel(), reference.ravel()):.5f}, "
            f"same best of ten {100 * same_best_of_ten(scores, reference):.1f} %"
        )


if __name__ == "__main__":
    main()
