"""`dsd_score`: the matrices of scores and probabilities of encoded images and texts.

It runs the package's own pipeline on engines that send requests to the repository's other models.
An instance answers one request at a time. While it waits for a model, other instances send theirs,
and Triton batches them. Threads of one instance could do the same, but Triton 2.51 crashes when
they send requests at once.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from dsd_trt.batching import BatchSizes
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import why_no_probability
from dsd_trt.engine import Backend, EngineDescription
from dsd_trt.errors import EngineError, ImageError, InputError
from dsd_trt.image.preprocess import preprocess
from dsd_trt.limits import described
from dsd_trt.match_probability import match_probability
from dsd_trt.pipeline import EncodedTexts, Pipeline
from dsd_trt.tokenizer import Tokenizer, Tokens

HERE = Path(__file__).parent

UNSCORED = np.finfo(np.float32).min
"""Placeholder for a missing score or probability, because JSON has no NaN.

All probabilities are missing if none were fitted to the bundle's scores. It is below every possible
score, and any average that includes it is visibly wrong.
"""

Array = NDArray[Any]


class TritonPythonModel:
    """The interface that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest and this model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {key: int(value["string_value"]) for key, value in parameters.items()}
        self._settings = settings
        manifest = Manifest.from_json((HERE / MANIFEST_NAME).read_text("utf-8"))
        # An adapter input is fed by the model that serves the graph, not by this one.
        self._manifest = manifest = replace(manifest, adapter=None)
        check = bool(settings["self_check"])
        # Only a repository for matrix mode has these two parameters.
        block = settings.get("matrix_walks", 0), settings.get("matrix_texts", 0)
        self._mode: Mode = "matrix" if all(block) else "pair"
        size = settings["max_batch_size"]
        sizes = BatchSizes(size, size, size, block if self._mode == "matrix" else (1, 1))
        if why := why_no_probability(manifest, self._mode):
            pb_utils.Logger.log_warn(f"{args['model_name']}: {why}")
        server = Triton("triton", "Triton", extra="triton", sizes=sizes)
        self._pipeline = Pipeline(Bundle(HERE, manifest), server, 0, self_check=check)
        spec = manifest.tokenizer
        self._tokenize = Tokenizer(HERE / spec.file, spec, manifest.method.token_mask)
        self._texts = TextCache(settings["text_cache_mb"] * 2**20)
        self._metrics = Metrics(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a failed one does not affect the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images, texts = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().tolist()
            for name in ("images", "texts")
        )
        try:
            return pb_utils.InferenceResponse(self._score(images, texts))
        except InputError as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # otherwise the backend fails all requests of this call
            return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def _score(self, images: Sequence[bytes], texts: Sequence[bytes]) -> list[Any]:
        """The answer's tensors; an unusable image or text gives `UNSCORED` and a reason."""
        self._check(len(images), len(texts))
        # Not in `initialize`: the python backend can call other models only during a request.
        self._pipeline.compile(self._mode)
        latents = self._latents(images)
        encoded = self._encode(texts)
        rows = [i for i, it in enumerate(latents) if not isinstance(it, str)]
        columns = [j for j, it in enumerate(encoded) if not isinstance(it, str)]
        scores = np.full((len(images), len(texts)), np.nan, np.float32)
        if rows and columns:
            scores[np.ix_(rows, columns)] = self._block(
                np.stack([it for it in latents if not isinstance(it, str)]),
                [it for it in encoded if not isinstance(it, str)],
            )
        image_errors, text_errors = (
            [it if isinstance(it, str) else "" for it in side] for side in (latents, encoded)
        )
        self._metrics.count(int(np.isfinite(scores).sum()), image_errors, text_errors)
        for i in rows:
            if lost := [j for j in columns if not np.isfinite(scores[i, j])]:
                image_errors[i] = f"dsd_{self._mode}_scorer gave NaN or infinity with texts {lost}"
        calibration = self._manifest.calibration_of(self._mode)
        return [
            pb_utils.Tensor("probabilities", _unscored(match_probability(scores, calibration))),
            pb_utils.Tensor("scores", _unscored(scores)),
            pb_utils.Tensor("image_errors", _strings(image_errors)),
            pb_utils.Tensor("text_errors", _strings(text_errors)),
        ]

    def _latents(self, images: Sequence[bytes]) -> list[Array | str]:
        """Each image's latent, or the reason why there is none."""
        pixels = [self._pixels(image) for image in images]
        readable = [it for it in pixels if not isinstance(it, str)]
        encoded = iter(self._pipeline.encode_images(readable) if readable else ())
        return [
            it if isinstance(it, str) else _usable(next(encoded), "dsd_image_encoder")
            for it in pixels
        ]

    def _block(self, latent: Array, texts: Sequence[EncodedText]) -> NDArray[np.float32]:
        """Score usable images with usable texts: (images, C, h, w) -> (images, texts)."""
        encoded = EncodedTexts(
            np.stack([it.states for it in texts]), np.stack([it.mask for it in texts])
        )
        levels = np.arange(len(self._manifest.method.noise_levels.fractions), dtype=np.int32)
        if self._mode == "matrix":
            return self._pipeline.score_matrix(latent, encoded, levels)
        image_of, text_of = np.indices((len(latent), len(texts))).reshape(2, -1)  # (pairs,)
        scores = self._pipeline.score(latent, encoded, image_of, text_of, levels)
        return scores.reshape(len(latent), len(texts))

    def _check(self, images: int, texts: int) -> None:
        for what, count in (("images", images), ("texts", texts), ("pairs", images * texts)):
            most = self._settings[f"max_{what}"]
            if not 0 < count <= most:
                raise InputError(
                    f"a request has 1 to {most} {what}, this one {count}; "
                    "split it, or raise the limit in the configuration of dsd_score"
                )

    def _pixels(self, image: bytes) -> NDArray[np.uint8] | str:
        """An image's pixels, (H, W, 3), or the reason why there are none."""
        to, settings = self._manifest.preprocessing, self._settings
        if len(image) > settings["max_image_bytes"]:
            return f"more than {described(settings['max_image_bytes'], 'bytes')}"
        try:
            return preprocess(image, to.resolution, to.resize, settings["max_image_pixels"])
        except ImageError as error:
            return str(error)

    def _encode(self, texts: Sequence[bytes]) -> list[EncodedText | str]:
        """Each text's states and mask, from the cache or encoded now, or the reason for none."""
        found: dict[bytes, EncodedText | str] = {}
        unknown: dict[bytes, Tokens] = {}
        for text in dict.fromkeys(texts):
            if (cached := self._texts.get(text)) is not None:
                found[text] = cached
                continue
            try:
                unknown[text] = self._tokens(text)
            except InputError as error:
                found[text] = str(error)
        if unknown:
            tokens = Tokens(
                np.concatenate([it.input_ids for it in unknown.values()]),
                np.concatenate([it.mask for it in unknown.values()]),
            )
            encoded = self._pipeline.encode_tokens(tokens)
            for text, states, mask in zip(unknown, encoded.states, encoded.mask, strict=True):
                if isinstance(usable := _usable(states, "dsd_text_encoder"), str):
                    found[text] = usable
                    continue
                found[text] = made = EncodedText(usable.copy(), mask.copy())
                self._texts.put(text, made)
        return [found[text] for text in texts]

    def _tokens(self, text: bytes) -> Tokens:
        most = self._settings["max_text_characters"]
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8: {error}") from None
        if len(decoded) > most:
            raise InputError(f"more than {most} characters")
        if not decoded.strip():
            raise InputError(f"a text has no words to score: {decoded!r}")
        return self._tokenize([decoded])


