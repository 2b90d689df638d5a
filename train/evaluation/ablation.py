"""Ablations of the score (section 5.4, Figures 3 to 6), computed from one set of pooled maps.

The score is a weighted mean of pooled attention over heads, layers, tokens and noise levels. Each
head's mean over tokens is therefore collected once per level and pooling. Leaving out layers,
heads or levels then only sets weights to zero, without another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsd_trt.commands.provenance import run_facts, versions
from dsd_trt.errors import counted
from dsd_trt.files.whole import whole
from dsd_trt.html.page import page
from dsd_trt.html.tables import Bar, Cell, failures, section, table
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS
from dsd_trt.train.scoring.pooling import CrossAttention, attribution, logsumexp_pool, pool
from dsd_trt.train.scoring.scoring_unet import ScoringUNet, average_tokens

LAMBDAS = (1.0, 5.0, 20.0, 100.0)
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEVEL_SETS = {1: (0.4,), 2: (0.4, 0.8), 4: DEFAULT_LEVELS, 8: LEVELS}
_DRAWS = 5  # random subsets of heads per size
_BATCH = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Maps:
    """Pooled attention of every head for every pair and level.

    Attributes:
        pooled: mean of S over counted tokens, (pairs, levels, heads), by the pooling's name;
            "cosine" has one head per layer.
        relevance: attribution of each head at lambda 20 (Eq. 7), (pairs, levels, heads).
        levels: noise levels s of the second axis.
        heads: number of heads of each cross-attention layer.
    """

    pooled: Mapping[str, Floats]
    relevance: Floats
    levels: tuple[float, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """One bar of a figure.

    Attributes:
        setting: name of the ablated setting, such as "last 2".
        accuracy: questions answered right with this setting, in percent.
    """

    setting: str
    accuracy: float


@torch.no_grad()
def collect(
    scoring: ScoringUNet,
    examples: Examples,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Maps:
    """Collect the pooled attention of every pair at every level, one forward pass each.

    Args:
        scoring: scoring U-Net with all layers scored and the levels to collect.
        examples: encoded questions whose pairs are scored.
        progress: callback `(done, total)`, counting forward passes.
    """
    names = [*(f"lse {lam:g}" for lam in LAMBDAS), "max", "cosine"]
    rows: dict[str, list[Floats]] = {name: [] for name in (*names, "relevance")}
    pairs, levels = len(examples.images), len(scoring.timesteps)
    device = scoring.head_weights.device
    for chosen in torch.arange(pairs).split(_BATCH):
        texts = examples.texts[chosen]
        z = examples.latents[examples.images[chosen]].to(device)
        states = examples.text_states[texts].to(device)
        mask = examples.token_masks[texts][:, None].to(device)  # (batch, 1, text_tokens)
        at_levels: dict[str, list[Floats]] = {name: [] for name in rows}
        for level in range(levels):
            at = torch.full((len(chosen),), level, device=device)
            pi = None if scoring.prompts is None else scoring.prompts.pi(z)
            forward_pass = scoring.cross_attentions(
                scoring.add_noise(z, at), scoring.timesteps[at], states, pi
            )
            of_layers: dict[str, list[torch.Tensor]] = {name: [] for name in rows}
            for seen in forward_pass:
                for name in names:
                    of_layers[name].append(average_tokens(_pool(seen, name), mask))
                relevance = attribution(seen.attention, scoring.lam)
                of_layers["relevance"].append(average_tokens(relevance, mask))
            for name, parts in of_layers.items():
                at_levels[name].append(torch.cat(parts, dim=1).cpu().double().numpy())
            progress(int(chosen[0]) * levels + (level + 1) * len(chosen), pairs * levels)
        for name, parts_at in at_levels.items():
            rows[name].append(np.stack(parts_at, axis=1))  # (batch, levels, heads)
    pooled = {name: np.concatenate(rows[name]) for name in names}
    return Maps(pooled, np.concatenate(rows["relevance"]), scoring.levels, tuple(scoring.heads))


def _pool(seen: CrossAttention, name: str) -> torch.Tensor:
    kind, _, lam = name.partition(" ")
    if kind == "lse":
        return logsumexp_pool(seen.attention, float(lam))
    return pool(seen, "max" if kind == "max" else "cosine", 1.0)


def ablate(
    maps: Maps, weights: Floats, examples: Examples, seed: int = 0
) -> dict[str, list[Point]]:
    """Accuracy of every ablated setting, by the figure's title.

    Args:
        maps: pooled attention of the examples' pairs.
        weights: head weights w_{l,h} of the model, (heads,).
        examples: encoded questions, with the index of each positive pair.
        seed: random seed of the subsets of heads.
    """
    base = maps.pooled["lse 20"]

    def accuracy(scores: Floats) -> float:
        answers = examples.right_answers(torch.from_numpy(scores))
        return 100 * float(np.mean(answers))

    def with_layers(last: int | None) -> Floats:
        kept = weights.copy()
        if last is not None:
            kept[: sum(maps.heads[: len(maps.heads) - last])] = 0
        return score(maps, base, kept)

    layers = [
        Point(f"last {n}", accuracy(with_layers(n))) for n in (1, 2, 8) if n < len(maps.heads)
    ]
    layers.append(Point(f"all {len(maps.heads)}", accuracy(with_layers(None))))

    rng = np.random.default_rng(seed)
    heads = []
    per_layer = min(maps.heads)
    for count in range(1, per_layer + 1):
        draws = 1 if count == per_layer else _DRAWS
        chosen = [_some_heads(maps.heads, count, rng) for _ in range(draws)]
        for name, relevance in (("averaged", None), ("dynamic", maps.relevance)):
            mean = np.mean([accuracy(score(maps, base, w, relevance)) for w in chosen])
            heads.append(Point(f"{count} {name}", float(mean)))

    poolings = []
    for name, pooled in maps.pooled.items():
        # Cosine has one "head" per layer, which gets the summed weight of its layer's heads.
        w = weights if pooled.shape[2] == len(weights) else _by_layer(weights, maps.heads)
        poolings.append(Point(name, accuracy(score(maps, pooled, w))))

    levels = [
        Point(f"{s:g}", accuracy(score(maps, base, weights, levels=(s,)))) for s in DEFAULT_LEVELS
    ]
    levels += [
        Point(counted(n, "level"), accuracy(score(maps, base, weights, levels=chosen)))
        for n, chosen in LEVEL_SETS.items()
    ]
    return {
        "Figure 3: layers used": layers,
        "Figure 4: heads used": heads,
        "Figure 5: pooling": poolings,
        "Figure 6: noise levels": levels,
    }


def score(
    maps: Maps,
    pooled: Floats,
    weights: Floats,
    relevance: Floats | None = None,
    levels: Sequence[float] = DEFAULT_LEVELS,
) -> Floats:
    """Score of each pair from some heads, layers and levels (Eq. 4), (pairs,).

    Args:
        maps: pooled attention, for its noise levels.
        pooled: pooled attention of one pooling, (pairs, levels, heads).
        weights: head weights, 0 for a head that is left out, (heads,).
        relevance: attributions for dynamic head weights (Eq. 7), (pairs, levels, heads); None
            for static weights.
        levels: noise levels s to average over, all among those of `maps`.
    """
    places = [maps.levels.index(s) for s in levels]
    each = np.broadcast_to(weights, pooled.shape)[:, places]
    if relevance is not None:
        each = each * relevance[:, places]
    each = each / each.sum(axis=2, keepdims=True)
    mean: Floats = (each * pooled[:, places]).sum(axis=2).mean(axis=1)
    return mean


def _some_heads(heads: Sequence[int], count: int, rng: np.random.Generator) -> Floats:
    """Weight 1 for `count` random heads of every layer, 0 for the others, (heads,)."""
    parts = []
    for total in heads:
        kept = np.zeros(total)
        kept[rng.permutation(total)[:count]] = 1
        parts.append(kept)
    return np.concatenate(parts)


def _by_layer(weights: Floats, heads: Sequence[int]) -> Floats:
    return np.array([part.sum() for part in np.split(weights, np.cumsum(heads)[:-1])])


def as_text(ablations: Mapping[str, Sequence[Point]]) -> str:
    """One Markdown table per figure."""
    parts = []
    for name, points in ablations.items():
        rows = "".join(f"| {point.setting} | {point.accuracy:.1f} |\n" for point in points)
        parts.append(f"| {name} | accuracy, % |\n|---|---:|\n{rows}")
    return "\n".join(parts)


def as_page(
    ablations: Mapping[str, Sequence[Point]],
    title: str,
    left_out: LeftOut,
    facts: Mapping[str, str],
) -> Iterator[str]:
    """A page with one table of bars per figure, in parts.

    Args:
        ablations: points of each figure, by its title.
        title: title of the page.
        left_out: questions left out, with their failures.
        facts: provenance for the foot, by name.
    """

    def body() -> Iterator[str]:
        for name, points in ablations.items():
            rows: list[list[Cell]] = [
                [it.setting, Bar(f"{it.accuracy:.1f}", it.accuracy / 100)] for it in points
            ]
            yield section(name, table(name, ["Setting", "Accuracy, %"], rows, heading=True))
        failed = [(it.image or "", it.text or "", it.reason) for it in left_out.failures]
        yield failures(failed, len(failed))

    used = {"versions": f"{versions()}, torch {torch.__version__}"}
    summary = "Accuracy with fewer layers, heads and noise levels, and with other poolings."
    return page(title, summary, body(), lambda: {**facts, **used, **run_facts()})


def plot(ablations: Mapping[str, Sequence[Point]], path: Path, title: str) -> None:
    """Plot all figures side by side as bars; the axis starts 10 points below the lowest."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(ablations), figsize=(4 * len(ablations), 3.6))
    for axis, (name, points) in zip(np.atleast_1d(axes), ablations.items(), strict=True):
        values = [point.accuracy for point in points]
        axis.bar(range(len(points)), values, color="#4878a8")
        axis.set_xticks(range(len(points)), [p.setting for p in points], rotation=60, ha="right")
        axis.set(title=name, ylim=(max(0, min(values) - 10), 100))
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    with whole(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)
