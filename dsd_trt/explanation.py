"""Explanations: which words a score comes from, and where in the image they were found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.arguments import shown
from dsd_trt.attention import enlarged, head_weights, pooled, shares
from dsd_trt.bundle.method import Method
from dsd_trt.errors import InputError, counted
from dsd_trt.words import Word, plain_number, scored_words

Heat = NDArray[np.float32]


@dataclass(frozen=True)
class LayerMaps:
    """What one scored layer gives to a score, at every level.

    Attributes:
        layer: index among the U-Net's cross-attention layers, in order of execution.
        places: rows and columns of its image tokens.
        weights: weight of each head, which sum to 1 over all layers, float64 (levels, heads).
        attention: maps A of the counted tokens, float32 (levels, heads, image_tokens, tokens).
    """

    layer: int
    places: tuple[int, int]
    weights: NDArray[np.float64]
    attention: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image and a text have their score.

    The score is the mean of its tokens' scores, and a token's score is a weighted mean of what
    every head of every scored layer pooled from its attention map. A heat map divides this number
    among the places of the image, as LogSumExp read them: it sums to the score.

    Attributes:
        image: name of the image, as in `ScoreMatrix`.
        text: description that was scored.
        score: f(y, x), averaged over the noise levels.
        probability: match probability; NaN where none was fitted, see `Scorer.calibration`.
        words: words of the text with their scores, tokens and heat maps, float32 (h, w) in the
            resolution of the finest scored layer.
        levels: noise levels that it is averaged over.
        size: rows and columns of heat maps.
        layers: what every scored layer gives, in order of execution.
        tokens: position of each counted token in the padded text, in the order of the maps.
        method: method of the bundle, with its pooling.
        pixels: the image as the model sees it, uint8 (R, R, 3); None for an image of an index,
            and after `without_maps`.
        image_sha256: SHA-256 of the pixels, or of the latent of an image of an index.
        bundle_sha256: SHA-256 of the bundle's manifest.
    """

    image: str
    text: str
    score: float
    probability: float
    words: tuple[Word, ...]
    levels: tuple[float, ...]
    size: tuple[int, int]
    layers: tuple[LayerMaps, ...] = field(repr=False)
    tokens: tuple[int, ...] = field(repr=False)
    method: Method = field(repr=False)
    pixels: NDArray[np.uint8] | None = field(repr=False)
    image_sha256: str = field(repr=False)
    bundle_sha256: str = field(repr=False)

    def __repr__(self) -> str:
        words = ", ".join(f"{it.text} {it.score:.3f}" for it in self.words)
        return f"Explanation({self.image!r}, {self.text!r}, score {self.score:.4f}: {words})"

    def heat(
        self,
        word: int | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        level: float | None = None,
    ) -> Heat:
        """Where a word was found, or the whole text.

        Without a choice the map sums to the word's score, or to the score of the text. With one it
        sums to what the word scores in the chosen heads alone, at the chosen level.

        Args:
            word: index among `words`; None is the whole text.
            layer: index among the U-Net's cross-attention layers, of those that are scored; None is
                all of them.
            head: index of a head in its layer; None is all of them.
            level: noise level, one of `levels`; None is all of them.

        Returns:
            Float32 (h, w), at least 0; coarser layers are enlarged so that mass stays.

        Raises:
            InputError: there is no such word, layer, head or level, or the maps are gone, see
                `without_maps`.
        """
        require_choice(self.method, self.levels, layer, head, level)
        columns, rows = self._columns(word), self._rows(level)
        heat, total = np.zeros(self.size), 0.0
        for it, heads in self._chosen(layer, head):
            attention = it.attention[rows][:, heads][..., columns]
            weights = it.weights[rows][:, heads] / len(rows)  # (levels, heads)
            total += float(weights.sum())
            scores = pooled(attention, self.method)  # (levels, heads, tokens)
            parts = shares(attention, self.method) * (scores * weights[:, :, None])[:, :, None]
            flat = parts.sum(axis=(0, 1)).mean(axis=1)  # (image_tokens,)
            heat += enlarged(flat, it.places, self.size)
        return (heat / total).astype(np.float32)

    def attention(
        self,
        word: int | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        level: float | None = None,
    ) -> Heat:
        """Mean attention to a word, weighted as the score is, without the pooling.

        It is larger than `heat` where attention is weak and everywhere; its sum is no score.
        Arguments, shape and errors are those of `heat`.
        """
        require_choice(self.method, self.levels, layer, head, level)
        columns, rows = self._columns(word), self._rows(level)
        heat, total = np.zeros(self.size), 0.0
        for it, heads in self._chosen(layer, head):
            weights = it.weights[rows][:, heads] / len(rows)
            total += float(weights.sum())
            wide = it.attention[rows][:, heads][..., columns].astype(np.float64).mean(axis=3)
            mean = (wide * weights[:, :, None]).sum(axis=(0, 1)) / wide.shape[2]
            heat += enlarged(mean, it.places, self.size)
        return (heat / total).astype(np.float32)

    def against(self, other: Explanation) -> Contrast:
        """Compare with another text of the same image: which words make the difference.

        Args:
            other: explanation of the other text, by the same scorer.

        Raises:
            InputError: it is of another image, bundle, or other levels.
        """
        if not isinstance(other, Explanation):
            raise InputError(f"against takes an explanation, got {shown(other)}")
        if self.image_sha256 != other.image_sha256:
            raise InputError(
                f"explanations of two images, {self.image!r} and {other.image!r}: give two texts "
                "of one image"
            )
        if self.bundle_sha256 != other.bundle_sha256:
            raise InputError(
                "explanations by two bundles cannot be compared: explain both texts with one scorer"
            )
        if self.levels != other.levels:
            raise InputError(
                f"explanations at other noise levels, {self.levels} and {other.levels}, cannot be "
                "compared: give both the same levels"
            )
        return Contrast(self, other, tuple(_changes(self, other)))

    def without_maps(self) -> Explanation:
        """The same explanation in little memory: words keep their heat, and no other can be had.

        It has no pixels either; `heat` and `attention` of it raise an InputError.
        """
        return replace(self, layers=(), pixels=None)

    def to_plain(self) -> dict[str, Any]:
        """The explanation as values that `json.dumps` accepts, see docs/explain.md."""
        rows, columns = self.size
        return {
            "image": self.image,
            "text": self.text,
            "score": plain_number(self.score),
            "probability": plain_number(self.probability),
            "levels": list(self.levels),
            "rows": rows,
            "columns": columns,
            "words": [
                {
                    **it.to_plain(),
                    "special": it.special,
                    "heat": None
                    if it.heat is None
                    else [list(map(plain_number, r)) for r in it.heat],
                }
                for it in self.words
            ],
        }

    def _columns(self, word: int | None) -> list[int]:
        """Columns of the maps with the tokens of a word, or all."""
        if word is None:
            return list(range(len(self.tokens)))
        if isinstance(word, bool) or not isinstance(word, (int, np.integer)):
            raise InputError(f"a word is named by its index among words, got {shown(word)}")
        if not -len(self.words) <= word < len(self.words):
            has = counted(len(self.words), "word")
            raise InputError(f"the text has {has}, there is no word {word}")
        return [self.tokens.index(place) for place in self.words[word].places]

    def _rows(self, level: float | None) -> list[int]:
        """Rows of the maps at a level, or all."""
        rows = range(len(self.levels))
        return [row for row in rows if level in (None, self.levels[row])]

    def _chosen(self, layer: int | None, head: int | None) -> Iterator[tuple[LayerMaps, list[int]]]:
        """The layers and heads that are chosen.

        Raises:
            InputError: the maps are gone.
        """
        if not self.layers:
            raise InputError(
                "this explanation is without maps, and words keep their heat alone: ask for other "
                "heat before without_maps"
            )
        for it in self.layers:
            heads = [at for at in range(it.weights.shape[1]) if head in (None, at)]
            if heads and layer in (None, it.layer):
                yield it, heads


