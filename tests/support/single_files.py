"""Write a diffusers folder as a single file, with the weight names of the original code.

This is the inverse of the converters under test. It follows the layout of the original code
(CompVis' latent-diffusion, Stability AI's and OpenCLIP's), not those converters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write_single_file(
    folder: Path,
    path: Path,
    *,
    metadata: dict[str, str] | None = None,
    markers: tuple[str, ...] = (),
) -> Path:
    """Write a checkpoint's weights as one file, with its tokenizer in CLIP's layout beside it.

    Args:
        folder: folder of the checkpoint, in diffusers' format.
        path: file to write, in safetensors format.
        metadata: metadata of the file, which may describe the model.
        markers: names of empty tensors whose presence alone identifies a model.
    """
    xl = (folder / "text_encoder_2").exists()
    tensors = dict(_unet(folder))
    tensors |= dict(_vae(folder))
    if xl:
        tensors |= dict(_clip(folder / "text_encoder", "conditioner.embedders.0.transformer."))
        tensors |= dict(_open_clip(folder / "text_encoder_2", "conditioner.embedders.1.model."))
    elif json.loads((folder / "text_encoder/config.json").read_text())["hidden_act"] == "gelu":
        tensors |= dict(_open_clip(folder / "text_encoder", "cond_stage_model.model."))
    else:
        prefix = "cond_stage_model.transformer."
        tensors |= dict(_clip(folder / "text_encoder", prefix))
        tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors["alphas_cumprod"] = (1 - betas).cumprod(0).half()  # such files contain it too
    tensors |= {name: torch.zeros(0) for name in markers}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _unet(folder: Path) -> Iterator[tuple[str, Tensor]]:
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    tensors = _weights(folder / "unet")
    attended = {name.split(".attentions")[0] for name in tensors if ".attentions." in name}
    for name, tensor in tensors.items():
        yield f"model.diffusion_model.{_unet_name(name, layers, attended)}", tensor


def _unet_name(name: str, layers: int, attended: set[str]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    match = re.fullmatch(r"(\w+_blocks?(?:\.\d+)?)\.(resnets|attentions|\w+samplers)\.(.*)", name)
    assert match
    block, kind, rest = match.groups()
    number, _, rest = rest.partition(".")
    j = int(number)
    if kind == "resnets":
        part, _, leaf = rest.partition(".")
        rest = f"{_RESNET[part]}.{leaf}"
    if block == "mid_block":
        return f"middle_block.{2 * j if kind == 'resnets' else 1}.{rest}"
    side, i = block.split(".")
    first = int(i) * (layers + 1)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{1 + first + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + first + j}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + (block in attended)}.{rest}"
    return f"output_blocks.{first + j}.{int(kind == 'attentions')}.{rest}"


def _vae(folder: Path) -> Iterator[tuple[str, Tensor]]:
    tensors = _weights(folder / "vae")
    last = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"]) - 1
    for name, tensor in tensors.items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        up = re.search(r"up_blocks\.(\d+)", new)
        if up:
            new = new.replace(up[0], f"up.{last - int(up[1])}")
            new = new.replace(".resnets", ".block").replace("upsamplers.0", "upsample")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = re.sub(r"to_([qkv])\.", r"\1.", new).replace("to_out.0", "proj_out")
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]  # (out, in, 1, 1): a convolution
        yield f"first_stage_model.{new}", tensor


def _clip(folder: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _weights(folder).items():
        yield f"{prefix}text_model.{name.removeprefix('text_model.')}", tensor


def _open_clip(folder: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    tensors = {n.removeprefix("text_model."): t for n, t in _weights(folder).items()}
    yield f"{prefix}token_embedding.weight", tensors["embeddings.token_embedding.weight"]
    yield f"{prefix}positional_embedding", tensors["embeddings.position_embedding.weight"]
    yield f"{prefix}logit_scale", torch.ones(())
    for leaf in ("weight", "bias"):
        yield f"{prefix}ln_final.{leaf}", tensors[f"final_layer_norm.{leaf}"]
    if "text_projection.weight" in tensors:
        yield f"{prefix}text_projection", tensors["text_projection.weight"].T
    for layer in sorted({n.split(".")[2] for n in tensors if n.startswith("encoder.layers.")}):
        ours, theirs = f"encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            joined = [tensors[f"{ours}self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            yield f"{theirs}attn.in_proj_{leaf}", torch.cat(joined)
            for part, name in _OPEN_CLIP.items():
                yield f"{theirs}{name}.{leaf}", tensors[f"{ours}{part}.{leaf}"]
