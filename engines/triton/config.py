"""Configurations of a repository's models, in Triton's text format.

Models of graphs have no `instance_group`. Triton then places them on GPUs, or on the CPU of a
machine without any, so one repository serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from dsd_trt.batching import MASK_STEP
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.errors import DsdError

TOKENIZER, SCORE, MATCH = "dsd_tokenizer", "dsd_score", "dsd_match"
RANK_TEXTS = "dsd_rank_texts"

GRAPHS: Mapping[Mode, tuple[str, ...]] = {
    "pair": ("image_encoder", "text_encoder", "pair_scorer"),
    "matrix": ("image_encoder", "text_encoder", "matrix_scorer"),
}
"""Graphs of each mode, in order of execution."""

CACHED = ("image_encoder", "text_encoder")
"""Graphs with a response cache: an image or a text repeats more often than a pair does."""

QUEUE_DELAY_US = 1000  # small compared with the tens of milliseconds that a batch takes

_TYPES = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}

_MODEL = Template("""\
name: "$name"
$runs
max_batch_size: $max_batch_size
input [
$inputs
]
output [
$outputs
]
version_policy { latest { num_versions: 1 } }
$more""")

_BATCHING = Template("""\
dynamic_batching { max_queue_delay_microseconds: $delay }
""")

_CACHE = "response_cache { enable: true }\n"

# For instances on GPUs; on the CPU, Triton's backend passes it over. FP32 keeps all of its digits.
# The other settings have to be parameters: the backend (of 2026-06) overwrites the accelerator's
# with its defaults where a configuration has any parameter. These are to try every algorithm of a
# convolution whenever a batch has a new size, and to double the memory at every growth. Weights are
# left out of the memory that grows.
_CUDA = """\
optimization { execution_accelerators { gpu_execution_accelerator [ {
  name: "cuda"
  parameters { key: "use_tf32" value: "0" }
} ] } }
"""
_CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": 1,  # HEURISTIC
    "arena_extend_strategy": 1,  # kSameAsRequested
    "session.use_device_allocator_for_initializers": 1,
}

# These models run no graph, so they belong on the CPU. Each instance answers one request at a time.
_SCORE_INSTANCES = "instance_group [ { count: 4 kind: KIND_CPU } ]\n"
# A search fills batches by itself, and each instance may hold the states of many texts.
_RANK_INSTANCES = "instance_group [ { count: 2 kind: KIND_CPU } ]\n"

_TEXT_CACHE_MB = 64
_MEAN_TEXT_BYTES = 1024  # of a text itself, beside its states: more than most have

_WARM_UP = Template("""\
model_warmup [ {
  name: "$name"
  batch_size: $batch_size
$inputs
} ]
""")

_STEP = Template("""\
  step [ {
    model_name: "$model"
    model_version: -1
$inputs
$outputs
  } ]""")


@dataclass(frozen=True)
class Limits:
    """Limits of one request to `dsd_score` or `dsd_rank_texts`, parameters of both configurations.

    The names are those of `dsd_trt.limits`. The values are smaller, because anybody may send a
    request.

    Attributes:
        max_images: greatest number of images per request.
        max_texts: greatest number of texts per request.
        max_pairs: greatest number of images times texts per request.
        max_image_bytes: greatest size of an encoded image, in bytes.
        max_image_pixels: greatest width times height of an image, in pixels.
        max_text_characters: greatest length of a text, in characters.
    """

    max_images: int = 64
    max_texts: int = 256
    max_pairs: int = 4096
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 25_000_000
    max_text_characters: int = 8192


RANK_LIMITS = Limits(max_texts=1024)
"""Limits of one request to `dsd_rank_texts`, which is there for many texts."""


def model_of(graph: str) -> str:
    """Name of the model that serves a graph."""
    return f"dsd_{graph}"


def onnxruntime(graph: Graph) -> str:
    """Backend lines of a model that Triton's ONNX Runtime backend runs, on CPUs and GPUs."""
    named = f'backend: "onnxruntime"\ndefault_model_filename: "{graph.file}"\n'
    return named + _CUDA + _parameters(_CUDA_PARAMETERS)


