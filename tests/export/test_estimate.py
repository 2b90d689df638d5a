"""Estimates of an export, against the times and the memory that exports took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dsd_trt.export.estimate import Estimate, estimate, estimate_of
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.skeleton import build_part

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)


@pytest.mark.parametrize(
    ("family", "small", "passes", "runs", "seconds", "gigabytes"),
    [  # measured; docs/status.md has the first one
        ("sd21-base", False, 4, 2, 168, 5.9),
        ("sd15", True, 1024, 1, 45, 0.65),
    ],
)
def test_it_is_what_exports_took_within_a_factor_of_two(
    family: str, small: bool, passes: int, runs: int, seconds: float, gigabytes: float
) -> None:
    unet = build_part(tiny(FAMILIES[family]) if small else FAMILIES[family], "unet")
    pixels = unet.config["sample_size"] ** 2
    found = estimate_of(unet, latent_pixels=pixels, passes=passes, graphs=1, runs=runs)
    assert seconds / 2 < found.seconds < seconds * 2
    assert gigabytes / 1.3 < found.memory / 1e9 < gigabytes * 1.3


def test_a_full_check_of_a_large_model_takes_hours() -> None:
    unet = build_part(FAMILIES["sd21-base"], "unet")
    full = estimate_of(unet, latent_pixels=64 * 64, passes=1024, graphs=1, runs=1)
    assert full.seconds > 3600


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "about 10 seconds"),
        (44, "about 40 seconds"),
        (91, "about 2 minutes"),
        (5399, "about 90 minutes"),
        (7201, "about 2 hours"),
    ],
)
def test_words(seconds: float, words: str) -> None:
    assert str(Estimate(seconds, 1.26e9)) == f"{words} on two idle cores, 1.3 GB of memory"


def test_the_command_says_it_before_it_begins(exported_fp16: Exported) -> None:
    _, said = exported_fp16.said
    expected = f"this takes {estimate(exported_fp16.load())}"
    assert said.index(expected) < said.index("Tracing image_encoder")
