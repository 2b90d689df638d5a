"""Reliability diagrams as SVG, drawn without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from dsd_trt.commands.calibration_report import Report
from dsd_trt.commands.figures import pairs_of_images
from dsd_trt.errors import counted
from dsd_trt.files.whole import write_whole
from dsd_trt.metrics import Bin

_SIDE, _LEFT, _TOP = 360, 62, 56  # of the square from 0 to 1, in pixels
_WIDTH, _HEIGHT = _LEFT + _SIDE + 28, _TOP + _SIDE + 92
_COLOURS = {"before": "#b0753a", "after": "#33658f"}


def diagram(path: Path, report: Report) -> None:
    """Draw the share of positives over the mean probability of each bin, before and after.

    Raises:
        DsdError: the file cannot be written.
    """
    write_whole(path, _svg(report))


def _svg(report: Report) -> str:
    series = [("before", report.bins_before), ("after", report.bins)]
    shown = [(name, bins) for name, bins in series if bins]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 24, f"Reliability of {Path(report.bundle).name}, {report.mode} mode", 15),
        _text(_LEFT, 42, pairs_of_images(report.after)),
        *_axes(),
    ]
    for place, (name, bins) in enumerate(shown):
        parts += _series(bins, _COLOURS[name])
        parts += _legend(place, name, report)
    return "\n".join([*parts, "</svg>\n"])


def _axes() -> list[str]:
    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" '
        'stroke="#888"/>',
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#888" '
        'stroke-dasharray="5 4"/>',
    ]
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts.append(_text(_x(tick), _TOP + _SIDE + 16, f"{tick:g}", anchor="middle"))
        parts.append(_text(_LEFT - 7, _y(tick) + 4, f"{tick:g}", anchor="end"))
    parts.append(_text(_x(0.5), _TOP + _SIDE + 36, "mean probability of a bin", anchor="middle"))
    turned = f'transform="rotate(-90 18 {_y(0.5)})"'
    parts.append(_text(18, _y(0.5), "share of positives", anchor="middle", more=turned))
    return parts


def _series(bins: Sequence[Bin], colour: str) -> list[str]:
    points = " ".join(f"{_x(it.probability)},{_y(it.positives)}" for it in bins)
    most = max(it.pairs for it in bins)
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
        *(
            f'<circle cx="{_x(it.probability)}" cy="{_y(it.positives)}" '
            f'r="{2.5 + 3.5 * math.sqrt(it.pairs / most):.1f}" fill="{colour}" fill-opacity="0.8">'
            f"<title>{counted(it.pairs, 'pair')}: mean probability {it.probability:.3f}, "
            f"{it.positives:.3f} positive</title></circle>"
            for it in bins
        ),
    ]


def _legend(place: int, name: str, report: Report) -> list[str]:
    summary = report.before if name == "before" else report.after
    quality = summary and summary.calibration
    error = quality.error.value if quality else math.nan
    how = ", cross-validated" if name == "after" and report.cross_validated else ""
    y = _TOP + _SIDE + 58 + 18 * place
    return [
        f'<circle cx="{_LEFT + 6}" cy="{y - 4}" r="5" fill="{_COLOURS[name]}"/>',
        _text(_LEFT + 18, y, f"{name}: calibration error {error:.3f}{how}"),
    ]


def _text(
    x: float, y: float, text: str, size: int = 12, anchor: str = "start", more: str = ""
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" {more}>'
        f"{escape(text)}</text>"
    )


def _x(value: float) -> float:
    return round(_LEFT + _SIDE * value, 1)


def _y(value: float) -> float:
    return round(_TOP + _SIDE * (1 - value), 1)
