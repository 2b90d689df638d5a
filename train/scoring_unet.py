"""The scoring U-Net: Stable Diffusion's own U-Net, walked block by block to see it attend.

The U-Net stays untouched. Its forward pass is written out here as a generator that stops at every
cross-attention layer to hand out the attention map; whoever consumes it decides when to stop, so
scoring never computes what comes after the last map it needs. Nothing is collected through hooks
or attention processors: such side effects vanish when a graph is traced.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from dsd_trt.train.noise import NoiseLevels
from dsd_trt.train.pooling import CrossAttention, Pooling, pool
from dsd_trt.train.prompts import AttentionPrompts

Walk = Generator[CrossAttention, None, Tensor]


class ScoringUNet(nn.Module):
    """Scores noised latents against texts by how the U-Net's cross-attention responds.

    Args:
        unet: any U-Net of the Stable Diffusion family; used as it is.
        levels: constants of the noise levels.
        score_layers: which cross-attention layers count, see `select_layers`.
        pooling: "lse" (Eq. 3), "max" or "cosine".
        lam: lambda of LogSumExp pooling.
        prompts: attention prompts (Eq. 5), or None for the plain model.
        head_weights: w_{l,h} of each scored layer's heads, summing to 1 over all; None is uniform.

    Raises:
        ValueError: the U-Net has parts the Stable Diffusion family does not have, or the layers
            selected do not exist.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        levels: NoiseLevels,
        *,
        score_layers: str | Sequence[int] = "all",
        pooling: Pooling = "lse",
        lam: float = 20.0,
        prompts: AttentionPrompts | None = None,
        head_weights: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        require_stable_diffusion(unet)
        self.unet = unet
        self.prompts = prompts
        self.pooling: Pooling = pooling
        self.lam = lam
        self.layer_names = cross_attention_names(unet)
        self.score_layers = select_layers(score_layers, len(self.layer_names))
        self._layer_of = {
            unet.get_submodule(name): layer for layer, name in enumerate(self.layer_names)
        }
        # Constants of the graph: never in a state_dict, always in FP32.
        self.timesteps: Tensor
        self.signal: Tensor
        self.spread: Tensor
        self.eps: Tensor
        self.register_buffer("timesteps", levels.timesteps, persistent=False)
        self.register_buffer("signal", levels.signal, persistent=False)
        self.register_buffer("spread", levels.spread, persistent=False)
        self.register_buffer("eps", levels.eps, persistent=False)
        weights = head_weights or uniform_head_weights(self.heads)
        for layer, weight in zip(self.score_layers, weights, strict=True):
            self.register_buffer(f"head_weights_{layer}", weight.float(), persistent=False)

    @property
    def heads(self) -> list[int]:
        """Heads of each scored layer; cosine pooling sees none and counts as one."""
        if self.pooling == "cosine":
            return [1] * len(self.score_layers)
        names = [self.layer_names[layer] for layer in self.score_layers]
        return [self.unet.get_submodule(name).attn2.heads for name in names]

    def forward(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score pairs at one noise level each; nothing is shared across the batch.

        Args:
            latent: z, the clean latent, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, text_tokens, D).
            token_mask: 1 where a token counts, (batch, text_tokens).

        Returns:
            score f(y, x) in [0, 1], FP32 (batch,), and the token scores it is the mean of over
            counted tokens, FP32 (batch, text_tokens).
        """
        token_scores = torch.zeros(text_states.shape[:2], device=latent.device)
        for layer, pooled in self.pooled_scores(latent, level, text_states):
            weights = self.get_buffer(f"head_weights_{layer}")
            token_scores = token_scores + (pooled * weights[:, None]).sum(dim=1)
        return average_tokens(token_scores, token_mask), token_scores

    def pooled_scores(
        self, latent: Tensor, level: Tensor, text_states: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """S of every scored layer (Eq. 3), and not a step of the U-Net further.

        Args:
            latent: z, the clean latent, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, text_tokens, D).

        Yields:
            The layer's index and its pooled attention, FP32 (batch, heads, text_tokens).
        """
        level = level.long()  # int32 in the graph, but ONNX gathers rows by int64 only
        z_t = self.add_noise(latent, level)
        pi = None if self.prompts is None else self.prompts.condition(latent)
        for seen in self.cross_attentions(z_t, self.timesteps[level], text_states, pi):
            if seen.layer in self.score_layers:
                yield seen.layer, pool(seen, self.pooling, self.lam)
            if seen.layer == self.score_layers[-1]:
                return

    def fold_static_prompts(self) -> None:
        """Add every P to its W_k and W_v in place, so that a traced graph holds their sum."""
        if self.prompts is None:
            return
        for layer, name in enumerate(self.layer_names):
            attn = self.unet.get_submodule(name).attn2
            self.prompts.key[layer].fold_into(attn.to_k.weight)
            self.prompts.value[layer].fold_into(attn.to_v.weight)

    def add_noise(self, latent: Tensor, level: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps_s (Eq. 1), in the U-Net's precision."""
        signal, spread = (c[level].view(-1, 1, 1, 1) for c in (self.signal, self.spread))
        return (signal * latent.float() + spread * self.eps[level]).to(self.unet.dtype)

    def cross_attentions(
        self, z_t: Tensor, timestep: Tensor, text_states: Tensor, pi: Tensor | None = None
    ) -> Walk:
        """Run the U-Net, handing out every cross-attention map on the way.

        Args:
            z_t: noised latent, (batch, C, h, w).
            timestep: t, integer (batch,).
            text_states: r_y, (batch, text_tokens, D).
            pi: image-conditional part of the prompts, as `AttentionPrompts.condition` returns it.

        Yields:
            One `CrossAttention` a layer, in order of execution.

        Returns:
            The U-Net's prediction, (batch, C, h, w), as the generator's return value.
        """
        unet = self.unet
        temb = unet.time_embedding(unet.time_proj(timestep).to(z_t.dtype))
        hidden = unet.conv_in(z_t)
        skips = [hidden]
        for block in unet.down_blocks:
            attentions = _attentions(block)
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                hidden = resnet(hidden, temb)
                if attention is not None:
                    hidden = yield from self._transformer(attention, hidden, text_states, pi)
                skips.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
                skips.append(hidden)
        middle = unet.mid_block
        hidden = middle.resnets[0](hidden, temb)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            hidden = yield from self._transformer(attention, hidden, text_states, pi)
            hidden = resnet(hidden, temb)
        for block in unet.up_blocks:
            for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
                hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), temb)
                if attention is not None:
                    hidden = yield from self._transformer(attention, hidden, text_states, pi)
            for upsampler in block.upsamplers or ():
                hidden = upsampler(hidden)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

    def _transformer(
        self,
        transformer: Transformer2DModel,
        hidden: Tensor,
        text_states: Tensor,
        pi: Tensor | None,
    ) -> Walk:
        """One attention layer of a block: (batch, C, h, w) -> same, through image tokens."""
        residual = hidden
        _, _, height, width = hidden.shape
        hidden = transformer.norm(hidden)
        if transformer.use_linear_projection:
            hidden = transformer.proj_in(hidden.flatten(2).transpose(1, 2))
        else:
            hidden = transformer.proj_in(hidden).flatten(2).transpose(1, 2)
        for block in transformer.transformer_blocks:  # hidden: (batch, image_tokens, inner)
            hidden = hidden + _self_attention(block.attn1, block.norm1(hidden))
            hidden = hidden + (yield from self._cross_attention(block, hidden, text_states, pi))
            hidden = hidden + block.ff(block.norm3(hidden))
        if transformer.use_linear_projection:
            hidden = transformer.proj_out(hidden)
        hidden = hidden.transpose(1, 2).unflatten(2, (height, width))
        if not transformer.use_linear_projection:
            hidden = transformer.proj_out(hidden)
        return hidden + residual

    def _cross_attention(
        self, block: BasicTransformerBlock, hidden: Tensor, text_states: Tensor, pi: Tensor | None
    ) -> Walk:
        """Q from the image, K' and V' from the text (Eq. 5); the map stays FP32 throughout."""
        layer = self._layer_of[block]
        attn = block.attn2
        image_states = block.norm2(hidden)
        query = attn.to_q(image_states)
        if self.prompts is None or pi is None:
            key = attn.to_k(text_states)
        else:
            key = self.prompts.key[layer](attn.to_k.weight, text_states, pi[layer, 0])
        # Scaling the query first keeps the product small; FP32 because it overflows FP16 in SD 2.x.
        query = _split_heads(query, attn.heads).float() * attn.scale
        logits = query @ _split_heads(key, attn.heads).float().transpose(2, 3)
        attention = logits.softmax(dim=-1)  # (batch, heads, image_tokens, text_tokens)
        yield CrossAttention(layer, image_states, text_states, attention)
        if self.prompts is None or pi is None:
            value = attn.to_v(text_states)
        else:
            value = self.prompts.value[layer](attn.to_v.weight, text_states, pi[layer, 1])
        attended = attention.to(value.dtype) @ _split_heads(value, attn.heads)
        return attn.to_out[0](_join_heads(attended))


