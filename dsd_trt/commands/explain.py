"""`dsd-trt explain`: which words a score comes from, and where in the image they were found."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click

from dsd_trt.commands.log import note, say
from dsd_trt.commands.opening import Opening, opening_options
from dsd_trt.commands.options import bundle_option, levels_option
from dsd_trt.errors import ImageError, InputError, counted

# numpy and Pillow are imported where they are used, so that help is fast.
if TYPE_CHECKING:
    from PIL import Image

    from dsd_trt.explanation_png import Pictured
    from dsd_trt.failure import Failure
    from dsd_trt.jobs import Scorable
    from dsd_trt.results import Progress
    from dsd_trt.scorer import Scorer

EXAMPLES = """\b
Examples:
  dsd-trt explain photo.jpg "a large yellow star" -o star.png
  dsd-trt explain photos/ "a red circle" "a blue ring" -o page.html
  dsd-trt explain photo.jpg "a yellow star" --against "a red star" -o star.html
  dsd-trt explain photo.jpg --text dog --layer 6 -o dog.json
"""
_FORMS = {".png": "png", ".html": "html", ".htm": "html", ".json": "json"}
_WILD = frozenset("*?[")


@click.command(epilog=EXAMPLES)
@click.argument("arguments", nargs=-1, metavar="IMAGES... TEXT...")
@click.option(
    "--text",
    "more_texts",
    multiple=True,
    metavar="TEXT",
    help="A text to explain; may be repeated. With it, all arguments are IMAGES.",
)
@click.option(
    "--against",
    metavar="TEXT",
    help="Explain every text against this one: which words make the difference.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="FILE.png, a picture; FILE.html, a page; FILE.json, the numbers; - is JSON on standard "
    "output.",
)
@click.option(
    "--layer",
    type=click.IntRange(min=0),
    metavar="N",
    help="Heat of one scored cross-attention layer of the U-Net.  [default: all, as in the score]",
)
@click.option(
    "--head",
    type=click.IntRange(min=0),
    metavar="N",
    help="Heat of one head of a layer.  [default: all, as in the score]",
)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="S",
    help="Heat at one noise level.  [default: the mean over --levels]",
)
@levels_option
@bundle_option("explain with")
@opening_options
@click.pass_context
def explain(
    ctx: click.Context,
    arguments: tuple[str, ...],
    more_texts: tuple[str, ...],
    against: str | None,
    output: str,
    layer: int | None,
    head: int | None,
    level: float | None,
    levels: tuple[float, ...] | None,
    bundle: str | None,
    opening: Opening,
) -> None:
    """Show which words a score comes from, and where in the image they were found.

    IMAGES are files, directories, globs, tar files and indexes: whatever exists, or has an image's
    suffix. All other arguments are TEXT. A word's heat map divides its score among the places of
    the image, so it sums to the score. Scores are pair mode's, and those of dsd-trt score.

    The bundle must have a graph of its attention maps: dsd-trt export --maps.
    """
    form = _form(output)
    named, texts = told_apart(arguments, more_texts)
    opening.require_possible()  # before images are read

    from dsd_trt.commands.console import progress_bar
    from dsd_trt.commands.inputs import images_named
    from dsd_trt.commands.output import refuse_input, refuse_unwritable

    chosen = {"layer": layer, "head": head, "level": level}
    asked = _asked(texts, against, levels, chosen)
    _require_choice(bundle, asked)
    images, failures = images_named(named)
    refuse_input(output, (it for it in images if isinstance(it, Path)))
    refuse_unwritable(output)
    _require_room(form, len(images) * len(texts), against is not None)

    scorer, lost = opening.scorer(bundle, "pair"), list(failures)
    with progress_bar("images") as progress:
        pictures = form != "json"
        results = _results(scorer, images, asked, lost, progress, pictures=pictures)
        try:
            first = next(results)
        except StopIteration:
            _report(lost)
            raise InputError("no image could be explained") from None
        count = len(images) * len(texts)
        _write(output, form, chain([first], results), count, lost, _origin(scorer, asked))
    if output != "-":
        note(f"wrote {output}")
    if lost:
        _report(lost)
        ctx.exit(3)


@dataclass(frozen=True)
class _Asked:
    """What every image is explained with; `chosen` is what heat maps are of."""

    texts: Sequence[str]
    against: str | None
    levels: Sequence[float] | None
    chosen: dict[str, Any]


def _asked(
    texts: Sequence[str],
    against: str | None,
    levels: Sequence[float] | None,
    chosen: dict[str, Any],
) -> _Asked:
    from dsd_trt.scoring_arguments import checked_text

    checked = [checked_text(text, "TEXT") for text in texts]
    other = None if against is None else checked_text(against, "--against")
    return _Asked(checked, other, levels, chosen)


def _require_choice(bundle: str | None, asked: _Asked) -> None:
    """Refuse what the bundle has no maps, layer, head or level for, before images are read."""
    from dsd_trt.bundle.folder import Bundle, with_maps
    from dsd_trt.bundle.place import bundle_folder
    from dsd_trt.commands.bundle_checks import require_bundle
    from dsd_trt.explanation import require_choice

    manifest = require_bundle(bundle, "pair", asked.levels)[0]
    with_maps(Bundle(Path(bundle_folder(bundle)), manifest))
    used = asked.levels or manifest.method.noise_levels.fractions
    require_choice(manifest.method, used, **asked.chosen)


def told_apart(arguments: Sequence[str], more: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and texts among the arguments, each in order.

    What exists is an image, and so is what has an image's suffix or is a pattern of paths. With
    texts from options, all arguments are images.

    Raises:
        InputError: there are no images or no texts.
    """
    if more:
        images, texts = list(arguments), list(more)
    else:
        images = [it for it in arguments if _is_image(it)]
        texts = [it for it in arguments if it not in images]
    _refuse_lost_paths(texts if not more else [])
    if not images:
        hint = f"; {arguments[0]!r} is no file, so it is taken for a text" if arguments else ""
        raise InputError(f"give IMAGES to explain{hint}; see: dsd-trt explain --help")
    if not texts:
        raise InputError(
            f"give a TEXT to explain, such as: dsd-trt explain {shlex.quote(images[0])} 'a red "
            "circle' -o FILE.png. A text that is also a file's name: --text TEXT"
        )
    return images, texts


