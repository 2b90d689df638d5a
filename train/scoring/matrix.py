"""Matrix mode: late interaction, one walk through the U-Net an image instead of one a pair.

The U-Net, without prompts, sees the noised latent and the text that says nothing. The queries it
makes on the way are an image's, whatever it is compared with; every text's keys K' (Eq. 5) are
matched with them as in pair mode: softmax over text tokens, LogSumExp over image tokens (Eq. 3),
weighted mean over heads (Eq. 4). It is another score than pair mode's, where the text steers the
walk, so an adapter is trained for the mode that it serves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.scoring.pooling import logsumexp_pool
from dsd_trt.train.scoring.prompts import MatrixPrompt
from dsd_trt.train.scoring.scoring_unet import ScoringUNet, average_tokens, no_autocast


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
        """Score all combinations, as `score` does, but fast.

        Args:
            latent: z, (images, C, h, w).
            level: index into the noise levels, integer (images,).
            text_states: r_y, (texts, rows, D).
            token_mask: 1 where a token counts, (texts, tokens); none counts that is beyond, so
                that it may be as narrow as the longest text.

        Returns:
            FP32 (images, texts).
        """
        scoring, words = self.scoring, self._words(text_states)
        pi = None if scoring.prompts is None else scoring.prompts.condition(latent)
        pooled = []
        for place, query in enumerate(self.queries(latent, level)):
            prompt, weight = self._prompt(place)
            tilt = None
            if prompt is not None and pi is not None:
                u = prompt.u.float().view(query.shape[1], 1, -1)  # (heads, 1, d)
                strength = words.flatten(0, 1) @ pi[scoring.score_layers[place], 0].T
                tilt = Tilt((query * u).sum(dim=3), strength.float())
            key = F.linear(words, weight).float()
            pooled.append(match_all(query, key, tilt, scoring.lam, token_mask.shape[1]))
        # (heads, texts, tokens, images)
        token_scores = (torch.cat(pooled) * scoring.head_weights[:, None, None, None]).sum(dim=0)
        return average_tokens(token_scores.permute(2, 0, 1), token_mask)

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
        scoring, words = self.scoring, self._words(text_states)
        weights = scoring.head_weights if head_weights is None else head_weights
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

    def _words(self, text_states: Tensor) -> Tensor:
        """Text states without the row that Stable Diffusion XL has for the text as a whole."""
        whole = self.scoring.unet.config["addition_embed_type"] == "text_time"
        return text_states[..., :-1, :] if whole else text_states

    def _prompt(self, place: int) -> tuple[MatrixPrompt | None, Tensor]:
        """Of a scored layer: the prompt, if any, and W_k + P, (inner, D)."""
        scoring = self.scoring
        layer = scoring.score_layers[place]
        weight: Tensor = scoring.unet.get_submodule(scoring.layer_names[layer]).attn2.to_k.weight
        if scoring.prompts is None:
            return None, weight
        prompt = scoring.prompts.key[layer]
        assert isinstance(prompt, MatrixPrompt)
        return prompt, weight + prompt.static() if self.folded is None else self.folded[place]

    def _keys(self, place: int, words: Tensor, pi: Tensor | None) -> Tensor:
        """K' of the texts, (images or 1, texts, text_tokens, inner)."""
        prompt, weight = self._prompt(place)
        if prompt is None or pi is None:
            return F.linear(words, weight)
        keys: Tensor = prompt.condition(
            weight, words, pi[self.scoring.score_layers[place], 0, :, None]
        )
        return keys


class Tilt(NamedTuple):
    """The part of Eq. 5 that an image has of its own, u pi(x)^T, as logits see it.

    q . (W_k r + u (pi . r)) = q . W_k r + (q . u) (pi . r): two numbers instead of another key.

    Attributes:
        of_query: q . u, FP32 (images, heads, image_tokens).
        of_token: pi . r of every token of every text, FP32 (texts * text_tokens, images).
    """

    of_query: Tensor
    of_token: Tensor


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


def match_all(query: Tensor, key: Tensor, tilt: Tilt | None, lam: float, counted: int) -> Tensor:
    """As `match`, for every image and text, as one product of matrices a head.

    Image tokens come last, of all images in one row: softmax over text tokens then is arithmetic on
    rows, and the tokens that do not count are dropped by leaving out rows.

    Args:
        query: Q / sqrt(d), FP32 (images, heads, image_tokens, d).
        key: W_k r_y, FP32 (texts, text_tokens, heads * d).
        tilt: of the images, if there are prompts.
        lam: sharpness.
        counted: how many of the first text tokens are pooled.

    Returns:
        S, FP32 (heads, texts, counted, images).
    """
    images, heads, image_tokens, d = query.shape
    texts, tokens = key.shape[:2]
    rows = key.unflatten(2, (heads, d)).permute(2, 0, 1, 3).flatten(1, 2)
    columns = query.permute(1, 3, 0, 2).flatten(2)
    # rows: (heads, texts * text_tokens, d), columns: (heads, d, images * image_tokens)
    if tilt is not None:
        # One more row of columns an image, zero for all other images.
        each = torch.arange(images, device=query.device)
        own = (each[:, None] == each).to(query.dtype)[:, :, None]
        of_query = tilt.of_query.transpose(0, 1)[:, None] * own  # (heads, images, images, n)
        columns = torch.cat([columns, of_query.flatten(2)], dim=1)
        rows = torch.cat([rows, tilt.of_token.expand(heads, -1, -1)], dim=2)
    with no_autocast(query):  # logits leave FP16's range in Stable Diffusion 2.x
        logits = (rows @ columns).unflatten(1, (texts, tokens))
    attention = logits.softmax(dim=2)[:, :, :counted].unflatten(3, (images, image_tokens))
    return logsumexp_pool(attention, lam, dim=4)
