"""Stable Diffusion 2.1 base at its real size, random weights: minutes and gigabytes, when asked.

make test-size
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
from PIL import Image

from dsd_trt import read_bundle
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine.tensorrt.plan import plans
from dsd_trt.engines.macs import count_macs
from dsd_trt.engines.network import parse

pytestmark = [pytest.mark.real_size, pytest.mark.timeout(3600)]

TEXTS = ["a dog on a beach", "two cats under a table"]
MEMORY = 2.5  # times the FP16 weights


def _run(*arguments: object, cwd: Path) -> str:
    return _measure(*arguments, cwd=cwd)[0]


def _measure(*arguments: object, cwd: Path) -> tuple[str, int]:
    """What a command prints, and its own peak memory in bytes."""
    command = [str(Path(sys.executable).with_name("dsd-trt")), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        assert process.returncode == 0, err.read()
        return out.read(), 1024 * used.ru_maxrss


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "sd21-base"
    _run("make-random", "--family", "sd21-base", "--out", folder, cwd=folder.parent)
    return folder


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    """An FP16 bundle; that it is there means that it passed the parity check."""
    out = model.parent / "bundle"
    # Without BF16, whose comparison with FP32 has the memory of an engine.
    command = ["export", "--model", model, "--precision", "fp16", "--out", out]
    _, peak = _measure(*command, cwd=model.parent)
    weights = sum(path.stat().st_size for path in model.glob("*/*.safetensors"))
    print(f"\npeak memory {peak / 1e9:.2f} GB, {peak / weights:.2f} times the weights")
    assert weights < peak < MEMORY * weights
    return out


def test_weights_are_stored_once(model: Path, bundle: Path) -> None:
    weights = sum(path.stat().st_size for path in model.glob("*/*.safetensors"))
    stored = (bundle / "weights.data").stat().st_size
    # The VAE's decoder and the U-Net's layers behind the last cross-attention are left out.
    assert 0.9 * weights < stored <= weights
    graphs = [(bundle / graph.file).stat().st_size for graph in _graphs(bundle)]
    assert max(graphs) < 20e6


def test_parity_is_inside_the_bounds(bundle: Path) -> None:
    parity = json.loads((bundle / "bundle.json").read_text("utf-8"))["parity"]
    assert len(parity["runs"]) == 2  # as it is, and with FP16's rounding
    for run in parity["runs"]:
        assert run["score"]["spearman"] >= 0.999
        assert run["score"]["top1"] == 1


def test_both_engines_agree_on_images_and_texts(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (300, 400, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    scores = []
    for engine in ("onnxruntime", "openvino"):
        command = ["score", "0.png", "1.png", "texts.txt", "--bundle", bundle, "--levels", "0.4"]
        rows = json.loads(_run(*command, "--engine", engine, "-f", "json", cwd=tmp_path))
        scores.append(np.array([row["score"] for row in rows]))
    assert scores[0].shape == (4,)
    assert scores[0].std() > 1e-6
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_nothing_overflows(bundle: Path) -> None:
    rows = json.loads(_run("ranges", bundle, "--scenes", 1, "-f", "json", cwd=bundle.parent))
    assert all(row["fits"] for row in rows)
    cross = [row for row in rows if row["kind"] == "attention logits" and "attn2" in row["node"]]
    assert len(cross) == 16
    assert max(row["largest"] for row in cross) > 1


def test_tensorrt_rtx_builds_every_graph(bundle: Path) -> None:
    """In less than 12 GB; and as much arithmetic as is known of the U-Net, encoders included."""
    command = ["build", bundle, "--engine", "tensorrt-rtx", "--batch", "1,4,16"]
    out, peak = _measure(*command, cwd=bundle.parent)
    assert 1e9 < peak < 12e9
    assert "100.0%" in out  # of matrix products and convolutions, scored logits aside, in FP16
    assert {plan.sidecar.graph for plan in plans(bundle)} == read_bundle(
        bundle
    ).manifest.graphs.keys()
    # As the U-Net has them: 402 GMAC a pass, less what lies behind the last cross-attention.
    macs = {
        name: count_macs(parse(tensorrt_rtx, bundle / graph.file), graph) / 1e9
        for name, graph in read_bundle(bundle).manifest.graphs.items()
    }
    assert 385 < macs["pair_scorer"] < 402
    assert macs["image_encoder"] == pytest.approx(558, abs=1)
    assert macs["text_encoder"] == pytest.approx(22.6, abs=0.1)


def _graphs(bundle: Path) -> Iterable[Graph]:
    return read_bundle(bundle).manifest.graphs.values()
