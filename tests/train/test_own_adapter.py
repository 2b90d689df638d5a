"""A model's own adapter: what `export` takes by default, every other command takes too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_adapter, write_checkpoint
from click.testing import CliRunner
from PIL import Image

from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError
from dsd_trt.train.diffusion.place import embedded_model_folder, find_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an adapter, and a table of labelled pairs."""
    place = tmp_path_factory.mktemp("own")
    model = write_checkpoint(place / "model")
    write_adapter(model / "adapter", model)
    rng = np.random.default_rng(0)
    rows = ["image,text,label"]
    for number, colour in enumerate(("red", "green", "blue")):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{number}.png")
        rows += [f"{number}.png,a {colour} circle,1", f"{number}.png,a {colour} square,0"]
    (place / "table.csv").write_text("\n".join(rows) + "\n")
    return place


def _eval(place: Path, out: Path, *more: str) -> tuple[Any, dict[str, float], str]:
    """Figures, scores by text, and what was said."""
    arguments = ["eval", str(place / "model"), "--data", "table.csv", "--root", str(place)]
    done = CliRunner().invoke(cli, [*arguments, "-f", "json", "--out", str(out), *more])
    assert done.exit_code == 0, done.output
    lines = (out / "scores.jsonl").read_text("utf-8").splitlines()
    scores = {row["text"]: row["score"] for row in map(json.loads, lines)}
    return json.loads(done.stdout), scores, done.stderr


def test_eval_of_a_model_uses_its_own_adapter(place: Path, tmp_path: Path) -> None:
    own, scores, said = _eval(place, tmp_path / "own")
    adapter = str(place / "model" / "adapter")
    assert own["adapter"] == adapter
    assert f"adapter: {adapter}, the model's own; --adapter none leaves it out" in said
    named, same, _ = _eval(place, tmp_path / "named", "--adapter", adapter)
    assert (named["figures"], same) == (own["figures"], scores)
    without, others, said = _eval(place, tmp_path / "none", "--adapter", "none")
    assert without["adapter"] is None
    assert "adapter: none" in said
    assert all(abs(others[text] - score) > 1e-6 for text, score in scores.items())


def test_eval_of_the_demonstrations_model_names_its_bundle(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InputError("that is enough")

    monkeypatch.setattr("dsd_trt.train.evaluation.by_model.by_model", stop)
    for model, named in (("shapes", True), (str(place / "model"), False)):
        arguments = ["eval", model, "--data", "table.csv", "--root", str(place)]
        done = CliRunner().invoke(cli, arguments)
        assert "that is enough" in done.output
        assert (f"its bundle: dsd-trt eval {EMBEDDED}" in done.output) is named


class TakenError(Exception):
    """What stands in for an export."""


@pytest.mark.parametrize("option", ["own", "none"])
def test_export_takes_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    taken = []

    def take(settings: Any, *_: object, **__: object) -> None:
        taken.append(settings.adapter)
        raise TakenError

    monkeypatch.setattr("dsd_trt.export.exporter.export_bundle", take)
    arguments = ["export", "--model", str(place / "model"), "--adapter", option]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, TakenError), done.output
    assert taken == [place / "model" / "adapter" if option == "own" else None]


def test_the_demonstration_has_one() -> None:
    assert find_place("shapes").own_adapter == embedded_model_folder() / "adapter"
