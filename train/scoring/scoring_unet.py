"""The scoring U-Net: Stable Diffusion's own U-Net, walked block by block to see it attend.

The U-Net stays untouched. Its forward pass is written out here as a generator that stops at every
cross-attention layer to hand out the attention map; whoever consumes it decides when to stop, so
scoring never computes what comes after the last map it needs. Nothing is collected through hooks
or attention processors: such side effects vanish when a graph is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsd_trt.train.diffusion.families import Prediction
from dsd_trt.train.scoring.layers import (
    cross_attention_names,
    require_stable_diffusion,
    select_layers,
)
from dsd_trt.train.scoring.noise import FixedNoise
from dsd_trt.train.scoring.pooling import CrossAttention, Pooling, attribution, pool
from dsd_trt.train.scoring.prompts import AttentionPrompts, MatrixPrompt

Steps = Generator[CrossAttention, None, Tensor]


class Walk:
    """A way through the U-Net: iterate over its cross-attention maps, stop whenever you like.

    Attributes:
        prediction: the U-Net's output, (batch, C, h, w), once the way is walked to its end.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.prediction: Tensor

    def __iter__(self) -> Iterator[CrossAttention]:
        self.prediction = yield from self._steps


class Response(NamedTuple):
    """How the U-Net responds to pairs, before heads are averaged.

    Attributes:
        pooled: S of every head of every scored layer (Eq. 3), FP32 (batch, heads, text_tokens).
        relevance: attribution of each head (Eq. 7), mean over counted tokens, FP32 (batch,
            heads); None where heads are not weighed by it.
        denoising_error: root mean square error of the U-Net's prediction, FP32 (batch,); None
            where the U-Net is not run to its end.
    """

    pooled: Tensor
    relevance: Tensor | None
    denoising_error: Tensor | None


