"""The scoring U-Net: Stable Diffusion's U-Net, run block by block to read its cross-attention.

The U-Net's modules are used unchanged. Their forward pass is written out here as a generator that
yields the attention map of every cross-attention layer. The consumer decides when to stop, so
scoring never computes anything after the last map it needs. Maps are not collected through hooks
or attention processors, because such side effects are lost when a graph is traced.
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
from dsd_trt.train.scoring.choices import select_layers
from dsd_trt.train.scoring.layers import cross_attention_names, require_stable_diffusion
from dsd_trt.train.scoring.noise import FixedNoise
from dsd_trt.train.scoring.pooling import CrossAttention, Pooling, attribution, pool
from dsd_trt.train.scoring.prompts import AttentionPrompts, MatrixPrompt

Steps = Generator[CrossAttention, None, Tensor]


class ForwardPass:
    """A lazy forward pass: an iterator over cross-attention maps that may be stopped early.

    Attributes:
        prediction: the U-Net's output, (batch, C, h, w); set once the iterator is exhausted.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.prediction: Tensor

    def __iter__(self) -> Iterator[CrossAttention]:
        self.prediction = yield from self._steps


class Response(NamedTuple):
    """The U-Net's response to pairs, before the average over heads.

    Attributes:
        pooled: S of every head of every scored layer (Eq. 3), FP32 (batch, heads, text_tokens).
        relevance: attribution of each head (Eq. 7), averaged over counted tokens, FP32
            (batch, heads); None without dynamic head weights.
        denoising_error: root mean square error of the U-Net's prediction, FP32 (batch,); None
            if the forward pass stops at the last scored layer.
    """

    pooled: Tensor
    relevance: Tensor | None
    denoising_error: Tensor | None


