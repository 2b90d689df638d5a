"""The graphs of every bundle: names, inputs and outputs, and whether given graphs have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dsd_trt.bundle.fields import check_size, require

Precision = Literal["fp32", "fp16"]
LARGEST_LAMBDA = 64.0
"""Sharpness of Eq. 3 up to which no maximum is subtracted first: e to this power, summed over a
billion image tokens, is still an FP32 number."""

Dtype = Literal["uint8", "int32", "float16", "float32"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: name of the tensor in the graph.
        dtype: numpy name of the type, such as "float32".
        shape: sizes, batch first; a string names a dynamic dimension. A tensor without a dynamic
            dimension is the same for every item of a batch.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    @property
    def batched(self) -> bool:
        """Whether the tensor has one entry per item of a batch."""
        return isinstance(self.shape[0], str)

    def of_batch(self, size: int) -> tuple[int, ...]:
        """The shape for a given size of every dynamic dimension."""
        return tuple(size if isinstance(given, str) else given for given in self.shape)

    def of_sizes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the dynamic dimensions, by name."""
        return tuple(sizes[given] if isinstance(given, str) else given for given in self.shape)


@dataclass(frozen=True)
class Graph:
    """One ONNX file with its declared inputs and outputs."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batched(self) -> bool:
        """Whether all outputs have one entry per item of a batch, so that runs can be joined."""
        return not any(isinstance(size, str) for spec in self.outputs for size in spec.shape[1:])


def graph_contract(
    precision: Precision,
    resolution: int,
    latent_shape: tuple[int, int, int],
    text_width: int,
    max_length: int = 77,
    denoising: bool = False,
    pooled_text: bool = False,
    adapter_numbers: int = 0,
    matrix: bool = False,
) -> dict[str, Graph]:
    """The graphs of every bundle: fixed names, batch first.

    Args:
        precision: precision of the bundle; with "fp16", latents and text states are float16. Scores
            are always float32.
        resolution: side of the input image in pixels.
        latent_shape: shape of a latent, (C, h, w).
        text_width: D, the width of a text state.
        max_length: number of tokens in a padded text.
        denoising: whether the pair scorer also returns its denoising error.
        pooled_text: whether text states have an additional row for the whole text (Stable Diffusion
            XL).
        adapter_numbers: length of the pair scorer's `adapter` input; 0 means no such input.
        matrix: whether the bundle has a matrix scorer.

    Returns:
        Graphs by name. Dynamic dimensions: I images, T texts, B pairs at one noise level, and L
            text tokens that may count, at most `max_length`.
    """
    states: Dtype = "float16" if precision == "fp16" else "float32"
    latent = TensorSpec("latent", states, ("I", *latent_shape))
    rows = max_length + pooled_text
    text_states = TensorSpec("text_states", states, ("T", rows, text_width))
    error = (TensorSpec("denoising_error", "float32", ("B",)),) if denoising else ()
    adapter = (TensorSpec("adapter", "float32", (adapter_numbers,)),) if adapter_numbers else ()
    graphs = {
        "image_encoder": Graph(
            "image_encoder.onnx",
            (TensorSpec("pixels", "uint8", ("I", resolution, resolution, 3)),),
            (latent,),
        ),
        "text_encoder": Graph(
            "text_encoder.onnx",
            (TensorSpec("input_ids", "int32", ("T", max_length)),),
            (text_states,),
        ),
        "pair_scorer": Graph(
            "pair_scorer.onnx",
            (
                dataclasses.replace(latent, shape=("B", *latent.shape[1:])),
                TensorSpec("level", "int32", ("B",)),
                dataclasses.replace(text_states, shape=("B", *text_states.shape[1:])),
                TensorSpec("token_mask", "float32", ("B", max_length)),
                *adapter,
            ),
            (
                TensorSpec("score", "float32", ("B",)),
                TensorSpec("token_scores", "float32", ("B", max_length)),
                *error,
            ),
        ),
    }
    if matrix:
        graphs["matrix_scorer"] = Graph(
            "matrix_scorer.onnx",
            (
                latent,
                TensorSpec("level", "int32", ("I",)),
                text_states,
                TensorSpec("token_mask", "float32", ("T", "L")),
            ),
            (TensorSpec("score", "float32", ("I", "T")),),
        )
    return graphs


def check_sizes(graphs: Mapping[str, Graph]) -> None:
    """Check that sizes are in range, and those that the contract leaves open can be read.

    Args:
        graphs: graphs of a bundle by name.

    Raises:
        BundleError: a graph is missing or has another rank; the message names the field.
    """
    for name in ("image_encoder", "text_encoder", "pair_scorer"):
        require(name in graphs, f"graphs.{name}", "is missing")
    for name, graph in graphs.items():
        for side in ("inputs", "outputs"):
            for spec in getattr(graph, side):
                for size in spec.shape:
                    if isinstance(size, int):
                        check_size(size, f"graphs.{name}.{side}")
    # A size the contract leaves open is read at its first use, then required everywhere.
    for name, rank in (("image_encoder", 4), ("text_encoder", 3)):
        outputs = graphs[name].outputs
        require(
            len(outputs) == 1
            and len(outputs[0].shape) == rank
            and all(isinstance(size, int) for size in outputs[0].shape[1:]),
            f"graphs.{name}.outputs",
            f"must be one tensor of rank {rank}, dynamic in its first dimension only",
        )


def check_contract(graphs: Mapping[str, Graph], contract: Mapping[str, Graph]) -> None:
    """Check that graphs have the inputs and outputs of the contract.

    Args:
        graphs: graphs of a bundle by name.
        contract: graphs that it must have, from `graph_contract`.

    Raises:
        BundleError: a tensor or a graph is another; the message names the field.
    """
    require(graphs.keys() == contract.keys(), "graphs", f"must be {', '.join(contract)}")
    for name, wanted in contract.items():
        graph = graphs[name]
        for side, got, want in (
            ("inputs", graph.inputs, wanted.inputs),
            ("outputs", graph.outputs, wanted.outputs),
        ):
            require(
                [_signature(spec) for spec in got] == [_signature(spec) for spec in want],
                f"graphs.{name}.{side}",
                f"must be {_render(want)}, got {_render(got)}",
            )


def _signature(spec: TensorSpec) -> tuple[object, ...]:
    """Properties that two tensors must share: all but the names of dynamic dimensions."""
    return spec.name, spec.dtype, tuple(d if isinstance(d, int) else None for d in spec.shape)


def _render(specs: tuple[TensorSpec, ...]) -> str:
    return "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
