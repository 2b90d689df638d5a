"""`dsd_score`: encoded images and texts to the matrix of their scores.

The package's own pipeline, on engines that ask the repository's other models. An instance answers
one request at a time: while it waits for a model, other instances ask too, and Triton makes batches
of what they ask. (Threads of one instance would do, but Triton 2.51 crashes when they ask at once.)
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest, Mode
from dsd_trt.engine import EngineDescription
from dsd_trt.errors import EngineError, ImageError, InputError
from dsd_trt.image.preprocess import preprocess
from dsd_trt.limits import described
from dsd_trt.pipeline import EncodedTexts, Pipeline, match_probability
from dsd_trt.tokenizer import Tokenizer, Tokens

HERE = Path(__file__).parent

UNSCORED = np.finfo(np.float32).min
"""Stands for a score or a probability where there is none. JSON has no NaN; this number is below
all that can be scored, and whatever it is averaged into shows it."""

Array = NDArray[Any]


class TritonPythonModel:
    """What the python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's description and this model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {key: int(value["string_value"]) for key, value in parameters.items()}
        self._settings = settings
        manifest = Manifest.from_json((HERE / MANIFEST_NAME).read_text("utf-8"))
        # An adapter that is fed is fed by the model that serves the graph.
        self._manifest = manifest = replace(manifest, adapter=None)
        check = bool(settings["self_check"])
        # Only a repository for matrix mode says how large its blocks are.
        block = settings.get("matrix_walks", 0), settings.get("matrix_texts", 0)
        self._mode: Mode = "matrix" if all(block) else "pair"
        size = settings["max_batch_size"]
        server = Triton(BatchSizes(size, size, size, block))
        self._pipeline = Pipeline(Bundle(HERE, manifest), server, 0, self_check=check)
        spec = manifest.tokenizer
        self._tokenize = Tokenizer(HERE / spec.file, spec, manifest.method.token_mask)
        self._texts = TextCache(settings["text_cache_mb"] * 2**20)
        self._metrics = Metrics(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails costs no other."""
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
        except Exception as error:  # the backend would fail the requests beside it too
            return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def _score(self, images: Sequence[bytes], texts: Sequence[bytes]) -> list[Any]:
        """The answer's tensors: `UNSCORED` and a reason where an image or a text is of no use."""
        self._check(len(images), len(texts))
        # Not when it is loaded: the python backend asks other models of nothing but requests.
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
        """Each image's latent, or why there is none."""
        pixels = [self._pixels(image) for image in images]
        readable = [it for it in pixels if not isinstance(it, str)]
        encoded = iter(self._pipeline.encode_images(readable) if readable else ())
        return [
            it if isinstance(it, str) else _usable(next(encoded), "dsd_image_encoder")
            for it in pixels
        ]

    def _block(self, latent: Array, texts: Sequence[EncodedText]) -> NDArray[np.float32]:
        """Score images against texts that are all in order: (images, texts)."""
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
        """An image's pixels, or why there are none."""
        to, settings = self._manifest.preprocessing, self._settings
        if len(image) > settings["max_image_bytes"]:
            return f"more than {described(settings['max_image_bytes'], 'bytes')}"
        try:
            return preprocess(image, to.resolution, to.resize, settings["max_image_pixels"])
        except ImageError as error:
            return str(error)

    def _encode(self, texts: Sequence[bytes]) -> list[EncodedText | str]:
        """Each text's states and mask, or why there are none; those not in the cache are made."""
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
        return self._tokenize([decoded])


@dataclass(frozen=True)
class EncodedText:
    """One text as the pair scorer takes it: states (77, D) and mask (77,)."""

    states: Array
    mask: Array


class TextCache:
    """The texts that were used last, encoded.

    Args:
        budget: of memory, in bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._texts: OrderedDict[bytes, EncodedText] = OrderedDict()

    def get(self, text: bytes) -> EncodedText | None:
        """A text that is in it."""
        if text in self._texts:
            self._texts.move_to_end(text)
        return self._texts.get(text)

    def put(self, text: bytes, encoded: EncodedText) -> None:
        """Add a text that is not in it, at the cost of those not used for longest."""
        self._texts[text] = encoded
        self._used += self._size(text, encoded)
        while self._used > self._budget:
            self._used -= self._size(*self._texts.popitem(last=False))

    @staticmethod
    def _size(text: bytes, encoded: EncodedText) -> int:
        return len(text) + encoded.states.nbytes + encoded.mask.nbytes


@dataclass(frozen=True)
class Triton:
    """The repository's other models; see `dsd_trt.engine.Backend`.

    Attributes:
        sizes: items per request to each model.
    """

    sizes: BatchSizes
    name: str = "triton"
    title: str = "Triton"
    extra: str = "triton"
    modes: frozenset[Mode] = frozenset(("pair", "matrix"))
    on_gpu: bool = False
    tunes_batch: bool = False
    keeps_order_of: str | None = None

    def require(self) -> None:
        """Nothing is missing: the server loads the models before this one."""

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float) -> BatchSizes:
        """As the repository's configurations say."""
        return self.sizes

    def open(self, bundle: Bundle, graph: str) -> TritonEngine:
        """See `Backend.open`."""
        return TritonEngine(graph, bundle.manifest.graphs[graph])


class TritonEngine:
    """A graph that another model of the repository serves; see `dsd_trt.engine.Engine`.

    Args:
        name: of the graph.
        graph: its signature.
    """

    def __init__(self, name: str, graph: Graph) -> None:
        self._model, self._graph = f"dsd_{name}", graph
        # Of the tokens' scores a matrix has no use.
        self._outputs = [spec for spec in graph.outputs if spec.name != "token_scores"]
        self.description = EngineDescription("triton", self._model, "as its graph says")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Ask the model; see `Engine.run`."""
        count, batched = len(next(iter(feeds.values()))), self._graph.batched
        inputs = [
            # A number an item of a batch is a vector of one to Triton.
            pb_utils.Tensor(name, values.reshape(-1, 1) if batched and values.ndim == 1 else values)
            for name, values in feeds.items()
        ]
        answer = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=[spec.name for spec in self._outputs],
            inputs=inputs,
            parameters={"keep_not_finite": True},  # one item of many may be; see `graph.py`
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
        """Nothing to give back: the graph is the other model's."""


class Metrics:
    """Counters beside Triton's own, at its metrics endpoint."""

    def __init__(self, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        # A family has to outlive its metrics.
        self._families = pairs, refused = (
            _counters("dsd_pairs_scored_total", "Pairs of an image and a text that were scored"),
            _counters("dsd_inputs_refused_total", "Images and texts that could not be used"),
        )
        self._pairs = pairs.Metric(labels=labels)
        self._refused = [refused.Metric(labels={**labels, "kind": it}) for it in ("image", "text")]

    def count(self, pairs: int, *reasons: Sequence[str]) -> None:
        """Add what one request had: pairs scored, and its images' and its texts' complaints."""
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
    """What a model computed of an image or a text, or that it is of no use."""
    return values if np.isfinite(values).all() else f"{model} gave NaN or infinity"


def _unscored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isfinite(values), values, UNSCORED)


def _strings(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], np.object_)
