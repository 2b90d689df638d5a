"""How long an export takes and how much memory it needs, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import UNet2DConditionModel

from dsd_trt.commands.remaining import duration
from dsd_trt.export.bfloat16 import computes_bfloat16
from dsd_trt.export.probe import IMAGES, QUICK_IMAGES
from dsd_trt.export.recipe import Recipe

# Seconds on two cores of an AMD EPYC, measured on the demonstration and on SD 2.1 base's size.
_START = 6.0  # libraries, configs, hashes
_TRACING = 0.06  # per module without children
_ENCODERS = 75  # such modules of the encoders
_PASS = 0.012  # of a small U-Net, all of it PyTorch's overhead
_PASS_PER_WEIGHT = 1.0e-12  # per weight and latent pixel
_COMPARISON = 0.35  # a pass on ONNX Runtime, in passes of the reference
_PER_WEIGHT = 3.0e-8  # reading, hashing, writing, and compiling by one engine
_MEMORY = 0.6e9  # bytes without any weights
_MEMORY_PER_WEIGHT = 5.5  # bytes
_MEMORY_OF_OPENVINO = 12  # bytes per weight: it holds them twice in FP32
_BF16_PASSES = 64  # of a large U-Net; of a small one they are over in seconds
_BF16 = 1.7  # a pass on OpenVINO in FP32 and one in BF16, in passes of the reference


@dataclass(frozen=True)
class Estimate:
    """What an export takes on two cores that nothing else uses; good to a factor of two.

    Attributes:
        seconds: wall time of the whole command.
        memory: peak memory in bytes.
    """

    seconds: float
    memory: float

    def __str__(self) -> str:
        return f"{duration(self.seconds)} on two idle cores, {self.memory / 1e9:.2g} GB of memory"


def estimate(recipe: Recipe) -> Estimate:
    """Estimate an export from the size of its U-Net, before weights are read.

    Args:
        recipe: ingredients of the export.
    """
    settings, manifest = recipe.settings, recipe.manifest
    levels = 1 if recipe.quick else len(manifest.method.noise_levels.fractions)
    images = QUICK_IMAGES if recipe.quick else IMAGES
    compared = settings.verify != "none"
    return estimate_of(
        recipe.outline.unet,
        latent_pixels=recipe.checkpoint.latent_shape[1] * recipe.checkpoint.latent_shape[2],
        passes=images**2 * levels if compared else 1,
        graphs=1 if manifest.matrix is None else 2,
        runs=compared * (1 + (settings.precision == "fp16") + (settings.cuda_form is not None)),
        bf16=recipe.large and compared and recipe.measures_bfloat16 and computes_bfloat16(),
    )


def estimate_of(
    unet: UNet2DConditionModel,
    *,
    latent_pixels: int,
    passes: int,
    graphs: int,
    runs: int,
    bf16: bool = False,
) -> Estimate:
    """Estimate an export.

    Args:
        unet: U-Net of the checkpoint, which may have no weights in memory.
        latent_pixels: height times width of a latent.
        passes: number of passes of the reference.
        graphs: number of graphs that hold the U-Net.
        runs: number of comparisons with the reference.
        bf16: whether BF16 is compared with FP32 on OpenVINO, and the U-Net is large.
    """
    modules = sum(not any(module.children()) for module in unet.modules())
    weights = sum(weight.numel() for weight in unet.parameters())
    of_pass = _PASS + _PASS_PER_WEIGHT * weights * latent_pixels
    seconds = (
        _START
        + _TRACING * (_ENCODERS + graphs * modules)
        + passes * of_pass * (1 + _COMPARISON * runs)
        + _PER_WEIGHT * weights * (graphs + runs)
    )
    memory = _MEMORY + _MEMORY_PER_WEIGHT * weights
    if bf16:
        seconds += _BF16 * _BF16_PASSES * of_pass + 2 * _PER_WEIGHT * weights * graphs
        memory = max(memory, memory_of_bfloat16(weights))
    return Estimate(seconds, memory)


def memory_of_bfloat16(weights: int) -> float:
    """Peak memory of the comparison of BF16 with FP32, in bytes.

    Args:
        weights: number of the U-Net's weights.
    """
    return _MEMORY + _MEMORY_OF_OPENVINO * weights
