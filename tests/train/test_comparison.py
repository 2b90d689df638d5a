"""What the answers before and after training tell: what is worse, and what may be chance."""

from __future__ import annotations

import json
from itertools import product
from math import comb
from pathlib import Path
from statistics import NormalDist

import pytest
from checkpoints import picture_questions, write_checkpoint

from dsd_trt.train.fewshot import training
from dsd_trt.train.fewshot.comparison import Comparison, WorseError, by_chance
from dsd_trt.train.fewshot.settings import FewShotSettings


def changed(gained: int, lost: int, same: int = 0, *, held_out: bool = True) -> Comparison:
    """A comparison with some answers gained, lost, and right before and after."""
    before = (False,) * gained + (True,) * (lost + same)
    after = (True,) * gained + (False,) * lost + (True,) * same
    return Comparison(held_out, before, after)


def sides(changes: int, lost: int) -> int:
    """Ways in which chance alone loses so many of some changed answers or more, of 2^changes."""
    return sum(comb(changes, k) for k in range(lost, changes + 1))


def test_the_sign_test_counts_heads_of_throws() -> None:
    for lost, gained in product(range(7), repeat=2):
        throws = list(product((0, 1), repeat=lost + gained))
        as_many = sum(sum(throw) >= lost for throw in throws) / len(throws)
        assert by_chance(lost, gained) == pytest.approx(as_many)
    # Of many, it is the normal law with a correction of half an answer; a float has no 2^20000.
    normal = 1 - NormalDist(10_000, 20_000**0.5 / 2).cdf(10_177 - 0.5)
    assert by_chance(10_177, 9_823) == pytest.approx(normal, rel=0.02)


def test_chance_alone_decides_rarely() -> None:
    """Exactly: each changed answer is a gain or a loss with the same probability."""
    for changes in range(1, 200):
        ways = [comb(changes, gained) for gained in range(changes + 1)]
        decided = [changed(gained, changes - gained).decided for gained in range(changes + 1)]
        wrong = sum(n for n, it in zip(ways, decided, strict=True) if it) / 2**changes
        assert wrong < 2 * 0.023
        if changes >= 20:
            assert wrong > 0.015  # and not never


def test_a_difference_decides_if_it_is_as_large_as_said() -> None:
    for gained, lost in product(range(25), repeat=2):
        found = changed(gained, lost, 20)
        assert found.decided == (abs(gained - lost) >= found.telling)
        assert found.decided == (changed(lost, gained).clearly_worse or found.clearly_worse)


def test_six_questions_decide_nothing_unless_all_are_gained_or_lost() -> None:
    assert changed(0, 0, 6).telling == 6
    assert not changed(0, 0, 6).decided
    for gained in range(7):
        assert changed(gained, 0, 6 - gained).decided == (gained == 6)
        assert changed(0, gained, 6 - gained).decided == (gained == 6)


def test_the_line_says_what_it_tells() -> None:
    line = changed(2, 0, 3).line()
    assert line.startswith("validation questions answered right: 3 of 5 before (60.0%), 5 after")
    assert line.endswith("Of 5 answers, any difference may be chance")
    line = changed(3, 1, 3).line()
    assert line.endswith("Of 7 answers, a difference below 6 may be chance, this one included")
    assert "below 7 may be chance, and this one is larger" in changed(7, 0, 90).line()
    assert changed(0, 0, 90).line().endswith("Of 90 answers, a difference below 6 may be chance")
    learned = changed(7, 0, 90, held_out=False).line()
    assert "may be chance" not in learned
    assert learned.endswith("How it answers other questions, these do not tell")


@pytest.mark.parametrize(
    ("gained", "lost", "worse"),
    [
        (0, 1, False),
        (0, 2, False),  # 1 of 4 by chance
        (0, 3, True),
        (2, 4, False),
        (1, 5, True),
        (440, 460, False),  # 20 of 30
        (440, 475, True),  # 35 of 30.2
    ],
)
def test_worse_is_beyond_one_standard_error(gained: int, lost: int, worse: bool) -> None:
    assert changed(gained, lost).worse is worse


def test_chance_alone_is_seldom_called_worse() -> None:
    """Of equally good adapters, at most 16 % are refused, and of many answers not far fewer."""
    for changes in range(1, 400):
        worse = (n for n in range(changes + 1) if changed(changes - n, n).worse)
        refused = sum(comb(changes, lost) for lost in worse) / 2**changes
        assert refused < 0.16
        assert refused > 0.1 or changes < 40


@pytest.mark.parametrize(("lost", "gained", "worse"), [(5, 0, False), (6, 0, True), (8, 1, True)])
def test_clearly_worse_is_beyond_two_standard_errors(lost: int, gained: int, worse: bool) -> None:
    assert (sides(lost + gained, lost) / 2 ** (lost + gained) < 0.0228) is worse
    assert changed(gained, lost).clearly_worse is worse
    assert not changed(lost, gained).clearly_worse


def test_the_report_has_the_sign_test_also_of_a_refused_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "model")
    settings = FewShotSettings(steps=1, questions=2, negatives=1, rank=1, hidden=2)
    questions = picture_questions(["a red circle", "a blue square", "a green star", "a ring"])
    monkeypatch.setattr(training, "compare", lambda *_, **__: changed(0, 3, 1))
    with pytest.raises(WorseError, match=r"loses so many in 12\.5% of .*any difference may"):
        training.train_adapter(str(model), questions, settings, tmp_path / "out", {}, 0.25)
    found = json.loads((tmp_path / "out" / "report.json").read_text())["comparison"]
    assert found["by_chance"] == 1 / 8
    assert (found["lost"], found["telling"], found["decided"]) == (3, 6, False)
    assert found["after"] == [False, False, False, True]
    training.train_adapter(
        str(model), questions, settings, tmp_path / "out", {}, 0.25, allow_worse=True
    )
    record = json.loads((tmp_path / "out" / "adapter.json").read_text())["training"]
    assert record["compared"]["by_chance"] == found["by_chance"]
