"""Every command that writes, twice at once: one does, the other is told or goes on from there."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from kills import LONGEST, begin, differ, said
from torture import SLICE, Figures, scaled
from writing_commands import COMMANDS

pytest_plugins = ("exported", "writing_commands")


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once_end_as_one(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(
        "two processes that write the same", "lost", "doubled", "left behind", "foreign exceptions"
    )
    command = COMMANDS[name](request)
    if command.long and SLICE:
        pytest.skip("too long for a slice")
    whole = begin(command, tmp_path / "whole")
    command.run(whole)
    after = command.written(whole)
    draw = random.Random(name)
    for number in range(1 if command.long else scaled(10, 2)):
        folder = begin(command, tmp_path / "twice")
        running = [command.start(folder)]
        time.sleep(draw.choice((0, 0, 0.05, 0.3)))
        running.append(command.start(folder))
        ended = []
        for process in running:
            process.communicate(timeout=LONGEST)
            ended.append(process.returncode)
        figures.ended(" and ".join(map(str, sorted(ended))))
        if not {*ended} <= {command.code, 2} or command.code not in ended:
            figures.fault("foreign exceptions", f"{name}, {number}: {ended} {said(folder)}")
        elif (found := command.written(folder)) != after:
            kind = "left behind" if found.keys() - after.keys() else "lost"
            figures.fault(kind, f"{name}, {number}: {differ(found, after)}")
