"""`make bench-against`: its arithmetic on given figures, and what it takes for the working tree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import against


def test_ratio_is_the_median_of_the_rounds_own() -> None:
    # A machine that slows down from round to round: the ratio of medians would be 0.75.
    row = against.Row("start", "s", "lower", [1.0, 2.0, 4.0], [1.5, 1.5, 2.0])

    summary = row.summary()

    assert summary["before"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert summary["after"] == {"median": 1.5, "min": 1.5, "max": 2.0}
    assert summary["ratio"] == {"median": 0.75, "min": 0.5, "max": 1.5}
    assert summary["rounds"] == {"before": [1.0, 2.0, 4.0], "after": [1.5, 1.5, 2.0]}
    json.dumps(summary)


def test_table_has_medians_ranges_and_the_ratio() -> None:
    row = against.Row("pairs", "pairs/s", "higher", [100.0, 80.0], [110.0, 100.0])

    line = against.table([row], "abc1234", "working tree").splitlines()[-1]

    assert line == (
        "| pairs, pairs/s | 90 | 80 to 100 | 105 | 100 to 110 | 1.175 | 1.100 to 1.250 |"
    )


def test_builds_take_turns_and_warm_up_uncounted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, after = (against.Build(name, tmp_path) for name in ("before", "after"))
    measured: list[str] = []

    def of(
        measurement: against.Measurement, build: against.Build, folder: Path
    ) -> dict[str, float | None]:
        if measurement.work != "pairs":
            raise against.MeasurementError("not here")
        measured.append(build.name)
        return {"rate": float(len(measured)), "processor_rate": 1.0, "peak_mib": None}

    monkeypatch.setattr(against.Measurement, "of", of)

    rows = list(against.compare(before, after, tmp_path, ["onnxruntime"], rounds=2, starts=1))

    assert measured == ["before", "after", "before", "after", "after", "before"]
    assert [row.unit for row in rows] == ["pairs/s", "pairs"]  # memory was not told
    assert rows[0].before == [3.0, 6.0]
    assert rows[0].after == [4.0, 5.0]


def test_working_tree_has_what_is_not_committed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(
            ["git", *own], cwd=tmp_path, check=True, capture_output=True, encoding="utf-8"
        ).stdout

    monkeypatch.setattr(against, "ROOT", tmp_path)
    git("init", "--quiet")
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "kept").write_text("1")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one")
    assert against.working_tree() == git("rev-parse", "HEAD^{tree}").strip()

    (tmp_path / "kept").write_text("2")
    (tmp_path / "new").touch()
    (tmp_path / "ignored").touch()
    tree = against.working_tree()

    assert git("ls-tree", "--name-only", tree).split() == [".gitignore", "kept", "new"]
    assert git("cat-file", "blob", f"{tree}:kept") == "2"
    assert git("diff", "--cached") == ""  # nothing was staged


def test_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-I", against.__file__, "--help"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )

    assert "REF" in shown.stdout
