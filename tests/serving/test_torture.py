"""Commands and servers of the Triton environment, killed, reloaded and ended while they work."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import KINDS, Command, kill_often
from torture import Figures

from dsd_trt import Bundle


@pytest.mark.torture
def test_a_killed_triton_command_ends_as_if_nothing_had_been(
    bundle: Bundle, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for("kills of `triton` at random moments", *KINDS)
    command = Command(
        ["triton", bundle.folder, "out"],
        kills=16,
        modules="dsd_trt.engines.triton.repository",
        replaces=True,
    )
    kill_often(command, tmp_path, figures)
