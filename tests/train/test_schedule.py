"""Noise schedules as schedulers' configs give them, against the classes themselves."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.diffusion.schedule import KNOWN, SCHEDULER, read_schedule
from dsd_trt.train.scoring.noise import noise_levels

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# They have betas, and are of no Stable Diffusion: video, and filling in holes.
ELSEWHERE = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "RePaintScheduler"}
every_class = pytest.mark.parametrize("name", KNOWN)


@cache
def _arguments() -> dict[str, dict[str, Any]]:
    """Arguments of every scheduler with betas, from its source: some cannot be imported here."""
    found = {}
    for path in (Path(diffusers.__file__).parent / "schedulers").glob("scheduling_*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Scheduler"):
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                        names = [argument.arg for argument in item.args.args[1:]]
                        defaults = dict(
                            zip(reversed(names), reversed(item.args.defaults), strict=False)
                        )
                        found[node.name] = {
                            name: ast.unparse(default) for name, default in defaults.items()
                        }
    return {name: fields for name, fields in found.items() if "beta_start" in fields}


def _abar(
    start: float = 0.00085,
    end: float = 0.012,
    schedule: str = "scaled_linear",
    zero_snr: bool = False,
) -> Any:
    """The schedule in FP64, (1000,); of zero terminal SNR as Lin et al. rescale it."""
    if schedule == "linear":
        betas = np.linspace(start, end, 1000)
    else:
        betas = np.linspace(start**0.5, end**0.5, 1000) ** 2
    root = np.cumprod(1 - betas) ** 0.5
    if zero_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def test_every_scheduler_with_betas_and_every_field_is_known() -> None:
    classes = _arguments()
    assert classes.keys() == {*KNOWN, *ELSEWHERE}
    for name in KNOWN:
        assert classes[name].keys() - SCHEDULER.known == set(), name
    kinds = (SCHEDULER.read.keys(), SCHEDULER.assumed.keys(), SCHEDULER.without_effect.keys())
    assert sum(map(len, kinds)) == len(SCHEDULER.known)


@every_class
def test_a_class_is_read_by_its_own_defaults(name: str) -> None:
    said = _arguments()[name]
    abar = read_schedule({"_class_name": name}).alphas_cumprod
    start, end = float(said["beta_start"]), float(said["beta_end"])
    expected = _abar(start, end, ast.literal_eval(said["beta_schedule"]))
    assert np.allclose(abar, expected, rtol=1e-4, atol=0)


@every_class
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_class_is_read_by_its_fields(name: str, zero_snr: bool) -> None:
    config = {
        **STABLE_DIFFUSION,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing",
        "_diffusers_version": "0.30.0",
    }
    if zero_snr and "rescale_betas_zero_snr" not in _arguments()[name]:
        with pytest.raises(ValueError, match=f"rescale_betas_zero_snr is True, which {name} does"):
            read_schedule(config, name)
        return
    scheduler = read_schedule(config, name)
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert np.allclose(scheduler.alphas_cumprod, _abar(zero_snr=zero_snr), atol=1e-6)
    kind = getattr(diffusers, name)
    if "KDPM2" not in name and not hasattr(kind, "_backends"):  # slow, or not to be built
        assert torch.equal(scheduler.alphas_cumprod, kind.from_config(config).alphas_cumprod)


def test_stable_diffusion_s_noise_and_the_same_without_signal_at_its_end() -> None:
    for zero_snr, at_800 in ((False, 0.0369), (True, 0.0176)):
        config = {**STABLE_DIFFUSION, "rescale_betas_zero_snr": zero_snr}
        abar = read_schedule(config, "DDIMScheduler").alphas_cumprod
        assert round(float(abar[800]), 4) == at_800


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_every_kind_of_betas_is_read(kind: str) -> None:
    config = {"beta_schedule": kind, "num_train_timesteps": 50}
    expected = diffusers.DDPMScheduler(beta_schedule=kind, num_train_timesteps=50)
    abar = read_schedule(config, "DDPMScheduler").alphas_cumprod
    assert torch.equal(abar, expected.alphas_cumprod)
    levels = noise_levels(abar, (4, 2, 2), (0.01, 0.2, 0.6, 0.999))
    assert levels.timesteps.tolist() == [0, 10, 30, 49]  # t = round(s T), none past the last
    assert torch.isfinite(levels.signal).all()
    assert torch.isfinite(levels.spread).all()


def test_trained_betas_are_read() -> None:
    betas = [0.1, 0.2, 0.5]
    config = {"trained_betas": betas, "num_train_timesteps": 3}
    abar = read_schedule(config, "PNDMScheduler").alphas_cumprod
    assert np.allclose(abar, [0.9, 0.72, 0.36])
    with pytest.raises(ValueError, match=r"trained_betas are 3, .* num_train_timesteps, 1000"):
        read_schedule({**config, "num_train_timesteps": 1000}, "PNDMScheduler")


@pytest.mark.parametrize(
    "name",
    [
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CosineDPMSolverMultistepScheduler",
        "KarrasVeScheduler",
        "IPNDMScheduler",
        "UnCLIPScheduler",
        "CogVideoXDDIMScheduler",
        "SCMScheduler",
        "OurOwnScheduler",
        None,
    ],
)
def test_another_kind_of_diffusion_is_refused_by_its_class(name: str | None) -> None:
    with pytest.raises(ValueError, match=rf"of the class {name}, which has no .*DDPMScheduler"):
        read_schedule({"_class_name": name, **STABLE_DIFFUSION})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "sample"),
        ("prediction_type", "flow_prediction"),
        ("prediction_type", None),
        ("use_flow_sigmas", True),
        ("timestep_type", "continuous"),
        ("predict_epsilon", False),
        ("snr_shift_scale", 3.0),
        ("beta_schedule", "own"),
        ("beta_schedule", None),
        ("beta_start", "0.1"),
        ("beta_start", float("nan")),
        ("beta_end", 2.0),
        ("beta_start", -0.1),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", 1),
        ("trained_betas", []),
    ],
)
def test_a_field_that_cannot_be_followed_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}|betas|no DPMSolverMultistepScheduler"):
        read_schedule({**STABLE_DIFFUSION, field: value}, "DPMSolverMultistepScheduler")


def test_of_a_folder_the_index_names_the_class_as_for_diffusers(
    tmp_path: Path, few_words: None
) -> None:
    folder = write_random_model(tmp_path / "model", tiny(FAMILIES["sd15"]))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text('{"_class_name": "LCMScheduler"}', "utf-8")
    assert np.allclose(read_checkpoint(folder).alphas_cumprod, _abar(), rtol=1e-4)
    for name in ("PNDMScheduler", "FlowMatchEulerDiscreteScheduler"):
        index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", name]}
        (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
        if name == "PNDMScheduler":  # and its defaults
            expected = _abar(0.0001, 0.02, "linear")
            assert np.allclose(read_checkpoint(folder).alphas_cumprod, expected, rtol=1e-4)
        else:
            with pytest.raises(ModelError, match=f"scheduler: it is of the class {name}"):
                read_checkpoint(folder)
