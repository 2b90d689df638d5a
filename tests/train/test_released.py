"""The released research code's checkpoints and score, against products and hooks of our own."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel
from torch import Tensor

from dsd_trt import Scorer
from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError, ModelError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.diffusion.families import FAMILIES, tiny, unet_config
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.scoring.layers import last_of_each_stage
from dsd_trt.train.scoring.released import read_released

REAL = Path(__file__).parents[3] / "shared" / "data" / "released-checkpoint" / "pytorch_model.bin"
TEXTS = ["a red circle", "two dogs"]
LAYERS = {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, few_words: None) -> Path:
    folder = tmp_path_factory.mktemp("released") / "tiny-sd21"
    return write_random_model(folder, tiny(FAMILIES["sd21"]), seed=5)


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the released code writes it, for the tiny model."""
    unet = read_checkpoint(model).empty_unet()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path, attn in unet.named_modules():
        if not path.endswith((".attn1", ".attn2")):
            continue
        for key, layer in LAYERS.items():
            up, down = attn.get_submodule(layer).weight.shape
            for part, shape in (("down", (4, down)), ("up", (up, 4))):
                values = 0.1 * torch.randn(shape, generator=generator)
                tensors[f"{path}.processor.{key}.{part}.weight"] = values
    file = tmp_path_factory.mktemp("lora") / "pytorch_model.bin"
    torch.save(tensors, file)
    return file


def _merged_by_hand(checkpoint: Checkpoint, lora: Path) -> UNet2DConditionModel:
    unet = checkpoint.read_unet()
    tensors = torch.load(lora, weights_only=True)
    with torch.no_grad():
        for key in tensors:
            if key.endswith(".up.weight"):
                path, _, rest = key.partition(".processor.")
                layer = unet.get_submodule(path).get_submodule(LAYERS[rest.split(".")[0]])
                layer.weight += tensors[key] @ tensors[key.replace(".up.", ".down.")]
    return unet


# Reading


@pytest.mark.skipif(not REAL.exists(), reason="../shared is not here")
def test_every_tensor_of_the_real_file_has_its_place_in_stable_diffusion_2() -> None:
    """Against W + up @ down, written out, on a U-Net of full size, weights drawn as needed."""
    adapter = read_released(REAL)
    raw = torch.load(REAL, map_location="cpu", weights_only=True)
    assert len(adapter.merged) == len(raw) == 256
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(FAMILIES["sd21"]))
    unet.half().to_empty(device="cpu")
    torch.manual_seed(0)
    expected = {}
    for path, attn in unet.named_modules():
        if not path.endswith((".attn1", ".attn2")):
            continue
        for key, layer in LAYERS.items():
            weight = attn.get_submodule(layer).weight
            torch.nn.init.normal_(weight, std=0.02)
            up, down = (raw.pop(f"{path}.processor.{key}.{p}.weight") for p in ("up", "down"))
            expected[f"{path}.{layer}.weight"] = (weight.detach().float() + up @ down).half()
    assert not raw  # all 256 are accounted for
    adapter.merge_into(unet)
    for name, weight in expected.items():
        assert torch.equal(unet.get_parameter(name), weight), name


def test_an_adapter_for_another_model_is_refused(lora: Path, tmp_path: Path) -> None:
    adapter = read_released(lora)
    smaller = write_random_model(tmp_path / "sdxl", tiny(FAMILIES["sdxl"]))
    with pytest.raises(ModelError, match="the adapter changes "):
        build_scoring_unet(read_checkpoint(smaller), adapter)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: {**t, "lambda": torch.zeros(4, 4)}, "'lambda' is not what the released code"),
        (lambda t: {k: v for k, v in t.items() if k != sorted(t)[0]}, " without "),
        (lambda t: {k: v[None] for k, v in t.items()}, "is not what the released code writes"),
        (lambda t: {**t, sorted(t)[0]: torch.zeros(7, 32)}, "different rank"),
        (lambda t: {}, "holds no tensors"),
        (lambda t: list(t.values()), "does not hold tensors by name"),
    ],
)
def test_what_the_released_code_does_not_write_is_refused(
    lora: Path, tmp_path: Path, change: Any, complaint: str
) -> None:
    torch.save(change(torch.load(lora, weights_only=True)), tmp_path / "changed.bin")
    with pytest.raises(InputError, match=complaint):
        read_released(tmp_path / "changed.bin")


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"hello world\nfoo\n", b"...", b"<html>not found</html>", b"PK\x03\x04", None],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    lora: Path, tmp_path: Path, content: bytes | None
) -> None:
    whole = lora.read_bytes()
    (tmp_path / "junk.bin").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError) as refused:
        read_released(tmp_path / "junk.bin")
    said = str(refused.value).removeprefix(f"{tmp_path / 'junk.bin'} ")
    assert said == (
        "cannot be loaded as a checkpoint of tensors alone: it is damaged, cut short or "
        "something else. Give the pytorch_model.bin that the released code wrote"
    )