def tensorrt(plans: Mapping[str, str]) -> str:
    """Backend lines of a model that Triton's TensorRT backend runs.

    Args:
        plans: file names of the plans by compute capability, such as "8.6"; the first is the
            default.
    """
    default = next(iter(plans.values()))
    files = "\n".join(
        f'cc_model_filenames {{ key: "{capability}" value: "{file}" }}'
        for capability, file in plans.items()
    )
    return f'platform: "tensorrt_plan"\ndefault_model_filename: "{default}"\n{files}'


def lean_runtime(graph: str, self_check: bool) -> str:
    """Backend lines of a model that the lean runtime runs in Triton's python backend.

    Args:
        graph: name of the graph, such as "pair_scorer".
        self_check: whether the model runs the bundle's self-check when it is loaded.
    """
    settings = {"graph": graph, "engine": "auto", "self_check": int(self_check)}
    return 'backend: "python"\n' + _parameters(settings)


def graph_config(name: str, graph: Graph, runs: str, max_batch_size: int) -> str:
    """Configuration of the model that serves a graph in batches.

    Args:
        name: name of the graph, such as "pair_scorer".
        graph: signature of the graph in the bundle's contract.
        runs: backend lines from `onnxruntime`, `tensorrt` or `lean_runtime`.
        max_batch_size: greatest number of items in a batch.
    """
    inputs = [spec for spec in graph.inputs if spec.batched]
    more = _BATCHING.substitute(delay=QUEUE_DELAY_US)
    if name in CACHED:
        more += _CACHE
    for size in sorted({1, max_batch_size}):
        zeros = _lines(_warm_up_input(spec, spec.shape[1:]) for spec in inputs)
        more += _WARM_UP.substitute(name=f"batch of {size}", batch_size=size, inputs=zeros)
    return _config(model_of(name), runs, max_batch_size, inputs, graph.outputs, more)


def matrix_config(name: str, graph: Graph, runs: str, block: tuple[int, int]) -> str:
    """Configuration of the model that serves the matrix scorer, without Triton's batching.

    Each request is one call of the graph: two dimensions are dynamic, and Triton's batcher
    concatenates along one only.

    Args:
        name: name of the graph, "matrix_scorer".
        graph: signature of the graph in the bundle's contract.
        runs: backend lines from `onnxruntime`, `tensorrt` or `lean_runtime`.
        block: numbers of walks (one image at one level) and of texts of the largest request.
    """
    warm_up = ""
    for walks, texts in sorted({(1, 1), block}):
        sizes = {"I": walks, "T": texts, "L": MASK_STEP}
        zeros = _lines(
            _warm_up_input(spec, [sizes.get(str(size), size) for size in spec.shape])
            for spec in graph.inputs
        )
        label = f"block of {walks} and {texts}"
        warm_up += _WARM_UP.substitute(name=label, batch_size=1, inputs=zeros)
    inputs, outputs = (",\n".join(map(_whole, side)) for side in (graph.inputs, graph.outputs))
    return _MODEL.substitute(
        name=model_of(name),
        runs=runs,
        max_batch_size=0,
        inputs=inputs,
        outputs=outputs,
        more=warm_up,
    )


def tokenizer_config(manifest: Manifest, max_batch_size: int) -> str:
    """Configuration of `dsd_tokenizer`, which takes a text and returns its ids and mask.

    Args:
        manifest: manifest of the bundle, for the tokenizer's length.
        max_batch_size: greatest number of texts in a batch.
    """
    length = manifest.tokenizer.max_length
    outputs = (
        TensorSpec("input_ids", "int32", ("T", length)),
        TensorSpec("token_mask", "float32", ("T", length)),
    )
    text = '  { name: "text" data_type: TYPE_STRING dims: [ 1 ] }'
    return _MODEL.substitute(
        name=TOKENIZER,
        runs='backend: "python"',
        max_batch_size=max_batch_size,
        inputs=text,
        outputs=",\n".join(map(_tensor, outputs)),
        more=_BATCHING.substitute(delay=QUEUE_DELAY_US),
    )