@dataclass(frozen=True)
class EncodedText:
    """One encoded text.

    Attributes:
        states: text states r_y, (77, D).
        mask: mask of counted tokens, (77,).
    """

    states: Array
    mask: Array


class TextCache:
    """Cache of encoded texts; the least recently used ones are dropped first.

    Args:
        budget: memory for texts, states and masks, in bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._texts: OrderedDict[bytes, EncodedText] = OrderedDict()

    def get(self, text: bytes) -> EncodedText | None:
        """The encoded text; None if it is not cached."""
        if text in self._texts:
            self._texts.move_to_end(text)
        return self._texts.get(text)

    def put(self, text: bytes, encoded: EncodedText) -> None:
        """Add a text that is not cached yet, and drop the least recently used ones."""
        self._texts[text] = encoded
        self._used += self._size(text, encoded)
        while self._used > self._budget:
            self._used -= self._size(*self._texts.popitem(last=False))

    @staticmethod
    def _size(text: bytes, encoded: EncodedText) -> int:
        return len(text) + encoded.states.nbytes + encoded.mask.nbytes


@dataclass(frozen=True)
class Triton(Backend):
    """The repository's other models; see `Backend`.

    Attributes:
        sizes: items per request to each model.
    """

    sizes: BatchSizes = field(kw_only=True)
    reads_graphs: bool = False
    tunes_batch: bool = False
    checks_itself: bool = True  # the server does

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """The batch sizes of the repository's configurations."""
        return self.sizes

    def open(self, bundle: Bundle, graph: str) -> TritonEngine:
        """Open the model that serves a graph; see `Backend.open`."""
        return TritonEngine(graph, bundle.manifest.graphs[graph])


