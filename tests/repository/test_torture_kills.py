"""Every command that writes, killed at random moments and run again, ends as an undisturbed run.

After each kill what is there is whole; at the end nothing unfinished is left beside it. Kills of
`score` with --resume are in test_resume.py, of folders in test_folders.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import KINDS, Command, kill_often
from torture import Figures
from writing_commands import COMMANDS

pytest_plugins = ("exported", "writing_commands")


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_been(
    name: str, command: Command, tmp_path: Path, figures: Figures
) -> None:
    seen = (*KINDS, "half-written") if command.replaces else KINDS
    figures.look_for(f"kills of `{name}` at random moments", *seen)
    kill_often(command, tmp_path, figures)
