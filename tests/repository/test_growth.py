"""tools/make_growth.py: its slopes and its table, on growth whose law is known."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import make_growth
from make_growth import Point, Setting, draw, measure_all, settings, slope, table


def grown(setting: Setting) -> Point:
    """Seconds and MiB by a law of one's own."""
    walks = setting.images * setting.levels * setting.resolution**4
    seconds = walks * (setting.texts if setting.mode == "pair" else 1) / setting.threads**0.5
    return Point(setting, 1e-10 * seconds, 100.0 * (setting.resolution / 64) ** 2)


@pytest.fixture
def found() -> list[tuple[str, Point]]:
    return [(axis, grown(setting)) for axis, setting in settings(4, quick=False)]


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_a_slope_is_the_exponent(power: float) -> None:
    xs = [1, 2, 5, 30]
    assert slope(xs, [7 * x**power for x in xs]) == pytest.approx(power)


def test_the_table_states_slopes_and_points(found: list[tuple[str, Point]], tmp_path: Path) -> None:
    text = table("a machine", found)
    for row in (
        "| pair | images | 4 - 32 | 1.00 | 0.00 |",
        "| pair | texts | 2 - 16 | 1.00 | 0.00 |",
        "| matrix | texts | 2 - 16 | 0.00 | 0.00 |",
        "| matrix | levels | 1 - 4 | 1.00 | 0.00 |",
        "| pair | resolution | 64 - 128 | 4.00 | 2.00 |",
        "| matrix | threads | 1 - 4 | -0.50 | 0.00 |",
    ):
        assert row in text
    assert "with 4 threads. Each row varies one of these." in text
    # 16 images, 8 texts, 4 levels, 128^4 pixels, on 4 threads.
    assert f"| pair | resolution | 128 | {1e-10 * 16 * 8 * 4 * 128**4 / 2:.3g} | 400 |" in text
    assert text.endswith("\na machine.\n")
    draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        stdout = b"[1.5, 200.0]"

    measured: list[str] = []

    def run(command: list[str], **_: object) -> Run:
        measured.append(command[command.index("--point") + 1])
        if len(measured) == 5:
            raise KeyboardInterrupt
        return Run()

    monkeypatch.setattr(make_growth, "export", lambda work, resolution: work)
    monkeypatch.setattr("make_growth.subprocess.run", run)
    with pytest.raises(KeyboardInterrupt):
        measure_all(tmp_path, 3, quick=True)
    _, points = measure_all(tmp_path, 3, quick=True)
    assert {point.seconds for _, point in points} == {1.5}
    assert measured[4] == measured[5]  # the one that was not finished
    assert len(measured) == len({*measured}) + 1
    everything = {json.dumps(asdict(point.setting)) for _, point in points}
    assert everything == {*measured}
