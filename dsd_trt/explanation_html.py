"""Explanations as a page: one file that needs no network and runs no script."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from dsd_trt.errors import InputError, counted
from dsd_trt.explanation import Contrast, Explanation
from dsd_trt.explanation_png import fitting, in_words, largest_heat
from dsd_trt.failure import Failure
from dsd_trt.heat_map import legend, of_scale, overlay
from dsd_trt.words import Word

MOST = 1000
"""Explanations of one page; its size is about 100 kB for each."""

_STYLE = """
:root { color-scheme: light dark; --text: #16181d; --faint: #565d69; --ground: #fff;
  --rule: #d6dae1; --mark: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaee; --faint: #a3abb8;
  --ground: #14161a; --rule: #383d46; --mark: #a8c7fa; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; color: var(--text);
  background: var(--ground); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--rule); padding: 1.2rem 0; }
p { margin: .2rem 0; overflow-wrap: anywhere; } .faint { color: var(--faint); }
ul.panels { display: flex; flex-wrap: wrap; gap: .8rem; list-style: none; padding: 0; }
ul.panels li { width: 11rem; } img { display: block; max-width: 100%; border-radius: 3px; }
li.best img { outline: 3px solid var(--mark); outline-offset: 1px; } li.best b::after {
  content: " (highest)"; font-weight: 400; color: var(--faint); }
.scale { width: 22rem; max-width: 100%; } .scale div { display: flex;
  justify-content: space-between; font-size: .85rem; color: var(--faint); }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; } td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums; }
tr.decisive td { font-weight: 600; } summary { cursor: pointer; padding: .2rem 0; }
a, summary { color: var(--mark); }
a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 3px solid var(--mark);
  outline-offset: 2px; }
@media print { section { break-inside: avoid; } }
"""


def to_html(
    explained: Sequence[tuple[Explanation, Contrast | None]],
    pictures: Sequence[Image.Image | None],
    failures: Sequence[Failure],
    provenance: Sequence[tuple[str, str]],
) -> str:
    """A page of explanations, in their order.

    Args:
        explained: explanations, each with its comparison if there is one.
        pictures: the image of each explanation; None where it is not known.
        failures: images and texts that could not be explained.
        provenance: names and values of what the scores were computed with, for the foot.

    Raises:
        InputError: there are more explanations than a page has room for.
    """
    if len(explained) > MOST:
        raise InputError(
            f"{counted(len(explained), 'explanation')} are too many for one page of at most "
            f"{MOST}: give fewer images or texts, or write -o FILE.json"
        )
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    policy += "; base-uri 'none'; form-action 'none'"
    parts = [
        _section(number, it, contrast, picture)
        for number, ((it, contrast), picture) in enumerate(zip(explained, pictures, strict=True), 1)
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Explained scores</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>Explained scores</h1>{_contents(explained)}</header>\n"
        f"<main>\n{''.join(parts)}{_failures(failures)}</main>\n"
        f"<footer><section><h2>Computed with</h2>{_pairs(provenance)}</section></footer>\n"
        "</body>\n</html>\n"
    )


def _contents(explained: Sequence[tuple[Explanation, Contrast | None]]) -> str:
    """Links to the explanations, if there are several."""
    if len(explained) < 2:
        return ""
    lines = "".join(
        f'<li><a href="#e{number}">{_text(it.text)}</a> <span class="faint">{_text(it.image)}, '
        f"score {it.score:.4f}</span></li>"
        for number, (it, _) in enumerate(explained, 1)
    )
    many = counted(len(explained), "explanation")
    return f"<nav><details open><summary>{many}</summary><ol>{lines}</ol></details></nav>"


def _section(
    number: int, it: Explanation, contrast: Contrast | None, picture: Image.Image | None
) -> str:
    both = [it] if contrast is None else [it, contrast.second]
    largest, shown = largest_heat(both), fitting(picture)
    body = "".join(_panels(one, shown, largest, first=one is it) for one in both)
    table = "" if contrast is None else _difference(number, contrast)
    return (
        f'<section id="e{number}" aria-labelledby="h{number}"><h2 id="h{number}">{_text(it.text)}'
        f"</h2>{body}{table}{_legend(largest)}</section>\n"
    )


def _panels(it: Explanation, picture: Image.Image, largest: float, *, first: bool) -> str:
    """The image, and an overlay for each word."""
    likely = "" if np.isnan(it.probability) else f", probability {it.probability:.3f}"
    title = "" if first else f"<h3>Against: {_text(it.text)}</h3>"
    best = max((word.score for word in it.words if not word.special), default=None)
    items = [f'<li><img src="{_data(picture)}" alt="The image"><p class="faint">image</p></li>']
    for word in it.words:
        assert word.heat is not None
        data = _data(overlay(picture, word.heat, largest))
        mark = ' class="best"' if word.score == best and not word.special else ""
        items.append(
            f'<li{mark}><img src="{data}" alt="{_text(_where(word))}">'
            f"<p><b>{_text(word.text)}</b> {word.score:.4f}{_tokens(word)}</p></li>"
        )
    return (
        f'{title}<p class="faint">{_text(it.image)}, score {it.score:.4f}{likely}</p>'
        f'<ul class="panels">{"".join(items)}</ul>'
    )


def _where(word: Word) -> str:
    """Where a word was found, for those who see no picture."""
    assert word.heat is not None
    if not word.heat.any():
        return f"{word.text}: found nowhere"
    row, column = np.unravel_index(int(word.heat.argmax()), word.heat.shape)
    rows, columns = word.heat.shape
    return (
        f"{word.text}: most heat {100 * (column + 0.5) / columns:.0f} % from the left and "
        f"{100 * (row + 0.5) / rows:.0f} % from the top"
    )


def _tokens(word: Word) -> str:
    if len(word.tokens) < 2 or word.special:
        return ""
    parts = ", ".join(f"{_text(it.text.removesuffix('</w>'))} {it.score:.4f}" for it in word.tokens)
    return f'<br><span class="faint">tokens: {parts}</span>'


def _difference(number: int, contrast: Contrast) -> str:
    decisive = contrast.decisive
    rows = ""
    for it in contrast.changes:
        mark, says = (' class="decisive"', " (decides)") if it is decisive else ("", "")
        rows += (
            f"<tr{mark}><td>{_text(in_words(it.words, it.others))}{says}</td>"
            f'<td class="number">{it.difference:+.4f}</td></tr>'
        )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Difference {number}"><table>'
        '<thead><tr><th>words</th><th class="number">adds to the difference</th></tr></thead>'
        f"<tbody>{rows}<tr><td>together</td>"
        f'<td class="number">{contrast.difference:+.4f}</td></tr></tbody></table></div>'
    )


def _legend(largest: float) -> str:
    numbers = "".join(
        f"<span>{largest * of_scale(share):.2g}</span>" if share else "<span>0</span>"
        for share in (0, 0.5, 1)
    )
    return (
        f'<div class="scale"><img src="{_data(legend(352, 12))}" alt="Scale of heat, from dark '
        f'blue to light yellow"><div>{numbers}</div></div>'
        '<p class="faint">Heat of a place; the places of a word sum to its score.</p>'
    )


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    lines = "".join(f"<li>{_text(str(it))}</li>" for it in failures)
    return f"<section><h2>Could not be explained</h2><ul>{lines}</ul></section>\n"


def _pairs(provenance: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in provenance
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Origin"><table>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _data(picture: Image.Image) -> str:
    """A picture as a URL that holds it."""
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _text(text: str) -> str:
    """Text for a page: escaped, and without bytes that are no UTF-8."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))
