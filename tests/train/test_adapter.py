"""The few-shot adapter on disk, and the model it insists on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import HEADS, LAYERS, TEXT_WIDTH, write_adapter, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsd_trt.errors import ModelError
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.scoring.adapter import Adapter, resize_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", model)


def test_what_is_saved_is_read_back(folder: Path, tmp_path: Path) -> None:
    adapter = replace(Adapter.load(folder), training={"steps": 7})
    adapter.save(tmp_path / "again")
    again = Adapter.load(tmp_path / "again")
    assert (again.a, again.b, again.base) == (adapter.a, adapter.b, adapter.base)
    assert again.prompt_config == adapter.prompt_config
    assert again.training == {"steps": 7}
    assert again.prompt_state.keys() == adapter.prompt_state.keys()
    for name, value in adapter.prompt_state.items():
        assert torch.equal(again.prompt_state[name], value)
    assert again.head_weights is not None
    assert adapter.head_weights is not None
    for one, other in zip(again.head_weights, adapter.head_weights, strict=True):
        assert torch.equal(one, other)


def test_its_weights_are_plain_safetensors_of_the_sizes_the_model_needs(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    up = [t for name, t in tensors.items() if name.endswith(".up")]
    down = [t for name, t in tensors.items() if name.endswith(".down")]
    assert len(up) == len(down) == 2 * LAYERS  # keys and values
    assert {t.shape[1] for t in down} == {TEXT_WIDTH}
    assert sum(name.startswith("head_weights.") for name in tensors) == LAYERS


def test_the_model_it_was_trained_on_is_accepted_and_another_refused(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    adapter = Adapter.load(folder)
    adapter.require_base(read_checkpoint(model).weight_hashes)
    other = write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"trained on another model: .*safetensors differs"):
        build_scoring_unet(read_checkpoint(other), adapter)


def test_head_weights_of_chosen_layers_sum_to_one_in_their_old_proportions(folder: Path) -> None:
    values = [torch.arange(1.0, HEADS + 1) + 10 * layer for layer in range(LAYERS)]
    adapter = replace(Adapter.load(folder), head_weights=values)
    first, last = adapter.weights_of([0, LAYERS - 1], [HEADS, HEADS])
    assert float(first.sum() + last.sum()) == pytest.approx(1)
    assert torch.allclose(first / first[0], values[0] / values[0][0])
    assert float(last[0] / first[0]) == pytest.approx(float(values[-1][0] / values[0][0]))


def test_layers_that_the_adapter_gives_no_weight_are_refused(folder: Path) -> None:
    values = [torch.zeros(HEADS), *(torch.ones(HEADS) for _ in range(LAYERS - 1))]
    adapter = replace(Adapter.load(folder), head_weights=values)
    with pytest.raises(ModelError, match="gives the scored layers no weight"):
        adapter.weights_of([0], [HEADS])


def test_head_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    adapter = Adapter.load(folder)
    with pytest.raises(ModelError, match="layer 9 is not among them"):
        adapter.weights_of([9], [HEADS])
    with pytest.raises(ModelError, match="do not fit the model's heads"):
        adapter.weights_of([0], [HEADS + 1])


def test_damage_is_told_with_the_folder(folder: Path) -> None:
    weights, config = folder / "adapter.safetensors", folder / "adapter.json"
    whole, text = weights.read_bytes(), config.read_text("utf-8")
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot read an adapter from"):
        Adapter.load(folder)
    weights.write_bytes(whole)
    for broken in ("{", json.dumps({**json.loads(text), "format": 99}), "{}"):
        config.write_text(broken, "utf-8")
        with pytest.raises(ModelError):
            Adapter.load(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="cannot read an adapter from"):
        Adapter.load(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"other": torch.ones(1)}, "holds other, which no adapter has"),
        ({"x" * 10**6: torch.ones(1)}, f"holds {'x' * 80}, which no adapter has"),
        ({"\x1b[31m": torch.ones(1)}, r"holds \\x1b\[31m, which no adapter has"),
        (
            {"head_weights.0": torch.full((HEADS,), torch.nan)},
            "head_weights.0 holds NaN, inf",
        ),
        ({"head_weights.0": torch.ones(HEADS, dtype=torch.int8)}, "head_weights.0 holds NaN"),
        ({"merged.a.up": torch.ones(2, 2)}, "holds merged.a.up without merged.a.down"),
    ],
)
def test_tensors_that_no_adapter_has_are_named(
    folder: Path, changes: dict[str, Tensor], complaint: str
) -> None:
    weights, config = folder / "adapter.safetensors", folder / "adapter.json"
    save_file({**load_file(weights), **changes}, weights)
    plain = json.loads(config.read_text("utf-8"))
    plain["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    config.write_text(json.dumps(plain), "utf-8")
    with pytest.raises(ModelError, match=complaint):
        Adapter.load(folder)


def test_prompts_of_another_model_are_named(folder: Path, model: Path) -> None:
    adapter = Adapter.load(folder)
    first = min(adapter.prompt_state)
    cut = {**adapter.prompt_state, first: adapter.prompt_state[first][:1]}
    for state, complaint in (({"a": torch.ones(1)}, "set of prompts lacks"), (cut, "is \\(1,")):
        with pytest.raises(ModelError, match=f"the adapter: .*{complaint}"):
            build_scoring_unet(read_checkpoint(model), replace(adapter, prompt_state=state))


def test_a_score_is_taken_at_the_levels_its_adapter_was_trained_at(
    folder: Path, model: Path
) -> None:
    checkpoint, adapter = read_checkpoint(model), Adapter.load(folder)
    assert build_scoring_unet(checkpoint).levels == (0.2, 0.4, 0.6, 0.8)
    assert build_scoring_unet(checkpoint, adapter).levels == (0.2, 0.8)
    assert build_scoring_unet(checkpoint, adapter, levels=(0.5,)).levels == (0.5,)
    unknown = replace(adapter, levels=())
    assert build_scoring_unet(checkpoint, unknown).levels == (0.2, 0.4, 0.6, 0.8)


def test_images_are_resized_as_those_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    plain = Adapter.load(folder)
    replace(plain, resize="bicubic-stretch-through-224").save(tmp_path / "fair")
    fair = Adapter.load(tmp_path / "fair")
    assert resize_of(fair) == "bicubic-stretch-through-224"
    assert resize_of(plain) == resize_of(None) == "bicubic-stretch"
    assert resize_of(plain, "bicubic-stretch-through-224") == "bicubic-stretch-through-224"
    assert resize_of(fair, "bicubic-stretch") == "bicubic-stretch"
    path = folder / "adapter.json"  # as written before there was a choice
    config = json.loads(path.read_text("utf-8"))
    del config["resize"]
    path.write_text(json.dumps(config))
    assert Adapter.load(folder).resize == "bicubic-stretch"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("head_mode", "x", "'head_mode' must be one of 'uniform', 'calibrated'"),
        ("score", "x", "'score' must be one of 'attention'"),
        ("mode", "x", "'mode' must be one of 'pair'"),
        ("resize", "x", "'resize' must be one of 'bicubic-stretch'"),
        ("a", float("nan"), "'a' must be a finite number"),
        ("matrix_b", float("inf"), "'matrix_b' must be a finite number"),
        ("denoising_weight", float("nan"), "'denoising_weight' must be a finite number"),
        ("levels", [0.2, 1.5], "'levels' must be of numbers between 0 and 1"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(
    folder: Path, field: str, value: object, message: str
) -> None:
    path = folder / "adapter.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, field: value}), "utf-8")
    with pytest.raises(ModelError, match=message):
        Adapter.load(folder)


def test_head_weights_that_sum_to_nothing_are_refused(folder: Path) -> None:
    zeros = [torch.zeros(HEADS) for _ in range(LAYERS)]
    replace(Adapter.load(folder), head_weights=zeros).save(folder)
    with pytest.raises(ModelError, match="the head weights sum to 0"):
        Adapter.load(folder)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_its_files_have_the_mode_that_the_user_s_umask_leaves(
    folder: Path, tmp_path: Path, umask: int
) -> None:
    adapter, before = Adapter.load(folder), os.umask(umask)
    try:
        adapter.save(tmp_path / "saved")
        adapter.save(tmp_path / "saved")  # also where files are replaced
    finally:
        os.umask(before)
    modes = {it.name: it.stat().st_mode & 0o777 for it in (tmp_path / "saved").iterdir()}
    assert modes == dict.fromkeys(("adapter.json", "adapter.safetensors"), 0o666 & ~umask)