@dataclass(frozen=True)
class Change:
    """Words of one text that stand where the other text has others, or the same.

    Attributes:
        words: words of the first text; empty where the second one has more.
        others: words of the second text; empty where the first one has more.
        difference: what they add to the difference of the scores.
    """

    words: tuple[Word, ...]
    others: tuple[Word, ...]
    difference: float

    @property
    def same(self) -> bool:
        """Whether both texts have the same words here."""
        return [_folded(it) for it in self.words] == [_folded(it) for it in self.others]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two texts of one image, word against word.

    Attributes:
        first: explanation of the first text.
        second: explanation of the second text.
        changes: words side by side, in the order of the texts; their differences sum to
            `difference`.
    """

    first: Explanation
    second: Explanation
    changes: tuple[Change, ...]

    def __repr__(self) -> str:
        texts = f"{self.first.text!r} against {self.second.text!r}"
        return f"Contrast({texts}, difference {self.difference:+.4f})"

    @property
    def difference(self) -> float:
        """Score of the first text minus that of the second."""
        return self.first.score - self.second.score

    @property
    def decisive(self) -> Change:
        """The words that differ and add most to the difference, whichever way it goes.

        Where the texts have the same words, the ones that add most.
        """
        sign = 1 if self.difference >= 0 else -1
        other = [it for it in self.changes if not it.same] or list(self.changes)
        return max(other, key=lambda it: sign * it.difference)

    def to_plain(self) -> dict[str, Any]:
        """The comparison as values that `json.dumps` accepts, see docs/explain.md."""
        return {
            "against": self.second.text,
            "difference": plain_number(self.difference),
            "changes": [
                {
                    "words": [word.text for word in it.words],
                    "others": [word.text for word in it.others],
                    "difference": plain_number(it.difference),
                    "same": it.same,
                }
                for it in self.changes
            ],
        }


def explain(
    maps: Sequence[Sequence[NDArray[np.float32]]],
    words: Sequence[Word],
    token_mask: NDArray[np.float32],
    places: Sequence[tuple[int, int]],
    method: Method,
) -> tuple[float, tuple[Word, ...], tuple[LayerMaps, ...], tuple[int, ...]]:
    """Pool maps as the method does, and keep what an explanation is made of.

    Args:
        maps: A of every scored layer at every level, (heads, image_tokens, 77) each.
        words: words of the text, without scores.
        token_mask: 1 where a token counts, else 0, (77,).
        places: rows and columns of each layer's image tokens.
        method: method of the bundle.

    Returns:
        Score, words with scores, layers, and positions of the counted tokens.
    """
    counted = np.flatnonzero(token_mask)
    stacked = [np.stack(of_layer) for of_layer in zip(*maps, strict=True)]  # (levels, heads, n, 77)
    masks = np.broadcast_to(token_mask, (len(maps), len(token_mask)))
    weights = head_weights(stacked, method, masks)
    layers = tuple(
        LayerMaps(layer, size, weight, np.ascontiguousarray(attention[..., counted]))
        for layer, size, weight, attention in zip(
            method.score_layers, places, weights, stacked, strict=True
        )
    )
    scores = sum(
        (pooled(it.attention, method) * it.weights[:, :, None]).sum(axis=1).mean(axis=0)
        for it in layers
    )
    of_tokens = np.full(len(token_mask), np.nan, np.float64)
    of_tokens[counted] = scores
    named = scored_words(words, of_tokens)
    return float(np.mean(scores)), named, layers, tuple(counted.tolist())


def require_choice(
    method: Method,
    levels: Sequence[float],
    layer: int | None,
    head: int | None,
    level: float | None,
) -> None:
    """Refuse a choice of heat maps that a bundle does not have; arguments as for `heat`.

    Raises:
        InputError: there is no such layer, head or level.
    """
    if layer is not None and layer not in method.score_layers:
        known = ", ".join(map(str, method.score_layers))
        raise InputError(f"no scored layer {shown(layer)}; the bundle scores {known}")
    per_layer = zip(method.score_layers, method.head_weights.values, strict=True)
    most = max(len(weights) for it, weights in per_layer if layer in (None, it))
    if head is not None and head not in range(most):
        raise InputError(f"no head {shown(head)}: heads are numbered 0 to {most - 1}")
    if level is not None and level not in levels:
        known = ", ".join(map(str, levels))
        raise InputError(f"no noise level {shown(level)} among those averaged over: {known}")


def finest(places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns of the layer with the most image tokens."""
    return max(places, key=lambda it: it[0] * it[1])