def average_tokens(token_scores: Tensor, token_mask: Tensor) -> Tensor:
    """Mean over the counted tokens (Eq. 4): (batch, text_tokens) -> (batch,)."""
    counted = token_mask.float()
    return (token_scores * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def uniform_head_weights(heads: Sequence[int]) -> list[Tensor]:
    """w_{l,h}, equal for every head of every layer and summing to 1."""
    total = sum(heads)
    return [torch.full((count,), 1 / total) for count in heads]


def cross_attention_names(unet: UNet2DConditionModel) -> list[str]:
    """Paths of the transformer blocks that hold cross-attention, in order of execution."""
    modules = dict(unet.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, BasicTransformerBlock)]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: order[name.split(".")[0]])  # stable within a part


def inner_widths(unet: UNet2DConditionModel) -> list[int]:
    """Rows of each cross-attention layer's key matrix (heads x head_dim), in order of execution."""
    names = cross_attention_names(unet)
    return [unet.get_submodule(name).attn2.to_k.out_features for name in names]


def select_layers(selection: str | Sequence[int], count: int) -> tuple[int, ...]:
    """Turn a setting into layer indices, ascending.

    Args:
        selection: "all", "last:N", or indices in order of execution, as a sequence or "0,3,5".
        count: cross-attention layers the U-Net has.

    Raises:
        ValueError: no such layers.
    """
    allowed = f'choose "all", "last:N" with N up to {count}, or indices from 0 to {count - 1}'
    try:
        if selection == "all":
            layers = list(range(count))
        elif isinstance(selection, str) and selection.startswith("last:"):
            last = int(selection.removeprefix("last:"))
            layers = list(range(count - last, count)) if last > 0 else []
        elif isinstance(selection, str):
            layers = [int(index) for index in selection.split(",")]
        else:
            layers = [int(index) for index in selection]
    except ValueError:
        layers = []
    if not layers or min(layers) < 0 or max(layers) >= count:
        raise ValueError(f"no cross-attention layers {selection!r}: {allowed}")
    return tuple(sorted(set(layers)))


