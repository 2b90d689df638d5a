"""A matrix scorer cut in two: walks, each matched with a few texts at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.batching import MASK_STEP
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.spans import span

TEXTS = 16
"""Most texts per run on the processor."""

NUMBERS = 2**25
"""Most numbers of an attention map, where a map is made: then there may be fewer texts per run."""

Array = NDArray[Any]


class MatrixEngine(SharedEngine):
    """A graph with two batches, rows and texts; see `Engine`.

    The graph is cut in two where values that depend only on rows meet the texts. The first part,
    the walk through the U-Net, runs once per row. The second part runs for a few texts at a time,
    so that memory does not grow with their number.

    Args:
        graph: declared inputs and outputs; the first input has a batch of rows, the last one of
            texts.
        walks: numbers of walks per run, the largest first; what is left of a batch is a run of its
            own.
        texts: most texts per run.
    """

    def __init__(self, graph: Graph, walks: Sequence[int], texts: int = TEXTS) -> None:
        super().__init__(graph)
        row = graph.inputs[0].shape[0]
        self._of_rows = [spec.name for spec in graph.inputs if spec.shape[0] == row]
        self._of_texts = [spec.name for spec in graph.inputs if spec.shape[0] != row]
        self._sizes, self._texts = tuple(walks), texts

    @abstractmethod
    def _walk(self, feeds: Mapping[str, Array], width: int) -> None:
        """Run the first part, whose results the next calls of `_match` use.

        Args:
            feeds: inputs that belong to rows, of as many rows as one of `walks`, or fewer at the
                end of a batch.
            width: number of text tokens that may count in the next call of `_match`.
        """

    @abstractmethod
    def _match(self, feeds: Mapping[str, Array]) -> Array:
        """Scores of the last walk's rows with the first of some texts, or with all of them.

        Args:
            feeds: inputs that belong to texts, of at most `texts` texts.

        Returns:
            Scores, (rows, texts), of at least one text.
        """

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        (output,), mask = self._graph.outputs, feeds[self._of_texts[-1]]
        scores = np.empty((len(feeds[self._of_rows[0]]), len(mask)), output.dtype)
        # Short texts first: a batch pools as many tokens as its longest text has.
        tokens = [int(np.flatnonzero(row).max(initial=0)) + 1 for row in mask]
        order = np.argsort(tokens, kind="stable")
        for part in self._cut(len(scores)):
            start = 0
            while start < len(order):
                texts = order[start : start + self._texts]
                width = min(-(-tokens[texts[-1]] // MASK_STEP) * MASK_STEP, mask.shape[1])
                rows = part.stop - part.start
                if start == 0:
                    with span("U-Net pass", "walk", walks=rows):
                        self._walk({name: feeds[name][part] for name in self._of_rows}, width)
                of_texts = {name: feeds[name][texts] for name in self._of_texts[:-1]}
                with span("U-Net pass", "match", walks=rows, texts=len(texts)):
                    found = self._match({**of_texts, self._of_texts[-1]: mask[texts, :width]})
                scores[part, texts[: found.shape[1]]] = found
                start += found.shape[1]
        return {output.name: scores}

    def _cut(self, count: int) -> Iterator[slice]:
        """Split a batch into parts, the largest first."""
        start = 0
        for size in self._sizes:
            while count - start >= size:
                yield slice(start, start + size)
                start += size
        if start < count:
            yield slice(start, count)