def with_heat(explanation: Explanation, **chosen: Any) -> Explanation:
    """The same explanation, with the heat maps of its words; `chosen` as for `heat`."""
    words = tuple(
        replace(it, heat=explanation.heat(number, **chosen))
        for number, it in enumerate(explanation.words)
    )
    return replace(explanation, words=words)


def _changes(first: Explanation, second: Explanation) -> Iterator[Change]:
    """Words of two texts side by side: equal ones one by one, others in groups."""
    mine_all, theirs_all = ([_folded(it) for it in side.words] for side in (first, second))
    matcher = SequenceMatcher(None, mine_all, theirs_all, autojunk=False)
    for _, begin, end, other_begin, other_end in matcher.get_opcodes():
        words, others = first.words[begin:end], second.words[other_begin:other_end]
        # Where there are as many, each word has another in its place.
        each = len(words) == len(others)
        for start, stop in [(it, it + 1) for it in range(len(words))] if each else [(0, None)]:
            mine, theirs = words[start:stop], others[start:stop]
            gain = _contribution(mine, first) - _contribution(theirs, second)
            yield Change(mine, theirs, gain)


def _contribution(words: Sequence[Word], explanation: Explanation) -> float:
    """What words add to the score, which is the mean over all tokens that count."""
    scores = [token.score for word in words for token in word.tokens]
    return float(np.sum(scores)) / len(explanation.tokens)


def _folded(word: Word) -> tuple[str, bool]:
    return word.text.casefold(), word.special
