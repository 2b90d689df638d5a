"""The method of a bundle: what its scores are, and what they are averaged over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dsd_trt.bundle.fields import require

TokenMask = Literal["words_eos", "words", "all"]
ScoreKind = Literal["attention", "attention+denoising", "denoising", "released"]
Mode = Literal["pair", "matrix"]
"""Pair: one U-Net pass per pair and noise level, as in the paper. Matrix: one walk per image and
level (late interaction)."""
TrainedFor = Literal["pair", "matrix", "both"]
HeadMode = Literal["uniform", "calibrated", "learned", "dynamic"]


@dataclass(frozen=True)
class HeadWeights:
    """Weights w_{l,h} of the scored layers' heads, constants of the graph (Eq. 4 and 7).

    Attributes:
        mode: origin of the weights. "uniform"; "calibrated", by attribution on a few-shot set;
            "learned" there by gradient descent; or "dynamic": additionally weighted by attribution
            to the given pair.
        values: one tuple of weights per scored layer.
    """

    mode: HeadMode
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels whose constants are folded into the pair scorer.

    Attributes:
        fractions: s of each level, in (0, 1); the graph's `level` input is an index into these.
        timesteps: timestep t = round(s T) of each level.
        seed: seed of the fixed noise tensors.
    """

    fractions: tuple[float, ...]
    timesteps: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Method:
    """Definition of a score.

    Let f be the pair scorer's `score`, and d the unconditional denoising error minus the
    conditional one, each averaged over the noise levels. The score is f ("attention", as in the
    paper), d ("denoising"), or f + w d ("attention+denoising").

    "released" is also f + w d, with f computed from raw logits, as in the released research code.

    Attributes:
        score: "attention", "denoising", "attention+denoising" or "released", see above.
        denoising_weight: w, the weight of the denoising term d.
        score_layers: indices of the scored cross-attention layers, in order of execution.
        layer_names: module names of these layers in the U-Net.
        pooling: pooling over image tokens. "lse" is Eq. 3; "logits" pools a whole text instead of
            its tokens.
        lam: lambda of LogSumExp pooling, "lambda" in the file.
        head_weights: weights of the average over layers and heads (Eq. 4 and 7).
        noise_levels: noise levels the score is averaged over.
        token_mask: text tokens that count in the average (Eq. 4).
        has_prompts: whether attention prompts (Eq. 5) are folded in.
        trained_for: mode the adapter was trained for; null without an adapter.
    """

    score: ScoreKind
    denoising_weight: float
    score_layers: tuple[int, ...]
    layer_names: tuple[str, ...]
    pooling: Literal["lse", "max", "cosine", "logits"]
    lam: float = field(metadata={"json": "lambda"})
    head_weights: HeadWeights
    noise_levels: NoiseLevels
    token_mask: TokenMask
    has_prompts: bool
    trained_for: TrainedFor | None


def check_method(method: Method) -> None:
    """Check constraints that types cannot express: lists of one length, distinct values.

    Raises:
        BundleError: a constraint is violated; the message names the field.
    """
    levels = method.noise_levels
    per_layer = len(method.score_layers)
    require(per_layer > 0, "method.score_layers", "is empty")
    require(
        len(method.layer_names) == per_layer, "method.layer_names", "needs one name a scored layer"
    )
    require(
        len(method.head_weights.values) == per_layer,
        "method.head_weights.values",
        "needs one list a scored layer",
    )
    require(
        all(layer >= 0 for layer in method.score_layers)
        and len(set(method.score_layers)) == per_layer,
        "method.score_layers",
        "must be distinct and at least 0",
    )
    require(
        all(method.head_weights.values),
        "method.head_weights.values",
        "has a layer without heads",
    )
    require(len(levels.fractions) > 0, "method.noise_levels.fractions", "is empty")
    require(
        all(0 < s < 1 for s in levels.fractions)
        and len(set(levels.fractions)) == len(levels.fractions),
        "method.noise_levels.fractions",
        "must be distinct and lie between 0 and 1",
    )
    require(
        len(levels.timesteps) == len(levels.fractions),
        "method.noise_levels.timesteps",
        "needs one timestep a level",
    )