class ScoringUNet(nn.Module):
    """Scores noised latents against texts by the U-Net's cross-attention.

    Args:
        unet: U-Net of the Stable Diffusion family; its modules are shared, not copied.
        levels: timesteps, schedule constants and noise tensors of the noise levels.
        score_layers: selection of the cross-attention layers that are scored, see `select_layers`.
        pooling: pooling over image tokens: "lse" (Eq. 3), "max", "cosine" or "logits".
        lam: sharpness lambda of LogSumExp pooling.
        prompts: attention prompts (Eq. 5); None scores with the base model's own matrices.
        head_weights: w_{l,h} of each scored layer, (heads,) each, summing to 1 over all layers;
            None is uniform.
        dynamic_heads: whether head weights are multiplied by each pair's attributions (Eq. 7).
        denoising: whether the U-Net is run to its end to measure its denoising error as well.
        prediction: training target of the U-Net, in which the denoising error is measured.
        resolution: side of the images in pixels, which conditions Stable Diffusion XL.

    Raises:
        ValueError: the U-Net has parts that the Stable Diffusion family does not have, a selected
            layer does not exist, or `dynamic_heads` is set with a pooling other than "lse".
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
        # Original size, top left corner, target size: an uncropped image of full resolution.
        self.image_size: tuple[int, int, int, int, int, int] = (
            resolution,
            resolution,
            0,
            0,
            resolution,
            resolution,
        )
        self.checkpointing = False  # gradient checkpointing: less memory, more time in training
        self.layer_names: list[str] = cross_attention_names(unet)
        self.score_layers: tuple[int, ...] = select_layers(score_layers, len(self.layer_names))
        self._layer_of = {
            unet.get_submodule(name): layer for layer, name in enumerate(self.layer_names)
        }
        self.levels: tuple[float, ...] = levels.fractions
        # Buffers become FP32 constants of the exported graph; they stay out of any state_dict.
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
        """Number of heads of each scored layer; 1 per layer with "cosine" pooling."""
        if self.pooling == "cosine":
            return [1] * len(self.score_layers)
        names = [self.layer_names[layer] for layer in self.score_layers]
        return [self.unet.get_submodule(name).attn2.heads for name in names]

    def forward(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Score each pair at its own noise level; rows of a batch do not affect each other.

        Args:
            latent: clean latent z, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, text_tokens, D).
            token_mask: 1 where a token counts, else 0, (batch, text_tokens).

        Returns:
            Score f(y, x) in [0, 1], FP32 (batch,); token scores, of which f is the mean over
            counted tokens, FP32 (batch, text_tokens); with `denoising` also the denoising error,
            FP32 (batch,).
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
        """Noise the latents, run the U-Net as far as needed, and pool its attention maps.

        Args:
            latent: clean latent z, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, text_tokens, D).
            token_mask: 1 where a token counts, else 0, (batch, text_tokens); only attributions
                depend on it.
        """
        level = level.long()  # int32 in the graph, but ONNX gathers rows by int64 only
        z_t = self.add_noise(latent, level)
        pi = None if self.prompts is None else self.prompts.pi(latent)
        forward_pass = self.cross_attentions(z_t, self.timesteps[level], text_states, pi)
        pooled, relevance = [], []
        for seen in forward_pass:
            if seen.layer in self.score_layers:
                pooled.append(pool(seen, self.pooling, self.lam))  # (batch, heads, text_tokens)
                if self.dynamic_heads:
                    of_tokens = attribution(seen.attention, self.lam)
                    relevance.append(average_tokens(of_tokens, token_mask[:, None]))
            if seen.layer == self.score_layers[-1] and not self.denoising:
                break
        return Response(
            torch.cat(pooled, dim=1),
            torch.cat(relevance, dim=1) if self.dynamic_heads else None,
            self.denoising_error(forward_pass.prediction, latent, level)
            if self.denoising
            else None,
        )

    def denoising_error(self, predicted: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """Root mean square error of the U-Net's prediction, FP32 (batch,).

        Args:
            predicted: the U-Net's output, (batch, C, h, w).
            latent: clean latent z, (batch, C, h, w).
            level: index into the noise levels, int64 (batch,).
        """
        target = self.eps[level]
        if self.prediction == "v_prediction":
            signal, spread = (c[level].view(-1, 1, 1, 1) for c in (self.signal, self.spread))
            target = signal * target - spread * latent.float()
        return (predicted.float() - target).square().mean(dim=(1, 2, 3)).sqrt()

    def fold_static_prompts(self) -> None:
        """Add every P to its W_k or W_v in place, so that a traced graph holds only the sum."""
        if self.prompts is None:
            return
        for layer, name in enumerate(self.layer_names):
            attn = self.unet.get_submodule(name).attn2
            for prompts, matrix in ((self.prompts.key, attn.to_k), (self.prompts.value, attn.to_v)):
                prompt = prompts[layer]
                assert isinstance(prompt, MatrixPrompt)
                prompt.fold_into(matrix.weight)

    def add_noise(self, latent: Tensor, level: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps_s (Eq. 1), in the U-Net's precision.

        Args:
            latent: clean latent z, (batch, C, h, w).
            level: index into the noise levels, int64 (batch,).
        """
        signal, spread = (c[level].view(-1, 1, 1, 1) for c in (self.signal, self.spread))
        return (signal * latent.float() + spread * self.eps[level]).to(self.unet.dtype)

    def cross_attentions(
        self, z_t: Tensor, timestep: Tensor, text_states: Tensor, pi: Tensor | None = None
    ) -> ForwardPass:
        """Run the U-Net and yield every cross-attention map.

        Args:
            z_t: noised latent, (batch, C, h, w).
            timestep: timestep t, integer (batch,).
            text_states: r_y, (batch, text_tokens, D); for Stable Diffusion XL one more row holds
                the pooled text.
            pi: pi(x), the image-conditional part of the prompts, as `AttentionPrompts.condition`
                returns it; None runs the base model without prompts.

        Returns:
            One `CrossAttention` per layer, in order of execution, each computed when requested.
        """
        return ForwardPass(self._steps(z_t, timestep, text_states, pi))

    def _steps(
        self, z_t: Tensor, timestep: Tensor, text_states: Tensor, pi: Tensor | None
    ) -> Steps:
        unet = self.unet
        temb = unet.time_embedding(unet.time_proj(timestep).to(z_t.dtype))  # (batch, temb)
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
        """Stable Diffusion XL's embedding of pooled text and image size, (batch, temb)."""
        unet = self.unet
        sizes = torch.tensor(self.image_size, device=pooled.device)
        size = unet.add_time_proj(sizes).flatten()  # (6 * embed,)
        width = unet.config["projection_class_embeddings_input_dim"] - len(size)
        # pooled.shape[0] stays symbolic in a traced graph; len(pooled) would become a constant.
        size = size.to(pooled.dtype).expand(pooled.shape[0], -1)  # (batch, 6 * embed)
        embedded: Tensor = unet.add_embedding(torch.cat([pooled[:, :width], size], dim=1))
        return embedded

    def _run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Run a part of the U-Net, with gradient checkpointing where it is enabled."""
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
        """One transformer of a block, applied to image tokens: (batch, C, h, w) -> same."""
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
        """Cross-attention with K' and V' (Eq. 5); logits and softmax are FP32."""
        layer = self._layer_of[block]
        attn = block.attn2
        image_states = block.norm2(hidden)
        query = attn.to_q(image_states)  # (batch, image_tokens, inner)
        if self.prompts is None or pi is None:
            key = attn.to_k(text_states)  # (batch, text_tokens, inner)
        else:
            key = self.prompts.key[layer](attn.to_k.weight, text_states, pi[layer, 0])
        # FP32, because Q K^T overflows FP16 in SD 2.x; scaling Q first keeps the product small.
        query = _split_heads(query, attn.heads).float() * attn.scale  # (b, heads, image_tokens, d)
        with no_autocast(query):
            logits = query @ _split_heads(key, attn.heads).float().transpose(2, 3)
            attention = logits.softmax(dim=-1)  # (batch, heads, image_tokens, text_tokens)
        yield CrossAttention(layer, image_states, text_states, logits, attention)
        if self.prompts is None or pi is None:
            value = attn.to_v(text_states)
        else:
            value = self.prompts.value[layer](attn.to_v.weight, text_states, pi[layer, 1])
        attended = attention.to(value.dtype) @ _split_heads(value, attn.heads)
        return attn.to_out[0](_join_heads(attended))  # (batch, image_tokens, inner)


def average_heads(response: Response, weights: Tensor) -> Tensor:
    """Weighted mean over heads and layers (Eq. 4): one score per token.

    Args:
        response: pooled attention of pairs, with attributions for dynamic head weights.
        weights: w_{l,h}, summing to 1, (heads,).

    Returns:
        Token scores, FP32 (batch, text_tokens).
    """
    each = weights  # (heads,)
    if response.relevance is not None:
        each = weights * response.relevance  # (batch, heads)
        each = each / each.sum(dim=1, keepdim=True)
    return (response.pooled * each[..., None]).sum(dim=1)


def average_tokens(token_scores: Tensor, token_mask: Tensor) -> Tensor:
    """Mean over counted tokens (Eq. 4): (..., text_tokens) -> (...)."""
    counted = token_mask.float()
    return (token_scores * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)


def uniform_head_weights(heads: Sequence[int]) -> list[Tensor]:
    """Equal w_{l,h} for every head of every layer, summing to 1, (heads,) per layer."""
    total = sum(heads)
    return [torch.full((count,), 1 / total) for count in heads]


def _attentions(block: Any) -> list[Transformer2DModel | None]:
    """Transformer after each resnet of a block; None throughout a block without attention."""
    return list(getattr(block, "attentions", None) or [None] * len(block.resnets))


def _self_attention(attn: Attention, hidden: Tensor) -> Tensor:
    """Self-attention of image tokens, in FP32 if the checkpoint sets `upcast_attention`."""
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
    """Context in which mixed precision is off; without effect on a traced graph."""
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
