"""MODEL_CARD.md of the demonstration, written from its settings and accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsd_trt.train.shapes.scene import COLOURS, RELATIONS, SHAPES, SIZES

Table = Mapping[str, float]
"""Accuracy in percent by question, named as `probe` names them."""

_ABOUT = """\
---
license: apache-2.0
library_name: diffusers
tags: [image-text-matching, demonstration]
---
# shapes: a demonstration on coloured shapes

A latent diffusion model of a few megabytes, built from the classes of Stable Diffusion
(`AutoencoderKL`, `UNet2DConditionModel`, `CLIPTextModel`, a CLIP tokenizer) and trained from
scratch on drawn scenes of coloured shapes, with a few-shot adapter beside it. It comes with
dsd-trt so that everything can be tried without a download. It knows nothing of photographs, and
what it scores says nothing about Stable Diffusion.

**It was trained by its own generator to be matchable.** The generator of the scenes knows where
every shape is and how a scene can be made false, and four of the five training losses use that:

- denoising (v-prediction), as in Stable Diffusion;
- grounding: the attention of a colour or shape word should lie on the thing it names;
- ranking: the matching score itself should be higher for a scene's caption than for the caption
  of a scene that differs in one aspect or, in later stages of training, in all of them;
- telling: the same of the score of those words alone in which the two captions differ;
- naming: a thing's shape and colour should be told from the image tokens that show it, by a linear
  layer that is not part of the model.

Relations were taught by lessons: the side of a lone thing, the side of one thing among several, the
sides of both ("a red circle on the left and a blue star on the right"), and only then relations.
Shapes had a lesson of their own, of scenes that differ in nothing else.

The published claim about zero-shot matching is about purely generative models. "Zero-shot" below
means only: without the adapter.
"""

_FIGURES = "## Figures\n"
_IMITATION = """
The adapter also has token heads, with which matrix mode estimates the scores of pair mode, and
lists, which tell a pruned search how far to follow the estimates (docs/search.md).
"""

_LIMITS = """\
## Limits

- Scenes of one to three of these shapes in these colours, nothing else. The tokenizer spells out
  any other word, and the score of a text that has one means little.
- Which of two texts describes an image better is what it was trained for. The match probability
  was fitted on scenes of its own generator and need not hold elsewhere.
- Each relation has a row of its own above: look there before relying on one.

## Licence

Apache-2.0, code and weights. All pictures and captions it was trained on were made by the code.
"""


def model_card(training: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    """The text of the model card, in Markdown.

    Args:
        training: settings of the few-shot adapter, with those of the model under "plan" if known.
            Values other than numbers and strings are omitted.
        tables: accuracies by name of what was measured, such as "zero-shot", "few-shot" or
            "few-shot, other renderer".
    """
    data = f"""\
## Data

Scenes drawn and described by code, 64 x 64 pixels, on varied backgrounds:

- shapes: {", ".join(SHAPES)}
- colours: {", ".join(COLOURS)}
- sizes: {", ".join(SIZES)}
- relations: {", ".join(RELATIONS)}

Captions come from templates such as "a red circle to the left of a blue square". Scenes that are
tested on are drawn from other seeds than those trained on; scenes come in pairs, "twins", that
differ in one aspect.

## Training

To make it again: `dsd-trt pretrain shapes --out DIR --seed {training.get("seed", 0)}`

That repeats the recipe, not these weights, which went on from earlier versions; the last stage was
trained on a GPU (docs/lessons.md).
"""
    plan = _settings("the model", training.get("plan", {}))
    few_shot = _settings("the few-shot adapter", training)
    return "\n".join([_ABOUT, data + plan + few_shot, _figures(tables), _LIMITS])


def with_imitation(card: str, imitation: Mapping[str, Any]) -> str:
    """A model card with the settings of the adapter's imitation, in the place of earlier ones.

    Args:
        card: text of a model card.
        imitation: record of the imitation that gave the adapter its token heads and lists.
    """
    before, figures, after = card.partition(_FIGURES)
    kept = before.partition(_IMITATION)[0].rstrip()
    return f"{kept}\n{_IMITATION}{_settings('the imitation', imitation)}\n{figures}{after}"


def _settings(of: str, settings: Mapping[str, Any]) -> str:
    rows = [
        f"| {name.replace('_', ' ')} | {value} |\n"
        for name, value in settings.items()
        if isinstance(value, (int, float, str))
    ]
    return f"\n| settings of {of} | |\n|---|---|\n{''.join(rows)}" if rows else ""


def _figures(tables: Mapping[str, Table]) -> str:
    """The accuracies, with one column per table."""
    parts = [
        _FIGURES,
        "Right answers in percent on held-out scenes. In every question one aspect of the scene "
        "is changed and everything left open is drawn anew; a tie is a wrong answer. Zero-shot is "
        "at the paper's noise levels 0.2, 0.4, 0.6 and 0.8, few-shot at the adapter's own.",
    ]
    for prefix, question in (
        ("image ", "Given a text, the right image of two (chance 50), by what is changed"),
        ("text ", "Given an image, the right text of two (chance 50), by what is changed"),
    ):
        if rows := _rows(tables, prefix):
            parts += ["", *_header(question, tables), *rows]
    if rows := _rows(tables, "R@1 "):
        parts += ["", *_header("Given an image, the right text of ten (chance 10)", tables), *rows]
    return "\n".join(parts) + "\n"


def _header(question: str, tables: Mapping[str, Table]) -> list[str]:
    return [f"| {question} | {' | '.join(tables)} |", "|---|" + "---|" * len(tables)]


def _rows(tables: Mapping[str, Table], prefix: str) -> list[str]:
    """One row per question with a prefix, in order of first occurrence."""
    names = dict.fromkeys(name for table in tables.values() for name in table)
    return [
        f"| {name.removeprefix(prefix)} | {' | '.join(cells)} |"
        for name in names
        if name.startswith(prefix)
        for cells in [[f"{t[name]:.0f}" if name in t else "-" for t in tables.values()]]
    ]
