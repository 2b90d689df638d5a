"""The noise schedule a checkpoint was trained with, from its scheduler's configuration.

A scheduler is made for sampling. Only its noise at each timestep and the U-Net's prediction type
matter here. Schedulers of other kinds of diffusion (flow matching, EDM) are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import diffusers

from dsd_trt.train.diffusion.families import Prediction
from dsd_trt.train.diffusion.fields import Fields, require_known, unexpected
from dsd_trt.train.diffusion.kinds import COUNT, ELSEWHERE, FLAG_OR_NONE, POSITIVE

KNOWN: tuple[str, ...] = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
"""Classes of diffusers whose `betas` are the noise schedule a model was trained with."""

_SAMPLING = "for sampling alone"
_FLOW = "for flow matching alone, which use_flow_sigmas enables"
SCHEDULER = Fields(
    read={
        "num_train_timesteps": COUNT,
        "beta_start": POSITIVE,
        "beta_end": POSITIVE,
        "beta_schedule": ELSEWHERE,
        "trained_betas": ELSEWHERE,
        "rescale_betas_zero_snr": FLAG_OR_NONE,
        "prediction_type": ELSEWHERE,
    },
    assumed={
        "timestep_type": ("discrete",),  # else the U-Net is conditioned on the noise level
        "use_flow_sigmas": (False, None),
        "predict_epsilon": (True, None),  # older name of prediction_type
    },
    without_effect={
        "variance_type": "for sampling; a U-Net that predicts a variance has more out_channels",
        "tensor_format": "always PyTorch",
        "flow_shift": _FLOW,
        "use_dynamic_shifting": _FLOW,
        "time_shift_type": _FLOW,
        "shift_terminal": _FLOW,
        **dict.fromkeys(
            (
                *("clip_sample", "clip_sample_range", "thresholding", "sample_max_value"),
                *("dynamic_thresholding_ratio", "timestep_spacing", "steps_offset"),
                *("set_alpha_to_one", "skip_prk_steps", "interpolation_type"),
                *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
                *("use_lu_lambdas", "sigma_min", "sigma_max", "final_sigmas_type"),
                *("algorithm_type", "solver_type", "solver_order", "solver_p", "predict_x0"),
                *("lower_order_final", "euler_at_final", "lambda_min_clipped"),
                *("disable_corrector", "predictor_order", "corrector_order", "tau_func"),
                *("original_inference_steps", "timestep_scaling", "noise_sampler_seed", "eta"),
            ),
            _SAMPLING,
        ),
    },
)
# Classes that need scipy, torchsde or half a second to construct. DDPMScheduler replaces them,
# which has the same betas, with these defaults. None of them has rescale_betas_zero_snr.
_STANDS_FOR: Mapping[str, Mapping[str, Any]] = {
    "LMSDiscreteScheduler": {},
    "DPMSolverSDEScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2DiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2AncestralDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
}


def read_schedule(config: Mapping[str, Any], name: str | None = None) -> Any:
    """The scheduler that a configuration describes.

    Args:
        config: content of the scheduler's `scheduler_config.json`.
        name: name of the scheduler's class; None takes the configuration's.

    Returns:
        A scheduler of diffusers, whose `alphas_cumprod` is abar, (T,), and whose
        `config["prediction_type"]` is a `Prediction`.

    Raises:
        ValueError: the class has no schedule like Stable Diffusion's, or a field has an
            unsupported value; the message gives the supported ones.
    """
    name = name or config.get("_class_name")
    if name not in KNOWN:
        raise ValueError(
            f"it is of the class {name}, which has no noise schedule as Stable Diffusion has; "
            f"known are {', '.join(KNOWN)}"
        )
    require_known(config, SCHEDULER)
    fields = {field: config[field] for field in sorted(SCHEDULER.read) if field in config}
    stands_for = _STANDS_FOR.get(name)
    kind = getattr(diffusers, name if stands_for is None else "DDPMScheduler")
    knows_zero_snr = "rescale_betas_zero_snr" in inspect.signature(kind.__init__).parameters
    # The field was saved by another class; ignoring it would change the schedule.
    if (stands_for is not None or not knows_zero_snr) and fields.pop(
        "rescale_betas_zero_snr", False
    ):
        raise ValueError(
            f"rescale_betas_zero_snr is True, which {name} does not know: name a class that does, "
            "such as DDIMScheduler, in scheduler_config.json and model_index.json"
        )
    prediction = fields.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise ValueError(unexpected("prediction_type", prediction, get_args(Prediction)))
    try:
        scheduler = kind(**{**(stands_for or {}), **fields})
    except Exception as error:  # the library validates little, so anything may be raised
        raise ValueError(
            f"no {name} can be built: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    _require_schedule(scheduler, fields)
    return scheduler


def _require_schedule(scheduler: Any, fields: Mapping[str, Any]) -> None:
    """Refuse betas that are no noise schedule."""
    abar = scheduler.alphas_cumprod
    steps = fields.get("num_train_timesteps", len(abar))
    if len(abar) != steps:
        raise ValueError(
            f"trained_betas are {len(abar)}, expected are num_train_timesteps, {steps}"
        )
    betas = scheduler.betas
    fits = len(betas) > 1 and bool(((betas >= 0) & (betas <= 1)).all())  # false of NaN
    if not fits or not 0 < abar[0] < 1:
        raise ValueError(
            "its betas are no noise schedule: expected are num_train_timesteps numbers between 0 "
            "and 1"
        )
