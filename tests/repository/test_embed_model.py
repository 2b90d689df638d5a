"""tools/embed_model.py: an imitated adapter is embedded with pair mode as it was, to the bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsd_trt.train.commands.imitate import imitate
from dsd_trt.train.diffusion.place import embedded_model_folder
from dsd_trt.train.scoring.adapter import Adapter

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from embed_model import IMITATE, PAIR_MODE, with_token_heads

OWN = embedded_model_folder() / "adapter"
FILES = ("adapter.json", "adapter.safetensors")


@pytest.fixture(scope="module")
def own() -> Adapter:
    return Adapter.load(OWN)


def test_what_is_embedded_already_stays_to_the_byte(own: Adapter, tmp_path: Path) -> None:
    """A copy as `dsd-trt imitate` writes it, in FP32, is stored as the embedded adapter is."""
    own.save(tmp_path / "imitated")
    assert (tmp_path / "imitated" / FILES[1]).read_bytes() != (OWN / FILES[1]).read_bytes()
    with_token_heads(OWN, tmp_path / "imitated").save(tmp_path / "embedded")
    for name in FILES:
        assert (tmp_path / "embedded" / name).read_bytes() == (OWN / name).read_bytes()


def test_token_heads_lists_and_their_record_are_the_imitated_ones(
    own: Adapter, tmp_path: Path
) -> None:
    assert own.lists is not None
    heads = {name: value + 1 for name, value in own.token_heads.items()}
    record = {"steps": -1, "imitation": {"images": 7}}
    lists = replace(own.lists, slope=own.lists.slope + 1)
    replace(own, token_heads=heads, lists=lists, training=record).save(tmp_path)
    taken = with_token_heads(OWN, tmp_path)
    assert taken.lists == lists
    assert taken.training == {**own.training, "imitation": {"images": 7}}
    for name, value in heads.items():
        assert torch.equal(taken.token_heads[name], value)


def next_number(adapter: Adapter, name: str) -> object:
    """An attribute of the adapter, changed as little as it can be."""
    value = getattr(adapter, name)
    if name == "prompt_state":
        first = min(value)
        nearest = torch.nextafter(value[first], torch.full_like(value[first], 9.0))
        return {**value, first: nearest}
    if name == "head_weights":
        return [torch.nextafter(value[0], torch.tensor(9.0)), *value[1:]]
    if name == "levels":
        return value[:-1]
    assert isinstance(value, float)
    return value * (1 + 1e-15)


@pytest.mark.parametrize("name", ["prompt_state", "head_weights", "a", "b", "levels"])
def test_another_pair_mode_is_refused(name: str, own: Adapter, tmp_path: Path) -> None:
    assert name in PAIR_MODE
    changed: dict[str, object] = {name: next_number(own, name)}
    replacing: Callable[..., Adapter] = replace
    replacing(own, **changed).save(tmp_path)
    with pytest.raises(ValueError, match=f"its {name} differs. Imitate that adapter"):
        with_token_heads(OWN, tmp_path)


def test_an_adapter_without_lists_is_refused(own: Adapter, tmp_path: Path) -> None:
    replace(own, token_heads={}, relations={}, lists=None).save(tmp_path)
    with pytest.raises(ValueError, match="has no lists: make an adapter that has, with dsd-trt im"):
        with_token_heads(OWN, tmp_path)


def test_the_command_that_it_runs_and_advises_exists(tmp_path: Path) -> None:
    name, *options = IMITATE
    assert name == imitate.name
    context = imitate.make_context(name, [*options, "--model", "shapes", "--out", str(tmp_path)])
    assert context.params["data"] == "shapes-edits"
