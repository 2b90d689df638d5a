"""What the answers before and after training tell: the standard error, and what may be chance."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest
from checkpoints import picture_questions, write_checkpoint

from dsd_trt.train.fewshot import training
from dsd_trt.train.fewshot.comparison import Comparison, WorseError, clearly_worse
from dsd_trt.train.fewshot.settings import FewShotSettings


def changed(gained: int, lost: int, same: int = 0, *, held_out: bool = True) -> Comparison:
    """A comparison with some answers gained, lost, and right before and after."""
    before = (False,) * gained + (True,) * (lost + same)
    after = (True,) * gained + (False,) * lost + (True,) * same
    return Comparison(held_out, before, after)


def test_chance_alone_decides_rarely() -> None:
    """Exactly: each changed answer is a gain or a loss with the same probability."""
    for changes in range(1, 60):
        ways = [comb(changes, gained) for gained in range(changes + 1)]
        decided = [changed(gained, changes - gained).decided for gained in range(changes + 1)]
        wrong = sum(n for n, it in zip(ways, decided, strict=True) if it) / 2**changes
        assert wrong < 0.075
        if changes >= 20:
            assert wrong > 0.025  # and not never


def test_six_questions_decide_nothing_unless_almost_all_are_gained() -> None:
    assert changed(2, 0, 4).telling == 3
    assert not changed(2, 0, 4).decided
    assert not changed(4, 0, 2).decided
    assert changed(5, 0, 1).decided
    assert not changed(0, 0, 6).decided
    assert changed(0, 0, 6).telling == 3


def test_the_line_says_what_it_tells() -> None:
    line = changed(2, 0, 3).line()
    assert line.startswith("validation questions answered right: 3 of 5 before (60.0%), 5 after")
    assert line.endswith("Of 5 answers, a difference below 3 may be chance, this one included")
    assert "below 6 may be chance, and this one is larger" in changed(7, 0, 90).line()
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
    before, after = (True,) * lost + (False,) * gained, (False,) * lost + (True,) * gained
    chance = sum(comb(lost + gained, k) for k in range(lost, lost + gained + 1))
    assert (chance / 2 ** (lost + gained) < 0.0228) is worse
    assert clearly_worse(after, before) is worse
    assert not clearly_worse(before, after)


def test_the_report_has_the_standard_error_also_of_a_refused_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "model")
    settings = FewShotSettings(steps=1, questions=2, negatives=1, rank=1, hidden=2)
    questions = picture_questions(["a red circle", "a blue square", "a green star", "a ring"])
    monkeypatch.setattr(training, "compare", lambda *_, **__: changed(0, 3, 1))
    with pytest.raises(WorseError, match=r"standard error, 1\.7\. .*below 4 may be chance"):
        training.train_adapter(str(model), questions, settings, tmp_path / "out", {}, 0.25)
    found = json.loads((tmp_path / "out" / "report.json").read_text())["comparison"]
    assert found["standard_error"] == pytest.approx(3**0.5)
    assert (found["lost"], found["telling"], found["decided"]) == (3, 4, False)
    assert found["after"] == [False, False, False, True]
    training.train_adapter(
        str(model), questions, settings, tmp_path / "out", {}, 0.25, allow_worse=True
    )
    record = json.loads((tmp_path / "out" / "adapter.json").read_text())["training"]
    assert record["standard_error"] == found["standard_error"]