def score_config(
    max_batch_size: int, limits: Limits, self_check: bool, block: tuple[int, int] | None = None
) -> str:
    """Configuration of `dsd_score`, which takes encoded images and texts and returns matrices.

    Triton does not batch its requests, because each has its own numbers of images and texts. Its
    own requests to the other models are batches.

    Args:
        max_batch_size: greatest number of items per request to another model.
        limits: limits of one request to `dsd_score`.
        self_check: whether the other models must pass the bundle's self-check before the first
            score.
        block: greatest numbers of walks (one image at one level) and of texts per request to the
            matrix scorer; None selects pair mode.
    """
    settings = _settings(max_batch_size, limits, self_check, block, _TEXT_CACHE_MB)
    return _MODEL.substitute(
        name=SCORE,
        runs='backend: "python"',
        max_batch_size=0,
        inputs=_variable({"images": "string", "texts": "string"}, 1),
        outputs=",\n".join(
            (
                _variable({"probabilities": "float32", "scores": "float32"}, 2),
                _variable({"image_errors": "string", "text_errors": "string"}, 1),
            )
        ),
        more=_SCORE_INSTANCES + _parameters(settings) + "\n",
    )


def rank_texts_config(
    manifest: Manifest,
    max_batch_size: int,
    limits: Limits,
    self_check: bool,
    block: tuple[int, int] | None,
) -> str:
    """Configuration of `dsd_rank_texts`, which returns the best texts of each image.

    Triton does not batch its requests either. Its text cache takes the texts of a whole request:
    a smaller one would keep none of them.

    Args:
        manifest: manifest of the bundle, for the size of a text's states.
        max_batch_size: greatest number of items per request to another model.
        limits: limits of one request.
        self_check: whether the other models must pass the bundle's self-check before the first
            score.
        block: greatest numbers of walks and of texts per request to the matrix scorer, which makes
            lists; None makes none.
    """
    (states,) = manifest.graphs["text_encoder"].outputs
    row = math.prod(int(size) for size in states.shape[1:]) * np.dtype(states.dtype).itemsize
    row += manifest.tokenizer.max_length * np.dtype(np.float32).itemsize  # its mask
    texts_mb = math.ceil(limits.max_texts * (row + _MEAN_TEXT_BYTES) / 2**20)
    cache_mb = max(_TEXT_CACHE_MB, texts_mb)
    settings = _settings(max_batch_size, limits, self_check, block, cache_mb)
    return _MODEL.substitute(
        name=RANK_TEXTS,
        runs='backend: "python"',
        max_batch_size=0,
        inputs=",\n".join(
            (
                _variable({"images": "string", "texts": "string"}, 1),
                _one("top_k", "int32"),
                # FP64, so that an error is the same number as in Python.
                _one("error", "float64", "optional: true "),
            )
        ),
        outputs=",\n".join(
            (
                _variable({"indices": "int32", "probabilities": "float32", "scores": "float32"}, 2),
                _variable({"image_errors": "string", "text_errors": "string"}, 1),
            )
        ),
        more=_RANK_INSTANCES + _parameters(settings) + "\n",
    )


def match_config(manifest: Manifest, max_batch_size: int) -> str:
    """Configuration of `dsd_match`, an ensemble of pair mode's graphs for pixels and ids.

    Args:
        manifest: manifest of the bundle, for the signatures of its graphs.
        max_batch_size: greatest number of pairs in a batch.
    """
    graphs = manifest.graphs
    steps = "\n".join(_step(name, graphs[name]) for name in GRAPHS["pair"])
    made = {spec.name for name in CACHED for spec in graphs[name].outputs}
    inputs = [spec for name in GRAPHS["pair"] for spec in graphs[name].inputs if spec.batched]
    return _config(
        MATCH,
        'platform: "ensemble"',
        max_batch_size,
        [spec for spec in inputs if spec.name not in made],
        graphs["pair_scorer"].outputs,
        f"ensemble_scheduling {{\n{steps}\n}}\n",
        reshape=False,  # only the ensemble's models reshape
    )


