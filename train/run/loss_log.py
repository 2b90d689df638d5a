"""The losses of a run: a JSONL file with one line per step, and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

from dsd_trt.files.schema import parse_json
from dsd_trt.files.whole import append, whole, whole_lines

mpl.use("Agg")
import matplotlib.pyplot as plt


class LossLog:
    """Losses of each step, one JSON object per line; the last line of a repeated step counts.

    Args:
        path: path of the JSONL file, whose lines are read if it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        self.rows.update(whole_lines(path, _read))

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Append the losses of one step, by name."""
        self.rows[step] = losses
        rounded = {name: round(value, 6) for name, value in losses.items()}
        append(self.path, json.dumps({"step": step, **rounded}) + "\n", durable=False)

    def plot(self, path: Path) -> None:
        """Plot every loss over steps, as a moving average over a hundredth of the run."""
        steps = sorted(self.rows)
        names = list(self.rows[steps[0]])
        figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
        width = max(1, len(steps) // 100)
        for axis, name in zip(axes[0], names, strict=True):
            values = np.array([self.rows[step][name] for step in steps])
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axis.plot(steps[width - 1 :], smooth)
            axis.set(title=f"{name} loss", xlabel="step")
            axis.grid(alpha=0.3)
        figure.tight_layout()
        with whole(path) as file:
            figure.savefig(file, dpi=110)
        plt.close(figure)


def _read(line: str) -> tuple[int, dict[str, float]]:
    """Parse one line into a step and its losses.

    Raises:
        ValueError: the line does not hold the losses of a step.
    """
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(step := row.pop("step", None), int):
        raise ValueError("not losses of a step")
    if not all(isinstance(value, (int, float)) for value in row.values()):
        raise ValueError("a loss is no number")
    return step, row