def _refuse_lost_paths(texts: Sequence[str]) -> None:
    """Refuse what reads as a path and is no file: it would be explained as a text.

    Raises:
        InputError: an argument has a slash and no space.
    """
    for text in texts:
        if "/" in text.strip("/") and not any(map(str.isspace, text)):
            raise InputError(
                f"no file or folder {text!r}. If it is a text, say so: --text {shlex.quote(text)}"
            )


def _is_image(argument: str) -> bool:
    try:
        if os.path.lexists(argument):
            return True
    except ValueError:  # no name of a file
        return False
    from dsd_trt.image.preprocess import image_suffixes
    from dsd_trt.index.tar_names import SUFFIXES

    path = PurePath(argument)
    named = path.suffix.lower() in (*image_suffixes(), *SUFFIXES)
    pattern = _WILD & set(argument) and (named or "/" in argument) and " " not in argument
    return named or bool(pattern)


def _form(output: str) -> str:
    """Format of the output, by its suffix.

    Raises:
        InputError: it has the suffix of no format.
    """
    if output == "-":
        return "json"
    if (form := _FORMS.get(PurePath(output).suffix.lower())) is None:
        raise InputError(
            f"an explanation is a picture, a page or numbers: give -o FILE.png, FILE.html or "
            f"FILE.json, not {output!r}"
        )
    return form


def _require_room(form: str, count: int, doubled: bool) -> None:
    """Refuse more explanations than the format has room for, before the work."""
    if form == "png":
        from dsd_trt.explanation_png import MOST

        most, other = MOST // (1 + doubled), "FILE.html"
    elif form == "html":
        from dsd_trt.explanation_html import MOST

        most, other = MOST // (1 + doubled), "FILE.json"
    else:
        return
    if count > most:
        raise InputError(
            f"{counted(count, 'explanation')}, and FILE.{form} has room for {most}: give fewer "
            f"images or texts, or -o {other}"
        )


