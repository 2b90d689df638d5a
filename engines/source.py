"""What a plan is compiled from: a parsed graph, or a part of the matrix scorer, and its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsd_trt.batching import MASK_STEP, MAX_TEXTS, map_numbers
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.engine.cut import CutGraph
from dsd_trt.engine.matrix import NUMBERS
from dsd_trt.engine.tensorrt.plan import Part, Profile
from dsd_trt.engines.compile import Shapes, batch_shapes
from dsd_trt.engines.network import GraphRefusedError, Network, parse, parse_part


@dataclass(frozen=True)
class Source:
    """A parsed network with the shapes that its plan has to take.

    Attributes:
        network: network as the library's parser made it.
        profiles: shapes of the inputs, by optimization profile.
        texts: numbers of texts of the match; None for others.
        tokens: numbers of text tokens of the match; None for others.
    """

    network: Network
    profiles: tuple[Shapes, ...]
    texts: Profile | None = None
    tokens: Profile | None = None


def read_source(
    trt: Any, bundle: Bundle, name: str, part: Part | None, batches: Sequence[Profile]
) -> Source:
    """Parse a graph or a part of one, and work out the shapes of its inputs.

    Args:
        trt: library module, `tensorrt` or `tensorrt_rtx`.
        bundle: verified bundle with the graph.
        name: name of the graph, such as "pair_scorer".
        part: part of the matrix scorer; None for a whole graph.
        batches: batch sizes, by profile; those of the matrix scorer are walks.

    Raises:
        GraphRefusedError: the parser refuses the graph, or it cannot be cut.
    """
    graph = bundle.manifest.graphs[name]
    path = bundle.path(graph.file)
    if part is None:
        return Source(parse(trt, path), tuple(batch_shapes(graph, it) for it in batches))
    of_rows = [it for it in graph.inputs if it.shape[0] == graph.inputs[0].shape[0]]
    of_texts = [it for it in graph.inputs if it not in of_rows]
    try:
        cut = CutGraph(path.read_bytes(), [it.name for it in of_texts])
        halves = cut.halves([it.name for it in graph.outputs])
    except ValueError as error:
        raise GraphRefusedError(f"{path} cannot be cut: {error}. Export the bundle again") from None
    walk = network = parse_part(trt, halves[0], path)
    texts = tokens = None
    if part == "match":
        network = parse_part(trt, halves[1], path)
        texts = texts_at_once(bundle.manifest, max(it.max for it in batches))
        most = bundle.manifest.tokenizer.max_length
        tokens = Profile(1, min(MASK_STEP, most), most)
    inputs = [network.definition.get_input(i).name for i in range(network.definition.num_inputs)]

    def shapes(rows: int, *sizes: int) -> dict[str, tuple[int, ...]]:
        named = dict(zip(map(str, of_texts[-1].shape), sizes, strict=False))
        known = _shapes(walk, rows)
        known |= {it.name: it.of_sizes(named) for it in of_texts if sizes}
        return {name: known[name] for name in inputs}

    profiles = []
    for rows in batches:
        others = [it for it in (texts, tokens) if it is not None]
        least = shapes(rows.min, *(it.min for it in others))
        best = shapes(rows.opt, *(it.opt for it in others))
        most_of_all = shapes(rows.max, *(it.max for it in others))
        profiles.append({it: (least[it], best[it], most_of_all[it]) for it in inputs})
    return Source(network, tuple(profiles), texts, tokens)


def texts_at_once(manifest: Manifest, rows: int) -> Profile:
    """Number of texts that a match takes, which bounds its largest attention map by `NUMBERS`.

    Args:
        manifest: manifest of the bundle.
        rows: largest number of rows of a walk.
    """
    most = min(max(NUMBERS // (rows * map_numbers(manifest)), 1), MAX_TEXTS)
    return Profile(1, most, most)


def _shapes(walk: Network, rows: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a walk's inputs and outputs for a number of rows; its inputs are left open."""
    definition = walk.definition
    inputs = [definition.get_input(i) for i in range(definition.num_inputs)]
    outputs = [definition.get_output(i) for i in range(definition.num_outputs)]
    for tensor in inputs:
        tensor.shape = (rows, *tuple(tensor.shape)[1:])
    found = {tensor.name: tuple(tensor.shape) for tensor in (*inputs, *outputs)}
    for tensor in inputs:
        tensor.shape = (-1, *tuple(tensor.shape)[1:])
    return found
