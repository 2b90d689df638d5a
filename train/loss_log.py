"""Losses of a run, kept on disk step by step, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

from dsd_trt.errors import InputError
from dsd_trt.files import whole, whole_lines
from dsd_trt.schema import parse_json

mpl.use("Agg")
import matplotlib.pyplot as plt


class LossLog:
    """Losses of every step, one JSON object a line; a step trained again is written over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        try:
            lines = whole_lines(path)
        except ValueError as error:
            raise InputError(f"{path} is no UTF-8 text: {error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line)
                step = int(row.pop("step"))
                self.rows[step] = {str(name): float(value) for name, value in row.items()}
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"{path}, line {number}: no losses of a step ({error}). Delete the line"
                ) from None

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Append one step."""
        self.rows[step] = losses
        with self.path.open("a", encoding="utf-8") as file:
            rounded = {name: round(value, 6) for name, value in losses.items()}
            file.write(json.dumps({"step": step, **rounded}) + "\n")

    def plot(self, path: Path) -> None:
        """Draw every loss over steps, smoothed over a hundredth of the run."""
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