def _results(
    scorer: Scorer,
    images: Sequence[Scorable],
    asked: _Asked,
    lost: list[Failure],
    progress: Progress,
    *,
    pictures: bool,
) -> Iterator[Pictured]:
    """Explanations of all images, without their maps; what fails is added to `lost`."""
    from dsd_trt.failure import Failure
    from dsd_trt.jobs import name_of

    for done, image in enumerate(images, start=1):
        try:
            for it in _of_image(scorer, image, asked, pictures=pictures):
                if not isinstance(it, Failure):
                    yield it
                elif it not in lost:  # a text fails with every image
                    lost.append(it)
        except ImageError as error:
            name = name_of(image, done - 1)
            lost.append(Failure(name, str(error).removeprefix(f"{name}: ")))
        progress(done, len(images))


def _of_image(
    scorer: Scorer, image: Scorable, asked: _Asked, *, pictures: bool
) -> Iterator[Pictured | Failure]:
    """Explanations of an image; without one of `against`, none has a comparison."""
    from dsd_trt.explanation_png import Pictured
    from dsd_trt.failure import Failure

    picture = _picture(image) if pictures else None
    wanted = [*([] if asked.against is None else [asked.against]), *asked.texts]
    found = scorer.explain_each(image, wanted, asked.levels, **asked.chosen)
    other = None
    if asked.against is not None:
        first = next(found)
        if isinstance(first, Failure):
            yield first
        else:
            other = first.without_maps()
    for it in found:
        if isinstance(it, Failure):
            yield it
            continue
        small = it.without_maps()
        yield Pictured(small, small.against(other) if other else None, picture)


def _picture(image: Scorable) -> Image.Image | None:
    """The image to show; None for one of an index."""
    from dsd_trt.explanation_png import fitting
    from dsd_trt.image.preprocess import load_image
    from dsd_trt.image.stored import StoredImage

    return fitting(load_image(image)) if isinstance(image, (Path, StoredImage)) else None


def _origin(scorer: Scorer, asked: _Asked) -> dict[str, str]:
    """What the scores were computed with, by name."""
    from dsd_trt.commands.provenance import scoring_facts

    heat = ", ".join(f"{name} {it}" for name, it in asked.chosen.items() if it is not None)
    whole = "all layers, heads and levels, as in the score"
    return {**scoring_facts(scorer, asked.levels), "heat maps of": heat or whole}


def _write(
    output: str,
    form: str,
    results: Iterator[Pictured],
    count: int,
    lost: Sequence[Failure],
    origin: Mapping[str, str],
) -> None:
    """Write results as they come; `lost` is read after them."""
    from dsd_trt.commands.output import write_output

    if form == "png":
        from dsd_trt.explanation_png import write_png

        write_png(Path(output), list(results))
    elif form == "html":
        from dsd_trt.commands.provenance import run_facts
        from dsd_trt.explanation_html import to_html

        write_output(output, to_html(results, count, lost, lambda: {**origin, **run_facts()}))
    else:
        write_output(output, _json(results, lost, origin))


def _json(
    results: Iterator[Pictured], lost: Sequence[Failure], origin: Mapping[str, str]
) -> Iterator[str]:
    """The numbers in parts, one an explanation."""
    from dsd_trt.image.files import printable

    yield f'{{"computed_with": {json.dumps(origin, ensure_ascii=False)}, "explanations": ['
    for place, it in enumerate(results):
        contrast = it.contrast.to_plain() if it.contrast else None
        image = printable(it.explanation.image)
        plain = {**it.explanation.to_plain(), "image": image, "contrast": contrast}
        yield f"{', ' if place else ''}{json.dumps(plain, ensure_ascii=False)}"
    errors = [
        {"image": it.image and printable(it.image), "text": it.text, "reason": printable(it.reason)}
        for it in lost
    ]
    yield f'], "errors": {json.dumps(errors, ensure_ascii=False)}}}\n'


def _report(lost: Sequence[Failure]) -> None:
    say(f"could not be explained: {len(lost)}")
    for failure in lost:
        say(f"  {failure}")
