"""Matrix mode: late interaction, with one U-Net walk per image and level instead of per pair.

The walk is a U-Net pass without prompts, given the noised latent and the unconditional text. It
yields queries Q that depend on the image alone. Every text's keys K' (Eq. 5) are matched with
them as in pair mode: softmax over text tokens, LogSumExp over image tokens (Eq. 3), weighted mean
over heads (Eq. 4). The score differs from pair mode's, where the text conditions the U-Net. An
adapter is therefore trained for the mode it serves, or has token heads and relations that estimate
pair mode's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.scoring.pooling import logsumexp_pool
from dsd_trt.train.scoring.prompts import MatrixPrompt
from dsd_trt.train.scoring.relations import Relations, centre_basis, centres_of
from dsd_trt.train.scoring.scoring_unet import ScoringUNet, average_tokens, no_autocast
from dsd_trt.train.scoring.token_heads import TokenHeads


class MatrixScorer(nn.Module):
    """Scores every image, at its own noise level, against every text.

    Args:
        scoring: scoring U-Net with LogSumExp pooling and without dynamic head weights or
            denoising error; its prompts must not be folded.
        unconditional: states of the unconditional text, (1, rows, D).
        query_pool: side, in image tokens, of the squares over which queries of full latent
            resolution are averaged before matching; 1 does not average.
        token_heads: head weights that depend on the token; None takes those of `scoring` for all.
        relations: what is added to the score of token heads; None adds nothing.

    Raises:
        ValueError: the score needs more of the U-Net than its queries, or relations are without
            token heads.
    """

    def __init__(
        self,
        scoring: ScoringUNet,
        unconditional: Tensor,
        query_pool: int = 1,
        token_heads: TokenHeads | None = None,
        relations: Relations | None = None,
    ) -> None:
        super().__init__()
        if relations is not None and token_heads is None:
            raise ValueError("relations belong to a score of token heads")
        if scoring.denoising or scoring.dynamic_heads or scoring.pooling != "lse":
            raise ValueError(
                'matrix mode has the score "attention" with LogSumExp pooling and head weights '
                "that are not dynamic"
            )
        self.scoring = scoring
        self.query_pool = query_pool
        self.token_heads = token_heads
        self.relations = relations
        self.folded: nn.ParameterList | None = None
        self.unconditional: Tensor
        self.register_buffer("unconditional", unconditional, persistent=False)

    def forward(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> Tensor:
        """Score all combinations of images and texts, the fast counterpart of `score`.

        Args:
            latent: clean latent z, (images, C, h, w).
            level: index into the noise levels, integer (images,).
            text_states: r_y, (texts, rows, D).
            token_mask: 1 where a token counts, else 0, (texts, tokens). Tokens beyond its width
                do not count, so it may be as narrow as the longest text.

        Returns:
            Score f(y, x) of every combination, FP32 (images, texts).
        """
        return self.match_texts(self.queries(latent, level), latent, text_states, token_mask)

    def match_texts(
        self, queries: Sequence[Tensor], latent: Tensor, text_states: Tensor, token_mask: Tensor
    ) -> Tensor:
        """The part of `forward` after the walk, which may be shared by many texts.

        Args:
            queries: queries of each scored layer, as `queries` returns them.
            latent: clean latent z that the walk began with, (images, C, h, w).
            text_states: r_y, (texts, rows, D).
            token_mask: 1 where a token counts, else 0, (texts, tokens).

        Returns:
            Score f(y, x) of every combination, FP32 (images, texts).
        """
        scoring, words = self.scoring, self.words(text_states)
        pi = None if scoring.prompts is None else scoring.prompts.pi(latent)
        pooled, centres = [], None
        for place, query in enumerate(queries):
            prompt, weight = self._prompt(place)
            tilt = None
            if prompt is not None and pi is not None:
                u = prompt.u.float().view(query.shape[1], 1, -1)  # (heads, 1, d)
                strength = words.flatten(0, 1) @ pi[scoring.score_layers[place], 0].T
                tilt = Tilt((query * u).sum(dim=3), strength.float())
            key = F.linear(words, weight).float()
            attention = attend_all(query, key, tilt, token_mask.shape[1])
            pooled.append(logsumexp_pool(attention, scoring.lam, dim=4))
            if place == 0 and self.relations is not None:
                centres = centres_of(attention, scoring.lam, self._basis(query, latent))
            del attention  # before the next layer's is made
        every = torch.cat(pooled)  # (heads of all layers, texts, tokens, images)
        if (heads := self.token_heads) is not None:
            words = words[:, : token_mask.shape[1]]
            weights = heads.weights(words, token_mask)
            # (heads, texts, tokens, 1), so that the sum is a plain one over leading axes
            each = weights.permute(2, 0, 1)[..., None]
            of_tokens = (every * each).sum(dim=0).permute(2, 0, 1)  # (images, texts, tokens)
            if self.relations is not None and centres is not None:
                first = pooled[0].permute(3, 0, 1, 2)  # (images, heads, texts, tokens)
                places = centres.permute(3, 0, 1, 2, 4)
                related = self.relations(words[None], token_mask[None], first, places)
                # One sum: OpenVINO 2026.4.1 would add (1, texts) to (texts, 1).
                of_tokens = torch.cat([of_tokens, related], dim=2)
            return of_tokens.sum(dim=2) + heads.offset
        token_scores = (every * scoring.head_weights[:, None, None, None]).sum(dim=0)
        return average_tokens(token_scores.permute(2, 0, 1), token_mask)  # (images, texts)

    def score(
        self,
        latent: Tensor,
        level: Tensor,
        text_states: Tensor,
        token_mask: Tensor,
        head_weights: Tensor | None = None,
    ) -> Tensor:
        """Score each image against its own texts, or all images against the same texts.

        Args:
            latent: clean latent z, (images, C, h, w).
            level: index into the noise levels, integer (images,).
            text_states: r_y, (images, texts, rows, D), or (1, texts, rows, D) for shared texts.
            token_mask: 1 where a token counts, else 0, (images or 1, texts, text_tokens).
            head_weights: w_{l,h}, summing to 1, (heads,); None takes the token heads if there
                are some, else those of `scoring`.

        Returns:
            Score f(y, x) of each image's texts, FP32 (images, texts).
        """
        queries = self.queries(latent, level)
        heads = self.token_heads if head_weights is None else None
        related = heads is not None and self.relations is not None
        pooled, centres = self.see(queries, latent, text_states, centres=related)
        if heads is not None:
            words = self.words(text_states)
            weights = heads.weights(words, token_mask)
            score = (pooled * weights.movedim(3, 1)).sum(dim=(1, 3)) + heads.offset
            if self.relations is None or centres is None:
                return score
            first = pooled[:, : centres.shape[1]]
            return score + self.relations(words, token_mask, first, centres).sum(dim=2)
        plain = self.scoring.head_weights if head_weights is None else head_weights
        return average_tokens((pooled * plain[:, None, None]).sum(dim=1), token_mask)

    def see(
        self,
        queries: Sequence[Tensor],
        latent: Tensor,
        text_states: Tensor,
        counted: int | None = None,
        *,
        centres: bool = False,
    ) -> Seen:
        """What is left of the maps of each image's texts.

        Args:
            queries: queries of each scored layer, as `queries` returns them.
            latent: clean latent z that the walk began with, (images, C, h, w).
            text_states: r_y, (images, texts, rows, D), or (1, texts, rows, D) for shared texts.
            counted: number of leading text tokens that are pooled; None pools all.
            centres: whether to compute the centres, which relations need.
        """
        words, prompts = self.words(text_states), self.scoring.prompts
        pi = None if prompts is None else prompts.pi(latent)
        pooled, found = [], None
        for place, query in enumerate(queries):
            attention = attend(query, self._keys(place, words, pi), counted)
            pooled.append(logsumexp_pool(attention, self.scoring.lam))
            if place == 0 and centres:
                basis = self._basis(query, latent)
                found = centres_of(attention.movedim(2, 4), self.scoring.lam, basis)
        return Seen(torch.cat(pooled, dim=1), found)

    def _basis(self, query: Tensor, latent: Tensor) -> Tensor:
        """Places of a layer's image tokens, (image_tokens, 3); see `centre_basis`."""
        count, (height, width) = query.shape[2], latent.shape[2:]
        grids = [(-(-height // side), -(-width // side)) for side in (1, 2, 4, 8, 16)]
        if self.query_pool > 1:
            grids.insert(0, (height // self.query_pool, width // self.query_pool))
        rows, columns = next(it for it in grids if it[0] * it[1] == count)
        return centre_basis(rows, columns).to(query.device)

    def queries(self, latent: Tensor, level: Tensor) -> list[Tensor]:
        """Q / sqrt(d) of each scored layer, FP32 (images, heads, image_tokens, d), from a walk."""
        scoring = self.scoring
        level = level.long()
        z_t = scoring.add_noise(latent, level)
        unconditional = self.unconditional.to(z_t.dtype).expand(latent.shape[0], -1, -1)
        queries = []
        for seen in scoring.cross_attentions(z_t, scoring.timesteps[level], unconditional):
            if seen.layer in scoring.score_layers:
                attn = scoring.unet.get_submodule(scoring.layer_names[seen.layer]).attn2
                # (images, image_tokens, inner)
                query = attn.to_q(seen.image_states).float() * attn.scale
                if self.query_pool > 1 and query.shape[1] == latent.shape[2] * latent.shape[3]:
                    query = self._average(query, latent.shape[2], latent.shape[3])
                queries.append(query.unflatten(2, (attn.heads, -1)).transpose(1, 2))
            if seen.layer == scoring.score_layers[-1]:
                break
        return queries

    def _average(self, query: Tensor, height: int, width: int) -> Tensor:
        """Average queries over squares of the image: (images, image_tokens, inner) -> fewer."""
        grid = query.transpose(1, 2).unflatten(2, (height, width))  # (images, inner, h, w)
        return F.avg_pool2d(grid, self.query_pool).flatten(2).transpose(1, 2)

    def fold_static_prompts(self) -> None:
        """Store W_k + P of every scored layer, so that a traced graph holds the sum.

        W_k itself is kept unchanged, because the walk uses it.
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

    def words(self, text_states: Tensor) -> Tensor:
        """Text states without the pooled text's row, which Stable Diffusion XL appends."""
        whole = self.scoring.unet.config["addition_embed_type"] == "text_time"
        return text_states[..., :-1, :] if whole else text_states

    def _prompt(self, place: int) -> tuple[MatrixPrompt | None, Tensor]:
        """Key prompt of a scored layer, None without prompts, and W_k + P, (inner, D)."""
        scoring = self.scoring
        layer = scoring.score_layers[place]
        weight: Tensor = scoring.unet.get_submodule(scoring.layer_names[layer]).attn2.to_k.weight
        if scoring.prompts is None:
            return None, weight
        prompt = scoring.prompts.key[layer]
        assert isinstance(prompt, MatrixPrompt)
        return prompt, weight + prompt.static() if self.folded is None else self.folded[place]

    def _keys(self, place: int, words: Tensor, pi: Tensor | None) -> Tensor:
        """Keys K' of the texts (Eq. 5), (images or 1, texts, text_tokens, inner)."""
        prompt, weight = self._prompt(place)
        if prompt is None or pi is None:
            return F.linear(words, weight)
        keys: Tensor = prompt.condition(
            weight, words, pi[self.scoring.score_layers[place], 0, :, None]
        )
        return keys


class Seen(NamedTuple):
    """What is left of the maps of images' texts.

    Attributes:
        pooled: pooled attention S (Eq. 3) of each head at each token, FP32 (images, heads of all
            layers, texts, counted).
        centres: centres of the first scored layer's maps, see `centres_of`: x and y, FP32 (images,
            heads of that layer, texts, counted, 2); None unless they were asked for.
    """

    pooled: Tensor
    centres: Tensor | None


class Tilt(NamedTuple):
    """Image-conditional part u pi(x)^T of the key prompt (Eq. 5), as it changes the logits.

    q . (W_k r + u (pi . r)) = q . W_k r + (q . u) (pi . r). Each image thus adds one product of
    two numbers to a logit, instead of having keys of its own.

    Attributes:
        of_query: q . u of every query, FP32 (images, heads, image_tokens).
        of_token: pi . r of every token of every text, FP32 (texts * text_tokens, images).
    """

    of_query: Tensor
    of_token: Tensor


def attend(query: Tensor, key: Tensor, counted: int | None = None) -> Tensor:
    """Attention of every image to every text.

    Args:
        query: Q / sqrt(d), FP32 (images, heads, image_tokens, d).
        key: K', (images or 1, texts, text_tokens, heads * d).
        counted: number of leading text tokens whose maps are returned; None returns all.

    Returns:
        A, FP32 (images, heads, image_tokens, texts, counted).
    """
    texts, tokens = key.shape[1:3]
    heads = query.shape[1]
    # (images or 1, heads, d, texts * text_tokens): one wide matrix product per head.
    key = key.float().unflatten(3, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(3)
    with no_autocast(query):  # Q K^T overflows FP16 in Stable Diffusion 2.x
        # (images, heads, image_tokens, texts, text_tokens)
        attention = (query @ key).unflatten(3, (texts, tokens)).softmax(dim=-1)
    return attention[..., :counted]


def attend_all(query: Tensor, key: Tensor, tilt: Tilt | None, counted: int) -> Tensor:
    """Attention of every image to every text by one matrix product per head; a faster `attend`.

    The image tokens of all images form the last axis. Softmax over text tokens is then arithmetic
    on whole rows, and padding tokens are dropped by dropping their rows.

    Args:
        query: Q / sqrt(d), FP32 (images, heads, image_tokens, d).
        key: (W_k + P) r_y, FP32 (texts, text_tokens, heads * d).
        tilt: image-conditional part of the key prompts; None without prompts.
        counted: number of leading text tokens whose maps are returned, at most text_tokens.

    Returns:
        A, FP32 (heads, texts, counted, images, image_tokens).
    """
    images, heads, image_tokens, d = query.shape
    texts, tokens = key.shape[:2]
    rows = key.unflatten(2, (heads, d)).permute(2, 0, 1, 3).flatten(1, 2)
    columns = query.permute(1, 3, 0, 2).flatten(2)
    # rows: (heads, texts * text_tokens, d), columns: (heads, d, images * image_tokens)
    if tilt is not None:
        # One more inner dimension per image, zero in the columns of all other images.
        each = torch.arange(images, device=query.device)
        own = (each[:, None] == each).to(query.dtype)[:, :, None]
        of_query = tilt.of_query.transpose(0, 1)[:, None] * own  # (heads, images, images, n)
        columns = torch.cat([columns, of_query.flatten(2)], dim=1)
        rows = torch.cat([rows, tilt.of_token.expand(heads, -1, -1)], dim=2)
    with no_autocast(query):  # Q K^T overflows FP16 in Stable Diffusion 2.x
        # (heads, texts, text_tokens, images * image_tokens)
        logits = (rows @ columns).unflatten(1, (texts, tokens))
    return logits.softmax(dim=2)[:, :, :counted].unflatten(3, (images, image_tokens))
