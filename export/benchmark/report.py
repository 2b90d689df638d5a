"""The benchmark's report as JSON and as Markdown tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dsd_trt.agreement import spearman
from dsd_trt.commands.figures import markdown
from dsd_trt.errors import counted
from dsd_trt.export.benchmark.contenders import CONTENDERS, REFERENCE, RUNTIME, is_matrix
from dsd_trt.export.benchmark.measure import Measured
from dsd_trt.files.schema import to_plain

PERCENTILES = (50, 90, 99)

Table = tuple[list[str], list[list[str]]]
"""Heads of columns, and cells of rows."""


@dataclass(frozen=True)
class BenchReport:
    """Results of one run of `dsd-trt bench`.

    Attributes:
        machine: description of the machine, see `describe_machine`.
        bundle: name of the bundle's folder.
        pictures: number of scored images.
        texts: number of texts per image.
        levels: number of noise levels per pair.
        peaks: peak MAC/s of a large matrix product, by precision.
        cold_start: seconds from the command to one score, without and with a warm cache.
        contenders: measurements of each contender, by name.
        failures: reasons of contenders that did not run, by name.
    """

    machine: str
    bundle: str
    pictures: int
    texts: int
    levels: int
    peaks: Mapping[str, float]
    cold_start: tuple[float, float]
    contenders: Mapping[str, Measured]
    failures: Mapping[str, str]

    @property
    def pairs(self) -> int:
        """Number of pairs per round."""
        return self.pictures * self.texts

    def seconds_a_pair(self, name: str) -> list[float]:
        """Latency per pair of a contender in seconds, encoders included, for each round."""
        it = self.contenders[name]
        rounds = zip(it.encode_seconds, it.score_seconds, strict=True)
        return [(encode + score) / self.pairs for encode, score in rounds]

    def latency(self, name: str) -> dict[str, float | int | None]:
        """Percentiles of a contender's requests in milliseconds, and the number of requests.

        Each is the latency of a request: the smallest one that this share of requests does not
        exceed. None where there are too few requests for one beyond it.
        """
        seconds = sorted(self.contenders[name].request_seconds)
        found: dict[str, float | int | None] = {"requests": len(seconds)}
        for percent in PERCENTILES:
            at = -(-percent * len(seconds) // 100) - 1  # nearest rank
            enough = len(seconds) * (100 - percent) >= 100
            found[f"p{percent}_ms"] = 1000 * seconds[at] if enough else None
        return found

    def to_json(self) -> str:
        """The whole report as indented JSON, with every contender's latency."""
        plain = to_plain(self)
        for name, it in plain["contenders"].items():
            it["latency"] = self.latency(name)
        return json.dumps(plain, indent=2) + "\n"

    def to_markdown(self) -> str:
        """Tables of speed, latency and factors, then cold start, failures and the machine."""
        factors = "" if (found := self.factors()) is None else markdown(*found)
        return "\n".join(
            [
                markdown(*self.speed()),
                markdown(*self.latencies()),
                factors,
                "".join(f"{it}\n" for it in self.remarks()),
                f"{self.machine}. {self.largest_product()}\n",
            ]
        )

    def remarks(self) -> list[str]:
        """Sentences on cold starts, on contenders that did not run, and on those refused."""
        return [
            f"Cold start of `dsd-trt score`, one image and one text: {self.cold_start[0]:.2f} s "
            f"the first time, {self.cold_start[1]:.2f} s after that.",
            *(f"{CONTENDERS[name]} did not run: {why}" for name, why in self.failures.items()),
            *(
                f"{CONTENDERS[name]} was measured, but is refused: {it.refused}"
                for name, it in self.contenders.items()
                if it.refused
            ),
        ]

    def largest_product(self) -> str:
        """Rates of the largest matrix product, by precision."""
        peaks = ", ".join(f"{2e-9 * peak:.0f} GFLOP/s in {p}" for p, peak in self.peaks.items())
        return f"Largest matrix product: {peaks}"

    def speed(self) -> Table:
        """Heads and rows of the table of speed and memory."""
        head = [
            f"{counted(self.pictures, 'image')} x {counted(self.texts, 'text')}, "
            f"{counted(self.levels, 'level')}",
            *("pairs/s (median)", "min to max", "ms per pass", "% of matmul peak", "peak memory"),
            *("private", "mapped", "Spearman"),
        ]
        return head, [self._speed(name) for name in CONTENDERS if name in self.contenders]

    def _speed(self, name: str) -> list[str]:
        it, seconds = self.contenders[name], self.seconds_a_pair(name)
        rates = [1 / each for each in seconds]
        pass_seconds = statistics.median(it.score_seconds) / it.passes
        peak = self.peaks.get(it.precision)
        share = "-"
        if peak:
            share = f"{100 * it.macs / it.passes / pass_seconds / peak:.0f}"
        private = mapped = "-"
        if it.memory is not None:
            private, mapped = (
                f"{mib:.0f} MiB" for mib in (it.memory.private_mib, it.memory.mapped_mib)
            )
        return [
            CONTENDERS[name],
            f"{statistics.median(rates):.3g}",
            f"{min(rates):.3g} to {max(rates):.3g}",
            f"{1000 * pass_seconds:.3g}",
            share,
            f"{it.peak_mib:.0f} MiB",
            private,
            mapped,
            self._agreement(name),
        ]

    def latencies(self) -> Table:
        """Latencies as a client sees them who sends one pair after another."""
        levels = counted(self.levels, "level")
        percents = [f"p{percent}" for percent in PERCENTILES]
        head = [f"ms per request: one image, one text, {levels}", *percents, "requests"]
        rows = []
        for name in CONTENDERS:
            if name in self.contenders:
                it = self.latency(name)
                times = (it[f"p{percent}_ms"] for percent in PERCENTILES)
                cells = ("-" if ms is None else f"{ms:.3g}" for ms in times)
                rows.append([CONTENDERS[name], *cells, str(it["requests"])])
        return head, rows

    def _agreement(self, name: str) -> str:
        """Rank correlation (Spearman) with PyTorch FP32, for contenders of the same score."""
        if REFERENCE not in self.contenders or name in ("naive", "diffusion-classifier"):
            return "-"
        if is_matrix(name):
            return "different score"
        ours = np.array(self.contenders[name].scores).ravel()
        return f"{spearman(ours, np.array(self.contenders[REFERENCE].scores).ravel()):.5f}"

    def factors(self) -> Table | None:
        """Speed-ups of our fastest contender in pair mode, split by cause; None without one."""
        ours = [name for name in RUNTIME if name in self.contenders and not is_matrix(name)]
        if not ours:
            return None
        best = min(ours, key=lambda name: statistics.median(self.seconds_a_pair(name)))
        mine, my_seconds = self.contenders[best], statistics.median(self.seconds_a_pair(best))
        head = [
            f"per pair, {CONTENDERS[best]} is faster than",
            *("by", "from fewer MACs", "from faster MACs"),
        ]
        rows = []
        for name, it in self.contenders.items():
            if name == best or is_matrix(name):
                continue
            whole = statistics.median(self.seconds_a_pair(name)) / my_seconds
            less = it.macs / mine.macs
            values = (whole, less, whole / less)
            rows.append([CONTENDERS[name], *(f"{it:.2f} x" for it in values)])
        return head, rows
