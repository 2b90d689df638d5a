"""Every command that writes, twice at once: one does, the other is told or goes on from there."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from kills import LONGEST, Command, begin, differ, said
from torture import Figures, scaled
from writing_commands import COMMANDS, write_photos

from dsd_trt import Bundle

pytest_plugins = ("exported", "writing_commands")


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once_end_as_one(
    name: str, command: Command, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(
        "two processes that write the same", "lost", "doubled", "left behind", "foreign exceptions"
    )
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
        figures.ended("exit codes " + " and ".join(map(str, sorted(ended))))
        if not {*ended} <= {command.code, 2} or command.code not in ended:
            figures.fault("foreign exceptions", f"{name}, {number}: {ended} {said(folder)}")
        elif (found := command.written(folder)) != after:
            kind = "left behind" if found.keys() - after.keys() else "lost"
            figures.fault(kind, f"{name}, {number}: {differ(found, after)}")


@pytest.mark.torture
def test_two_that_fill_one_cache_get_their_scores(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """Compiled graphs, batch sizes and the journals of what goes to a pipe lie in the cache."""
    figures.look_for(
        "two processes that fill one cache", "lost", "doubled", "left behind", "foreign exceptions"
    )
    command = Command(
        ["score", "photos", "texts.txt", "-f", "jsonl", "--tune", "--bundle", bundle.folder],
        kills=0,
        modules="dsd_trt.scorer",
        prepare=lambda folder: write_photos(folder, 40),
    )
    folder = begin(command, tmp_path / "inputs")
    images, texts = 40, len((folder / "texts.txt").read_text().splitlines())
    for number in range(scaled(10, 2)):
        monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / f"cache-{number}"))
        other = replace(command, arguments=(*command.arguments, "--levels", "0.4"))
        running = [it.start(folder) for it in (command, other if number % 2 else command)]
        ended = [
            (process.communicate(timeout=LONGEST)[0], process.returncode) for process in running
        ]
        codes = sorted(code for _, code in ended)
        figures.ended("exit codes " + " and ".join(map(str, codes)))
        if codes not in ([0, 0], [0, 2]):
            figures.fault("foreign exceptions", f"{number}: {said(folder)}")
        for rows in (printed.splitlines() for printed, code in ended if code == 0):
            pairs = Counter((row["image"], row["text"]) for row in map(json.loads, rows))
            if len(pairs) != images * texts:
                figures.fault("lost", f"{number}: {len(pairs)} pairs")
            if max(pairs.values()) > 1:
                figures.fault("doubled", f"{number}: {pairs.most_common(1)}")
        left = [it.name for it in (tmp_path / f"cache-{number}").rglob("*.part")]
        if left or any((tmp_path / f"cache-{number}" / "scores").glob("*")):
            figures.fault("left behind", f"{number}: {left or 'a journal'}")