class ScoringUNet(nn.Module):
    """Scores noised latents against texts by how the U-Net's cross-attention responds.

    Args:
        unet: any U-Net of the Stable Diffusion family; used as it is.
        levels: constants of the noise levels.
        score_layers: which cross-attention layers count, see `select_layers`.
        pooling: "lse" (Eq. 3), "max", "cosine" or "logits".
        lam: lambda of LogSumExp pooling.
        prompts: attention prompts (Eq. 5), or None for the plain model.
        head_weights: w_{l,h} of each scored layer's heads, summing to 1 over all; None is uniform.
        dynamic_heads: weigh heads by their attribution to the pair at hand as well (Eq. 7).
        denoising: run the U-Net to its end and measure its error too.
        prediction: what the U-Net was trained to predict; the error is measured in it.
        resolution: side of the pictures in pixels; Stable Diffusion XL is told.

    Raises:
        ValueError: the U-Net has parts the Stable Diffusion family does not have, the layers
            selected do not exist, or `dynamic_heads` with a pooling other than "lse".
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        levels: FixedNoise,
        *,
        score_layers: str | Sequence[int] = "all",
        pooling: Pooling = "lse",
        lam: float = 20.0,
        prompts: AttentionPrompts | None = None,
        head_weights: Sequence[Tensor] | None = None,
        dynamic_heads: bool = False,
        denoising: bool = False,
        prediction: Prediction = "epsilon",
        resolution: int = 1024,
    ) -> None:
        super().__init__()
        require_stable_diffusion(unet.config)
        if dynamic_heads and pooling != "lse":
            raise ValueError(f'dynamic head weights need pooling "lse", not "{pooling}"')
        self.unet = unet
        self.prompts = prompts
        self.pooling: Pooling = pooling
        self.lam = lam
        self.dynamic_heads = dynamic_heads
        self.denoising = denoising
        self.prediction: Prediction = prediction
        # Original size, top left corner and target size: an uncropped picture of full size.
        self.picture_size = (resolution, resolution, 0, 0, resolution, resolution)
        self.checkpointing = False  # trade time for memory in training: recompute activations
        self.layer_names = cross_attention_names(unet)
        self.score_layers = select_layers(score_layers, len(self.layer_names))
        self._layer_of = {
            unet.get_submodule(name): layer for layer, name in enumerate(self.layer_names)
        }
        self.levels = levels.fractions
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
        if [len(weight) for weight in weights] != self.heads:
            raise ValueError("head weights do not fit the heads of the scored layers")
        self.head_weights: Tensor  # (heads of all scored layers,)
        self.register_buffer("head_weights", torch.cat(list(weights)).float(), persistent=False)

    @property
    def heads(self) -> list[int]:
        """Heads of each scored layer; cosine pooling sees none and counts as one."""
        if self.pooling == "cosine":
            return [1] * len(self.score_layers)
        names = [self.layer_names[layer] for layer in self.score_layers]
        return [self.unet.get_submodule(name).attn2.heads for name in names]

    def forward(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Score pairs at one noise level each; nothing is shared across the batch.

        Args:
            latent: z, the clean latent, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, text_tokens, D).
            token_mask: 1 where a token counts, (batch, text_tokens).

        Returns:
            score f(y, x) in [0, 1], FP32 (batch,); the token scores it is the mean of over counted
            tokens, FP32 (batch, text_tokens); and, if asked for, the denoising error (batch,).
        """
        response = self.respond(latent, level, text_states, token_mask)
        token_scores = average_heads(response, self.head_weights)
        score = average_tokens(token_scores, token_mask)
        if response.denoising_error is None:
            return score, token_scores
        return score, token_scores, response.denoising_error

    def respond(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> Response:
        """Noise the latents, walk the U-Net no further than needed, and pool what it attends to.

        Args:
            latent: as for `forward`.
            level: as for `forward`.
            text_states: as for `forward`.
            token_mask: as for `forward`; only attributions look at it.
        """
        level = level.long()  # int32 in the graph, but ONNX gathers rows by int64 only
        z_t = self.add_noise(latent, level)
        pi = None if self.prompts is None else self.prompts.condition(latent)
        walk = self.cross_attentions(z_t, self.timesteps[level], text_states, pi)
        pooled, relevance = [], []
        for seen in walk:
            if seen.layer in self.score_layers:
                pooled.append(pool(seen, self.pooling, self.lam))
                if self.dynamic_heads:
                    of_tokens = attribution(seen.attention, self.lam)
                    relevance.append(average_tokens(of_tokens, token_mask[:, None]))
            if seen.layer == self.score_layers[-1] and not self.denoising:
                break
        return Response(
            torch.cat(pooled, dim=1),
            torch.cat(relevance, dim=1) if self.dynamic_heads else None,
            self.denoising_error(walk.prediction, latent, level) if self.denoising else None,
        )

    def denoising_error(self, predicted: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """Root mean square error of a prediction, FP32 (batch,).

        Args:
            predicted: the U-Net's output, (batch, C, h, w).
            latent: z, (batch, C, h, w).
            level: int64 (batch,).
        """
        target = self.eps[level]
        if self.prediction == "v_prediction":
            signal, spread = (c[level].view(-1, 1, 1, 1) for c in (self.signal, self.spread))
            target = signal * target - spread * latent.float()
        return (predicted.float() - target).square().mean(dim=(1, 2, 3)).sqrt()

    def fold_static_prompts(self) -> None:
        """Add every P to its W_k and W_v in place, so that a traced graph holds their sum."""
        if self.prompts is None:
            return
        for layer, name in enumerate(self.layer_names):
            attn = self.unet.get_submodule(name).attn2
            for prompts, matrix in ((self.prompts.key, attn.to_k), (self.prompts.value, attn.to_v)):
                prompt = prompts[layer]
                assert isinstance(prompt, MatrixPrompt)
                prompt.fold_into(matrix.weight)

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
            text_states: r_y, (batch, text_tokens, D); for Stable Diffusion XL with the pooled text
                in one more row.
            pi: image-conditional part of the prompts, as `AttentionPrompts.condition` returns it.

        Returns:
            One `CrossAttention` a layer, in order of execution, computed as they are asked for.
        """
        return Walk(self._steps(z_t, timestep, text_states, pi))

    def _steps(
        self, z_t: Tensor, timestep: Tensor, text_states: Tensor, pi: Tensor | None
    ) -> Steps:
        unet = self.unet
        temb = unet.time_embedding(unet.time_proj(timestep).to(z_t.dtype))
        if unet.config["addition_embed_type"] == "text_time":
            text_states, pooled = text_states[:, :-1], text_states[:, -1]
            temb = temb + self._embed_text_and_size(pooled)
        hidden = unet.conv_in(z_t)
        skips = [hidden]
        for block in unet.down_blocks:
            attentions = _attentions(block)
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                hidden = self._run(resnet, hidden, temb)
                if attention is not None:
                    hidden = yield from self._transformer(attention, hidden, text_states, pi)
                skips.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
                skips.append(hidden)
        middle = unet.mid_block
        hidden = self._run(middle.resnets[0], hidden, temb)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            hidden = yield from self._transformer(attention, hidden, text_states, pi)
            hidden = self._run(resnet, hidden, temb)
        for block in unet.up_blocks:
            for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
                hidden = self._run(resnet, torch.cat([hidden, skips.pop()], dim=1), temb)
                if attention is not None:
                    hidden = yield from self._transformer(attention, hidden, text_states, pi)
            for upsampler in block.upsamplers or ():
                hidden = upsampler(hidden)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

    def _embed_text_and_size(self, pooled: Tensor) -> Tensor:
        """Stable Diffusion XL's second embedding, added to the timestep's: (batch, temb)."""
        unet = self.unet
        sizes = torch.tensor(self.picture_size, device=pooled.device)
        size = unet.add_time_proj(sizes).flatten()  # (6 * embed,)
        width = unet.config["projection_class_embeddings_input_dim"] - len(size)
        size = size.to(pooled.dtype).expand(pooled.shape[0], -1)  # len() would be a constant
        embedded: Tensor = unet.add_embedding(torch.cat([pooled[:, :width], size], dim=1))
        return embedded

    def _run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Run a part of the U-Net; if asked for, forget its activations until backward."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    def _transformer(
        self,
        transformer: Transformer2DModel,
        hidden: Tensor,
        text_states: Tensor,
        pi: Tensor | None,
    ) -> Steps:
        """One attention layer of a block: (batch, C, h, w) -> same, through image tokens."""
        residual = hidden
        _, _, height, width = hidden.shape
        hidden = transformer.norm(hidden)
        if transformer.use_linear_projection:
            hidden = transformer.proj_in(hidden.flatten(2).transpose(1, 2))
        else:
            hidden = transformer.proj_in(hidden).flatten(2).transpose(1, 2)
        for block in transformer.transformer_blocks:  # hidden: (batch, image_tokens, inner)
            hidden = hidden + self._run(_self_attention, block.attn1, block.norm1(hidden))
            hidden = hidden + (yield from self._cross_attention(block, hidden, text_states, pi))
            hidden = hidden + self._run(block.ff, block.norm3(hidden))
        if transformer.use_linear_projection:
            hidden = transformer.proj_out(hidden)
        hidden = hidden.transpose(1, 2).unflatten(2, (height, width))
        if not transformer.use_linear_projection:
            hidden = transformer.proj_out(hidden)
        return hidden + residual

    def _cross_attention(
        self, block: BasicTransformerBlock, hidden: Tensor, text_states: Tensor, pi: Tensor | None
    ) -> Steps:
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
        with no_autocast(query):
            logits = query @ _split_heads(key, attn.heads).float().transpose(2, 3)
            attention = logits.softmax(dim=-1)  # (batch, heads, image_tokens, text_tokens)
        yield CrossAttention(layer, image_states, text_states, logits, attention)
        if self.prompts is None or pi is None:
            value = attn.to_v(text_states)
        else:
            value = self.prompts.value[layer](attn.to_v.weight, text_states, pi[layer, 1])
        attended = attention.to(value.dtype) @ _split_heads(value, attn.heads)
        return attn.to_out[0](_join_heads(attended))


def average_heads(response: Response, weights: Tensor) -> Tensor:
    """Weighted mean over heads and layers (Eq. 4): a score for each token.

    Args:
        response: of the U-Net to pairs.
        weights: w_{l,h}, summing to 1, (heads,).

    Returns:
        FP32 (batch, text_tokens).
    """
    each = weights  # (heads,), or of each pair, (batch, heads)
    if response.relevance is not None:
        each = weights * response.relevance
        each = each / each.sum(dim=1, keepdim=True)
    return (response.pooled * each[..., None]).sum(dim=1)


def average_tokens(token_scores: Tensor, token_mask: Tensor) -> Tensor:
    """Mean over the counted tokens (Eq. 4): (..., text_tokens) -> (...)."""
    counted = token_mask.float()
    return (token_scores * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)


def uniform_head_weights(heads: Sequence[int]) -> list[Tensor]:
    """w_{l,h}, equal for every head of every layer and summing to 1."""
    total = sum(heads)
    return [torch.full((count,), 1 / total) for count in heads]


def _attentions(block: Any) -> list[Transformer2DModel | None]:
    """The transformer after each of a block's resnets, None in blocks that have none."""
    return list(getattr(block, "attentions", None) or [None] * len(block.resnets))


def _self_attention(attn: Attention, hidden: Tensor) -> Tensor:
    """Attention among image tokens, in FP32 where the checkpoint asks for it."""
    query, key, value = (
        _split_heads(project(hidden), attn.heads) for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    if attn.upcast_attention:
        with no_autocast(query):
            attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    else:
        attended = F.scaled_dot_product_attention(query, key, value)
    return attn.to_out[0](_join_heads(attended.to(hidden.dtype)))


def no_autocast(states: Tensor) -> AbstractContextManager[None]:
    """Where mixed precision is on, turn it off; a traced graph never sees this."""
    device = states.device.type
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * d) -> (batch, heads, tokens, d)."""
    return states.unflatten(2, (heads, -1)).transpose(1, 2)


def _join_heads(states: Tensor) -> Tensor:
    """(batch, heads, tokens, d) -> (batch, tokens, heads * d)."""
    return states.transpose(1, 2).flatten(2)