def require_stable_diffusion(unet: UNet2DConditionModel) -> None:
    """Refuse U-Nets with parts that `ScoringUNet.cross_attentions` does not walk.

    Raises:
        ValueError: names the configuration field.
    """
    expected = {
        "addition_embed_type": (None,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None,),
        "center_input_sample": (False,),
        "dual_cross_attention": (False,),
        "only_cross_attention": (False,),
        "time_embedding_act_fn": (None,),
        "time_cond_proj_dim": (None,),
        "attention_type": ("default",),
        "resnet_time_scale_shift": ("default",),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    }
    for field, values in expected.items():
        value = unet.config.get(field, values[0])
        if value not in values and value != [values[0]] * len(unet.down_blocks):
            raise ValueError(f"not a U-Net of the Stable Diffusion family: {field} is {value!r}")
    for field, part in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
        value = unet.config[field]
        if not set(value) <= {part, f"CrossAttn{part}"}:
            raise ValueError(f"not a U-Net of the Stable Diffusion family: {field} is {value!r}")


def _attentions(block: nn.Module) -> list[Transformer2DModel | None]:
    """The transformer after each of a block's resnets, None in blocks that have none."""
    return list(getattr(block, "attentions", None) or [None] * len(block.resnets))


def _self_attention(attn: Attention, hidden: Tensor) -> Tensor:
    """Attention among image tokens, in FP32 where the checkpoint asks for it."""
    query, key, value = (
        _split_heads(project(hidden), attn.heads) for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    if attn.upcast_attention:
        query, key = query.float(), key.float()
    attended = F.scaled_dot_product_attention(query, key, value.to(query.dtype))
    return attn.to_out[0](_join_heads(attended.to(hidden.dtype)))


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * d) -> (batch, heads, tokens, d)."""
    return states.unflatten(2, (heads, -1)).transpose(1, 2)


def _join_heads(states: Tensor) -> Tensor:
    """(batch, heads, tokens, d) -> (batch, tokens, heads * d)."""
    return states.transpose(1, 2).flatten(2)
