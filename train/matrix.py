"""Matrix mode: late interaction, one walk through the U-Net an image instead of one a pair.

The U-Net, without prompts, sees the noised latent and the text that says nothing. The queries it
makes on the way are an image's, whatever it is compared with; every text's keys K' (Eq. 5) are
matched with them as in pair mode: softmax over text tokens, LogSumExp over image tokens (Eq. 3),
weighted mean over heads (Eq. 4). It is another score than pair mode's, where the text steers the
walk, so an adapter is trained for the mode that it serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.pooling import logsumexp_pool
from dsd_trt.train.prompts import MatrixPrompt
from dsd_trt.train.scoring_unet import ScoringUNet, average_tokens, no_autocast


class MatrixScorer(nn.Module):
    """Scores every image against every text, a noise level each image.

    Args:
        scoring: attention score, LogSumExp pooling, heads weighed alike for all pairs; its prompts
            are not folded in.
        empty: states of the text that says nothing, (1, rows, D).
        query_pool: side of the squares over which the queries of the finest layers are averaged
            before they are matched; 1 leaves them as they are.

    Raises:
        ValueError: the score needs more of the U-Net than its queries.
    """

    def __init__(self, scoring: ScoringUNet, empty: Tensor, query_pool: int = 1) -> None:
        super().__init__()
        if scoring.denoising or scoring.dynamic_heads or scoring.pooling != "lse":
            raise ValueError(
                'matrix mode has the score "attention" with LogSumExp pooling and head weights '
                "that are not dynamic"
            )
        self.scoring = scoring
        self.query_pool = query_pool
        self.folded: nn.ParameterList | None = None
        self.empty: Tensor
        self.register_buffer("empty", empty, persistent=False)

    def forward(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> Tensor:
        """Score all combinations.

        Args:
            latent: z, (images, C, h, w).
            level: index into the noise levels, integer (images,).
            text_states: r_y, (texts, rows, D).
            token_mask: 1 where a token counts, (texts, text_tokens).

        Returns:
            FP32 (images, texts).
        """
        return self.score(latent, level, text_states[None], token_mask[None])

    def score(
        self,
        latent: Tensor,
        level: Tensor,
        text_states: Tensor,
        token_mask: Tensor,
        head_weights: Tensor | None = None,
    ) -> Tensor:
        """Score images against texts of their own, or against the same ones.

        Args:
            latent: z, (images, C, h, w).
            level: integer (images,).
            text_states: (images or 1, texts, rows, D).
            token_mask: (images or 1, texts, text_tokens).
            head_weights: w_{l,h} in place of the model's, (heads,).

        Returns:
            FP32 (images, texts).
        """
        scoring = self.scoring
        weights = scoring.head_weights if head_weights is None else head_weights
        words = text_states[..., : token_mask.shape[-1], :]  # without the text as a whole, if any
        prompts = scoring.prompts
        pi = None if prompts is None else prompts.condition(latent)
        pooled = [
            match(query, self._keys(place, words, pi), scoring.lam)
            for place, query in enumerate(self.queries(latent, level))
        ]  # (images, heads, texts, text_tokens) each
        token_scores = (torch.cat(pooled, dim=1) * weights[:, None, None]).sum(dim=1)
        return average_tokens(token_scores, token_mask)

    def queries(self, latent: Tensor, level: Tensor) -> list[Tensor]:
        """Q / sqrt(d) of every scored layer, FP32 (images, heads, image_tokens, d) each."""
        scoring = self.scoring
        level = level.long()
        z_t = scoring.add_noise(latent, level)
        empty = self.empty.to(z_t.dtype).expand(latent.shape[0], -1, -1)
        queries = []
        for seen in scoring.cross_attentions(z_t, scoring.timesteps[level], empty):
            if seen.layer in scoring.score_layers:
                attn = scoring.unet.get_submodule(scoring.layer_names[seen.layer]).attn2
                query = attn.to_q(seen.image_states).float() * attn.scale
                if self.query_pool > 1 and query.shape[1] == latent.shape[2] * latent.shape[3]:
                    query = self._average(query, latent.shape[2], latent.shape[3])
                queries.append(query.unflatten(2, (attn.heads, -1)).transpose(1, 2))
            if seen.layer == scoring.score_layers[-1]:
                break
        return queries

    def _average(self, query: Tensor, height: int, width: int) -> Tensor:
        """Means over squares: (images, image_tokens, inner), fewer image tokens."""
        grid = query.transpose(1, 2).unflatten(2, (height, width))
        return F.avg_pool2d(grid, self.query_pool).flatten(2).transpose(1, 2)

    def fold_static_prompts(self) -> None:
        """Hold W_k + P of every scored layer, so that a traced graph has their sum.

        The walk needs W_k itself, which therefore stays as it is.
        """
        scoring = self.scoring
        if scoring.prompts is None:
            return
        folded = []
        for layer in scoring.score_layers:
            weight = scoring.unet.get_submodule(
                scoring.layer_names[layer]
            ).attn2.to_k.weight.clone()
            prompt = scoring.prompts.key[layer]
            assert isinstance(prompt, MatrixPrompt)
            prompt.fold_into(weight)
            folded.append(nn.Parameter(weight, requires_grad=False))
        self.folded = nn.ParameterList(folded)

    def _keys(self, place: int, text_states: Tensor, pi: Tensor | None) -> Tensor:
        """K' of the texts, (images or 1, texts, text_tokens, inner)."""
        scoring = self.scoring
        layer = scoring.score_layers[place]
        weight = scoring.unet.get_submodule(scoring.layer_names[layer]).attn2.to_k.weight
        if scoring.prompts is None or pi is None:
            return F.linear(text_states, weight)
        prompt = scoring.prompts.key[layer]
        assert isinstance(prompt, MatrixPrompt)
        if self.folded is not None:
            weight = self.folded[place]
        keys: Tensor = prompt(weight, text_states, pi[layer, 0, :, None])
        return keys


def match(query: Tensor, key: Tensor, lam: float) -> Tensor:
    """Attention of every image to every text, pooled over image tokens (Eq. 3).

    Args:
        query: Q / sqrt(d), FP32 (images, heads, image_tokens, d).
        key: K', (images or 1, texts, text_tokens, heads * d).
        lam: sharpness.

    Returns:
        S, FP32 (images, heads, texts, text_tokens).
    """
    texts, tokens = key.shape[1:3]
    heads = query.shape[1]
    # (images or 1, heads, d, texts * text_tokens): one wide product a head.
    key = key.float().unflatten(3, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(3)
    with no_autocast(query):  # logits leave FP16's range in Stable Diffusion 2.x
        attention = (query @ key).unflatten(3, (texts, tokens)).softmax(dim=-1)
    return logsumexp_pool(attention, lam)
