"""What BF16 does to scores, measured at export and told by card, `inspect` and the command."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle
from checkpoints import write_adapter
from exported import Exported
from processor import BF16

import dsd_trt.export.bfloat16 as measuring
from dsd_trt.bundle.bfloat16 import bfloat16_rows, in_words, with_bfloat16_rows
from dsd_trt.bundle.folder import Bundle, read_bundle, write_bundle
from dsd_trt.bundle.manifest import Bfloat16
from dsd_trt.errors import EngineError
from dsd_trt.export.adapt import replace_adapter
from dsd_trt.export.bfloat16 import measure_bfloat16, why_unmeasured
from dsd_trt.export.estimate import estimate_of
from dsd_trt.train.diffusion.families import FAMILIES
from dsd_trt.train.diffusion.skeleton import build_part

pytest_plugins = ("exported",)

MEASURED = Bfloat16(0.0013, 0.0011, "openvino 1.2 on CPU (some), bf16")


def test_an_export_measures_it_where_the_processor_can(exported_fp32: Exported) -> None:
    manifest = exported_fp32.bundle.manifest
    card = exported_fp32.bundle.path("MODEL_CARD.md").read_text("utf-8")
    assert bfloat16_rows(manifest) in card
    if not BF16:
        assert manifest.bfloat16 is None
        return
    assert manifest.bfloat16 is not None
    assert set(manifest.bfloat16) == {"pair", "matrix"}
    for measured in manifest.bfloat16.values():
        assert 0 < measured.difference < 0.1
        assert measured.engine.endswith(", bf16")


def test_each_mode_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    found: dict[str, Any] = {"pair": MEASURED, "matrix": replace(MEASURED, winner_changes=0.0612)}

    def compare(compared: Bundle, mode: str, *_: Any) -> Bfloat16:
        assert compared is bundle
        if isinstance(found[mode], EngineError):
            raise found[mode]
        measured: Bfloat16 = found[mode]
        return measured

    monkeypatch.setattr(measuring, "compare_bfloat16", compare)
    monkeypatch.setattr(measuring, "ENGINE", "openvino")  # opens everywhere
    assert measure_bfloat16(bundle) == found
    assert not caplog.messages  # the report says which are refused
    found["matrix"] = replace(MEASURED, winner_changes=math.nan)
    assert measure_bfloat16(bundle) == {"pair": MEASURED}
    assert "not compared with FP32 in matrix mode: scores are not finite" in caplog.text
    found["pair"] = EngineError("the engine failed")  # an export is not lost by it
    assert measure_bfloat16(bundle) is None
    assert "not compared with FP32 in pair mode: the engine failed" in caplog.text


def test_it_needs_engine_instructions_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 9999999 kB\nMemAvailable:    2000000 kB\n")
    monkeypatch.setattr(measuring, "_MEMORY", memory)
    monkeypatch.setattr(measuring, "ENGINE", "openvino")
    assert why_unmeasured(1e9) is None
    assert why_unmeasured(1e10) == "it takes 10 GB of memory, and 2 GB are free"
    memory.unlink()
    assert why_unmeasured(1e10) is None  # not told by this system
    monkeypatch.setattr(measuring, "ENGINE", "openvino-bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert "does not compute in BF16" in str(why_unmeasured(0))


def test_a_large_model_takes_more_time_and_memory_for_it() -> None:
    unet = build_part(FAMILIES["sd21-base"], "unet")
    without, measured = (
        estimate_of(unet, latent_pixels=64 * 64, passes=4, graphs=1, runs=1, bf16=it)
        for it in (False, True)
    )
    # 64 passes of 3.75 s in FP32 and 2.1 in BF16, two cores of an AMD EPYC; FP32 took 10.1 GB.
    assert measured.seconds - without.seconds == pytest.approx(64 * (3.75 + 2.1), rel=0.5)
    assert measured.memory == pytest.approx(10.1e9, rel=0.3)


def test_another_adapter_has_other_figures(
    fed_fp32: Bundle, checkpoint_folder: Path, tmp_path: Path
) -> None:
    other = write_adapter(tmp_path / "other", checkpoint_folder, seed=7)
    assert "| BF16 |" in fed_fp32.path("MODEL_CARD.md").read_text("utf-8")
    fed = _with_figures(fed_fp32, tmp_path / "fed")
    assert "0.13 %" in fed.path("MODEL_CARD.md").read_text("utf-8")
    replace_adapter(fed, other, tmp_path / "adapted")
    adapted = read_bundle(tmp_path / "adapted")
    assert adapted.manifest.bfloat16 is None
    card = adapted.path("MODEL_CARD.md").read_text("utf-8")
    assert "| BF16 | not compared with FP32" in card
    assert "0.13 %" not in card


def test_rows_of_a_card(bundle: Bundle) -> None:
    none = bundle.manifest
    told = replace(none, bfloat16={"pair": replace(MEASURED, winner_changes=0.02)})
    row = "| BF16 | changes the winner with probability 2 %, and is refused; scores differ by up to"
    assert bfloat16_rows(told).startswith(row)
    own = "| BF16 | 0.3 | a row of the checkpoint's own card\n"
    card = f"| a | b |\n{bfloat16_rows(told)}| c | d |\n\n{own}"
    assert with_bfloat16_rows(card, none) == f"| a | b |\n{bfloat16_rows(none)}| c | d |\n\n{own}"
    assert with_bfloat16_rows(with_bfloat16_rows(card, none), told) == card
    assert with_bfloat16_rows(own, told) == own  # an older bundle's
    assert "refused" not in in_words(MEASURED)


def _with_figures(bundle: Bundle, folder: Path) -> Bundle:
    """A copy that says what BF16 does to its scores."""
    shutil.copytree(bundle.folder, folder)
    manifest = replace(bundle.manifest, bfloat16={"pair": MEASURED})
    card = folder / "MODEL_CARD.md"
    card.write_text(with_bfloat16_rows(card.read_text("utf-8"), manifest), "utf-8")
    return write_bundle(folder, manifest)