class Malice:
    """Leaves a file behind when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_file_is_refused_and_does_nothing(tmp_path: Path) -> None:
    torch.save({"mid_block": Malice(tmp_path / "harm")}, tmp_path / "new.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"mid_block": Malice(tmp_path / "harm")}))
    # Of a pickle that it did not write, PyTorch reads the old instructions alone.
    for name, reason in (("new.bin", r"asks for (posix|nt)\.mkdir, which"), ("old.bin", "damaged")):
        with pytest.raises(InputError, match=reason) as refused:
            read_released(tmp_path / name)
        assert "weights_only" not in str(refused.value)  # PyTorch's advice to run it
    assert not (tmp_path / "harm").exists()


# The score


def _by_hooks(unet: UNet2DConditionModel, z_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """Mean over the last attn2 of each block of the mean logsumexp of its logits; prediction."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    last = [
        block.attentions[-1].transformer_blocks[-1].attn2
        for block in blocks
        if getattr(block, "attentions", None)
    ]
    seen: list[Tensor] = []
    for attn in last:
        for layer in (attn.to_q, attn.to_k):
            layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    error = unet(z_t, t, states).sample
    scores = []
    for attn, query, key in zip(last, seen[::2], seen[1::2], strict=True):
        q, k = (
            x[0].unflatten(1, (attn.heads, -1)).transpose(0, 1) for x in (query, key)
        )  # (heads, tokens, d)
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores.append(logits.exp().sum(dim=2).log().mean())
    for attn in last:
        for layer in (attn.to_q, attn.to_k):
            layer._forward_hooks.clear()
    return torch.cat([torch.stack(scores).mean()[None], error.flatten()])


@pytest.mark.slow  # exports
def test_a_bundle_serves_the_released_score_of_each_pair(
    model: Path, lora: Path, tmp_path: Path
) -> None:
    read_released(lora).save(tmp_path / "adapter")
    bundle, _ = export_bundle(
        ExportSettings(str(model), tmp_path / "adapter", levels=(0.3,)), tmp_path / "bundle"
    )
    method = bundle.manifest.method
    assert (method.score, method.pooling) == ("released", "logits")

    checkpoint = read_checkpoint(model)
    assert method.score_layers == last_of_each_stage(checkpoint.unet)
    unet = _merged_by_hand(checkpoint, lora)
    scoring = build_scoring_unet(checkpoint, levels=(0.3,))  # for its noise alone
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = np.zeros((2, 2))
    with torch.no_grad():
        states, _ = encode_texts(checkpoint, [*TEXTS, ""])
        for i in range(2):
            z = checkpoint.image_encoder(torch.from_numpy(pictures[i : i + 1]))
            level = torch.tensor([0])
            z_t = scoring.add_noise(z, level)
            target = scoring.signal[0] * scoring.eps[0] - scoring.spread[0] * z[0]

            def parts(text: int) -> tuple[float, float]:
                both = _by_hooks(unet, z_t, scoring.timesteps[level], states[text][None])  # noqa: B023
                error = (both[1:] - target.flatten()).square().mean().sqrt()  # noqa: B023
                return float(both[0]), float(error)

            for j in range(2):
                f, error = parts(j)
                expected[i, j] = f + parts(-1)[1] - error
    assert expected.std() > 1e-3
    scores = Scorer.load(bundle.folder, engine="onnxruntime").score(list(pictures), TEXTS).scores
    assert np.abs(scores - expected).max() < 1e-4


def test_an_imported_adapter_is_ablated_with_the_attention_score(
    model: Path, lora: Path, tmp_path: Path
) -> None:
    read_released(lora).save(tmp_path / "adapter")
    command = ["ablate", "--model", str(model), "--adapter", str(tmp_path / "adapter")]
    command += ["--data", "shapes-comvg", "--limit", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "ablation.md").exists()


@pytest.mark.slow  # exports
def test_the_commands_lead_from_file_to_score(model: Path, lora: Path, tmp_path: Path) -> None:
    adapter, bundle = str(tmp_path / "adapter"), str(tmp_path / "bundle")
    done = CliRunner().invoke(cli, ["import-released", str(lora), "--out", adapter])
    assert done.exit_code == 0, done.output
    command = ["export", "--model", str(model), "--adapter", adapter, "--out", bundle]
    done = CliRunner().invoke(cli, [*command, "--score-layers", "last:1"])
    assert done.exit_code == 2
    assert "layers of its own" in done.output
    done = CliRunner().invoke(cli, [*command, "--score", "attention", "--levels", "0.4"])
    assert done.exit_code == 0, done.output
    method = Scorer.load(bundle, engine="onnxruntime").manifest.method
    assert (method.score, method.pooling) == ("attention", "lse")
    assert not method.has_prompts