class TritonEngine:
    """A graph that another model of the repository serves; see `dsd_trt.engine.Engine`.

    Args:
        name: name of the graph, such as "pair_scorer".
        graph: signature of the graph in the bundle's contract.
    """

    def __init__(self, name: str, graph: Graph) -> None:
        self._model, self._graph = f"dsd_{name}", graph
        # The answer has no scores per token, so they are not requested.
        self._outputs = [spec for spec in graph.outputs if spec.name != "token_scores"]
        self.description = EngineDescription("triton", self._model, "as its graph says")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Send one request to the model; see `Engine.run`."""
        count, batched = len(next(iter(feeds.values()))), self._graph.batched
        inputs = [
            # Triton has no scalars per item: (B,) -> (B, 1)
            pb_utils.Tensor(name, values.reshape(-1, 1) if batched and values.ndim == 1 else values)
            for name, values in feeds.items()
        ]
        answer = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=[spec.name for spec in self._outputs],
            inputs=inputs,
            parameters={"keep_not_finite": True},  # rows are checked one by one; see `graph.py`
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        ).exec()
        if answer.has_error():
            raise EngineError(f"{self._model} failed: {answer.error().message()}")
        outputs = {
            spec.name: pb_utils.get_output_tensor_by_name(answer, spec.name).as_numpy()
            for spec in self._outputs
        }
        if not batched:
            return outputs
        return {
            spec.name: outputs[spec.name].reshape(spec.of_batch(count)) for spec in self._outputs
        }

    def close(self) -> None:
        """Do nothing: the other model owns the graph."""


class Metrics:
    """Counters of pairs and refused inputs at Triton's metrics endpoint.

    Args:
        model: name of this model, a label of the counters.
        version: version of this model, a label of the counters.
    """

    def __init__(self, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        # Metrics do not keep their family alive, so it is kept here.
        self._families = pairs, refused = (
            _counters("dsd_pairs_scored_total", "Pairs of an image and a text that were scored"),
            _counters("dsd_inputs_refused_total", "Images and texts that could not be used"),
        )
        self._pairs = pairs.Metric(labels=labels)
        self._refused = [refused.Metric(labels={**labels, "kind": it}) for it in ("image", "text")]

    def count(self, pairs: int, *reasons: Sequence[str]) -> None:
        """Add one request: its scored pairs, and its image and text errors ("" is none)."""
        self._pairs.increment(pairs)
        for metric, complaints in zip(self._refused, reasons, strict=True):
            metric.increment(sum(map(bool, complaints)))


def _counters(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(
        name=name, description=description, kind=pb_utils.MetricFamily.COUNTER
    )


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _usable(values: Array, model: str) -> Array | str:
    """The values if all of them are finite, else an error that names the model."""
    return values if np.isfinite(values).all() else f"{model} gave NaN or infinity"


def _unscored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isfinite(values), values, UNSCORED)


def _strings(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], np.object_)
