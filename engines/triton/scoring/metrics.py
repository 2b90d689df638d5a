"""Counters of the models that clients call, at Triton's metrics endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils


class Metrics:
    """Counters of pairs and refused inputs.

    Args:
        model: name of the model, a label of the counters.
        version: version of the model, a label of the counters.
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