def check_config(name: str, text: str) -> None:
    """Parse a configuration with Triton's own protobuf definition.

    Args:
        name: name of the model, for the error message.
        text: configuration in protobuf's text format.

    Raises:
        DsdError: the configuration is not valid.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise DsdError(f"the configuration of {name} is not what Triton reads: {error}") from None


def _config(
    name: str,
    runs: str,
    max_batch_size: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    more: str,
    *,
    reshape: bool = True,
) -> str:
    return _MODEL.substitute(
        name=name,
        runs=runs,
        max_batch_size=max_batch_size,
        inputs=",\n".join(_tensor(spec, reshape) for spec in inputs),
        outputs=",\n".join(_tensor(spec, reshape) for spec in outputs),
        more=more,
    )


def _tensor(spec: TensorSpec, reshape: bool = True) -> str:
    """One input or output without its batch dimension.

    Triton has no scalars per item, so clients see them as vectors of one number.
    """
    shape = "" if len(spec.shape) > 1 or not reshape else " reshape { shape: [ ] }"
    return f'  {{ name: "{spec.name}" {_type_and_dims(spec, spec.shape[1:])}{shape} }}'


def _whole(spec: TensorSpec) -> str:
    """One input or output with all its dimensions; -1 marks a dynamic one."""
    dims = [-1 if isinstance(size, str) else size for size in spec.shape]
    return f'  {{ name: "{spec.name}" {_type_and_dims(spec, dims)} }}'


def _type_and_dims(spec: TensorSpec, dims: Sequence[int | str]) -> str:
    return f"data_type: {_TYPES[spec.dtype]} dims: [ {', '.join(map(str, dims)) or 1} ]"


def _settings(
    max_batch_size: int,
    limits: Limits,
    self_check: bool,
    block: tuple[int, int] | None,
    text_cache_mb: int,
) -> dict[str, int]:
    """Parameters of a model that clients send images and texts to."""
    settings = {
        "max_batch_size": max_batch_size,
        **vars(limits),
        "text_cache_mb": text_cache_mb,
        "self_check": int(self_check),
    }
    if block is not None:
        settings["matrix_walks"], settings["matrix_texts"] = block
    return settings


def _one(name: str, dtype: str, more: str = "") -> str:
    """An input of one number."""
    return f'  {{ name: "{name}" data_type: {_TYPES[dtype]} dims: [ 1 ] {more}}}'


def _variable(tensors: Mapping[str, str], rank: int) -> str:
    dims = ", ".join(["-1"] * rank)
    return ",\n".join(
        f'  {{ name: "{name}" data_type: {_TYPES[dtype]} dims: [ {dims} ] }}'
        for name, dtype in tensors.items()
    )


def _warm_up_input(spec: TensorSpec, dims: Sequence[int | str]) -> str:
    # Zeros are valid ids and levels, and the latency of a batch does not depend on its values.
    zeros = f"{_type_and_dims(spec, dims)} zero_data: true"
    return f'  inputs {{ key: "{spec.name}" value {{ {zeros} }} }}'


def _step(name: str, graph: Graph) -> str:
    def lines(side: str, specs: Sequence[TensorSpec]) -> str:
        return _lines(
            f'    {side}_map {{ key: "{spec.name}" value: "{spec.name}" }}'
            for spec in specs
            if spec.batched
        )

    return _STEP.substitute(
        model=model_of(name),
        inputs=lines("input", graph.inputs),
        outputs=lines("output", graph.outputs),
    )


def _parameters(values: Mapping[str, Any]) -> str:
    return _lines(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in values.items()
    )


def _lines(parts: Any) -> str:
    return "\n".join(parts)
