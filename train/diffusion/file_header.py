"""Metadata of a single-file checkpoint.

Trainers write metadata (Stability AI's model specification, "modelspec.*"). As many loaders ignore
it, they also add tensors whose presence carries the information ("v_pred"). Both are read, and
contradictions are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dsd_trt.train.diffusion.families import FAMILIES, Family, Prediction, TextTower
from dsd_trt.train.diffusion.skeleton import build_scheduler
from dsd_trt.train.diffusion.weights import open_weights

# Tensors with the noise schedule, as abar and as the ratio of noise to signal.
_ABAR, _SIGMAS = "alphas_cumprod", "denoiser.sigmas"

_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_V, _ZERO_SNR = "v_pred", "ztsnr"
_SPEC, _KOHYA = "modelspec.", "ss_"
_STEPS = f"{_SPEC}timestep_range"
# Both names are in use; the first is the specification's.
_PREDICTION = (f"{_SPEC}prediction_type", f"{_SPEC}predict_key")
_PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
# Families by the prefix of the architecture's name; longer prefixes first.
_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "stable-diffusion-v1": ("sd15",),
    "stable-diffusion-v2-512": ("sd21-base", "sd-turbo"),
    "stable-diffusion-v2-768": ("sd21",),
    "stable-diffusion-v2": ("sd21-base", "sd21", "sd-turbo"),
    "stable-diffusion-xl": ("sdxl",),
}
# Architectures of an adapter ("/lora"), or of a model with inputs other than a text.
_OTHERS = re.compile("/|inpaint|refiner|edit|depth|unclip|upscal|pix2pix")
_TOLERANCE = 2e-3  # tolerance for an abar that was stored in half precision


def read_file_header(path: Path) -> FileHeader:
    """Read the metadata of a single-file checkpoint.

    Raises:
        ModelError: the file is truncated or damaged.
    """
    with open_weights(path) as file:
        names = frozenset(file.keys())
        schedule = None
        if _ABAR in names:
            schedule = file.get_tensor(_ABAR).float()
        elif _SIGMAS in names:
            sigmas = file.get_tensor(_SIGMAS).float().sort().values
            schedule = 1 / (1 + sigmas.square()) if sigmas.any() else sigmas
        empty = frozenset(name for name in names if 0 in file.get_slice(name).get_shape())
        return FileHeader(file.metadata() or {}, names, empty, schedule)


@dataclass(frozen=True)
class FileHeader:
    """Metadata of a single-file checkpoint.

    Attributes:
        metadata: metadata of the file's header, by key.
        tensors: names of all tensors.
        empty: names of the tensors without elements, whose presence carries information.
        schedule: abar of the file's noise schedule, (T,); None if it has none.
    """

    metadata: Mapping[str, str]
    tensors: frozenset[str]
    empty: frozenset[str]
    schedule: Tensor | None

    def families(self) -> tuple[str, ...]:
        """Families that the file's architecture allows; all of them if it names none.

        Raises:
            ValueError: the architecture is not of a known family.
        """
        said = self.metadata.get(f"{_SPEC}architecture")
        if said is None:
            return tuple(FAMILIES)
        for start, families in _ARCHITECTURES.items():
            if said.lower().startswith(start) and not _OTHERS.search(said.lower()):
                return families
        raise ValueError(
            f"{_SPEC}architecture is {said!r}, expected a text-to-image model's: "
            f"{', '.join(_ARCHITECTURES)}"
        )

    def specialise(self, family: Family) -> Family:
        """The family with the changes that the file's metadata specifies.

        Args:
            family: published family of the file.

        Raises:
            ValueError: the metadata contradicts itself or is not supported.
        """
        if found := [name for name in _EDM if name in self.tensors]:
            raise ValueError(
                f"it holds the tensor {found[0]!r}, which says that it was trained as EDM: its "
                "noise is not Stable Diffusion's"
            )
        if unknown := sorted(self.empty - {_V, _ZERO_SNR}):
            raise ValueError(
                f"it holds the empty tensor {unknown[0]!r}, whose meaning is unknown; "
                f"known are {_V} and {_ZERO_SNR}"
            )
        steps = self.metadata.get(_STEPS)
        if steps is not None and steps.replace(" ", "") not in ("0,999", "0,1000"):
            raise ValueError(f"{_STEPS} is {steps!r}, expected '0,999': all of the noise")
        prediction = self._prediction() or family.prediction
        specialised = replace(
            family,
            prediction=prediction,
            resolution=self._resolution() or family.resolution,
            text=self._text(family),
        )
        specialised = replace(specialised, zero_snr=self._zero_snr(specialised))
        return family if specialised == family else specialised

    def _prediction(self) -> Prediction | None:
        said: dict[str, Prediction] = {}
        for field in _PREDICTION:
            if (value := self.metadata.get(field)) is None:
                continue
            if value.lower() not in _PREDICTIONS:
                raise ValueError(f"{field} is {value!r}, expected 'epsilon' or 'v'")
            said[f"{field} {value!r}"] = _PREDICTIONS[value.lower()]
        if _V in self.tensors:
            said[f"the tensor {_V!r}"] = "v_prediction"
        if self._trained_with("v_parameterization"):
            said[f"{_KOHYA}v_parameterization"] = "v_prediction"
        if len(set(said.values())) > 1:
            raise ValueError(f"it contradicts itself: {' and '.join(said)}")
        return next(iter(said.values()), None)

    def _trained_with(self, option: str) -> bool:
        """Whether kohya's trainer recorded one of its options as enabled.

        Raises:
            ValueError: the option's value is not a boolean.
        """
        value = self.metadata.get(f"{_KOHYA}{option}", "False")
        if value.lower() not in ("true", "false", "none"):
            raise ValueError(f"{_KOHYA}{option} is {value!r}, expected 'True' or 'False'")
        return value.lower() == "true"

    def _zero_snr(self, family: Family) -> bool:
        """Whether the noise schedule ends without signal, by the metadata or the schedule."""
        said = _ZERO_SNR in self.tensors or self._trained_with("zero_terminal_snr")
        if self.schedule is None or not self.schedule.any():  # all zeros: an unused buffer
            return said
        known = {
            zero_snr: build_scheduler(replace(family, zero_snr=zero_snr)).alphas_cumprod
            for zero_snr in (False, True)
        }
        for zero_snr, abar in known.items():
            if self.schedule.shape == abar.shape and torch.allclose(
                self.schedule, abar, rtol=0, atol=_TOLERANCE
            ):
                return zero_snr or said
        raise ValueError(
            f"its noise schedule ({_ABAR} or {_SIGMAS}) is not Stable Diffusion's, and not the "
            "same rescaled to end without signal"
        )

    def _resolution(self) -> int | None:
        """Side of the training images, in pixels; None if the metadata does not give it."""
        field = f"{_SPEC}resolution"
        if (value := self.metadata.get(field)) is None:
            return None
        found = re.fullmatch(r"\s*(\d+)(?:\s*[x,]\s*(\d+))?\s*", value.lower())
        if not found or int(found[1]) != int(found[2] or found[1]) or not int(found[1]):
            raise ValueError(f"{field} is {value!r}, expected a square such as '512x512'")
        side = int(found[1])
        if side % 64:
            raise ValueError(f"{field} is {value!r}, expected a multiple of 64")
        return side

    def _text(self, family: Family) -> tuple[TextTower, ...]:
        """Sizes of the text encoders, without layers whose output is not used."""
        field = f"{_SPEC}encoder_layer"
        if (value := self.metadata.get(field)) is None:
            return family.text
        expected = family.encoder_layer
        if value == str(expected):
            return family.text
        if expected == 1 and value.isdecimal() and 1 < int(value) <= family.text[0].layers:
            (tower,) = family.text
            return (replace(tower, layers=tower.layers - int(value) + 1),)
        raise ValueError(f"{field} is {value!r}, expected '{expected}'")
