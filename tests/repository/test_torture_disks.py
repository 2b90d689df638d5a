"""Every command that writes, on a full and on a read-only disk, and again once there is room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kills import Command, begin, differ
from small_disk import run_on_small_disk, small_disk
from torture import Figures
from writing_commands import COMMANDS

pytest_plugins = ("exported", "writing_commands")


__all__ = ["small_disk"]


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_without_room_it_says_so_and_with_room_it_ends(
    name: str,
    command: Command,
    small_disk: None,
    tmp_path: Path,
    figures: Figures,
) -> None:
    figures.look_for(
        "commands on a full or read-only disk", "lost", "left behind", "foreign exceptions", "wrong"
    )
    whole = begin(command, tmp_path / "whole")
    before = size_of(whole)
    command.run(whole)
    after = command.written(whole)
    grown = size_of(whole) - before
    shares = (0.3,) if command.long else (0, 0.3, 0.8)
    for free in (None, *(int(grown * share) // 4096 * 4096 for share in shares)):
        folder = begin(command, tmp_path / f"with-{free}")
        again = not (command.long and free is None)
        first, *later = run_on_small_disk(command.program, folder, free, again=again, needed=grown)
        case = f"{name}, {'read-only' if free is None else f'{free} bytes free'}"
        figures.ended("enough room" if first.code == command.code else "refused")
        broke = any("Traceback" in it.said for it in (first, *later))
        if broke or first.code not in (command.code, 1, 2, 4):
            figures.fault("foreign exceptions", f"{case}: {first.code}, {first.said[-900:]}")
        elif first.code != command.code and not re.search(NO_ROOM, first.said):
            figures.fault("wrong", f"{case} says: {first.said[-300:]}")
        # An index takes up its next table again, or removes it.
        if left := [it for it in first.names if re.search(r"(?<!images\.parquet)\.part$", it)]:
            figures.fault("left behind", f"{case}: {left}")
        for second in later:
            if second.code != command.code:
                figures.fault("lost", f"{case}, and then {second.code}: {second.said[-300:]}")
            elif (found := command.written(folder)) != after:
                figures.fault("lost", f"{case}: {differ(found, after)}")


NO_ROOM = r"No space left|Read-only file system|has room for"


def size_of(folder: Path) -> int:
    return sum(-(-it.stat().st_size // 4096) * 4096 for it in folder.rglob("*") if it.is_file())
