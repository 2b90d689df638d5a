"""`dsd-trt explain`: which words a score comes from, and where in the image they were found."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
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

    from dsd_trt.explanation import Contrast, Explanation
    from dsd_trt.failure import Failure
    from dsd_trt.jobs import Scorable
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

    from dsd_trt.bundle.folder import Bundle, with_maps
    from dsd_trt.bundle.place import bundle_folder
    from dsd_trt.commands.bundle_checks import require_bundle
    from dsd_trt.commands.console import progress_bar
    from dsd_trt.commands.inputs import images_named
    from dsd_trt.commands.output import refuse_input, refuse_unwritable
    from dsd_trt.explanation import require_choice
    from dsd_trt.failure import Failure
    from dsd_trt.jobs import name_of
    from dsd_trt.scoring_arguments import checked_text

    texts = [checked_text(text, "TEXT") for text in texts]
    if against is not None:
        against = checked_text(against, "--against")
    manifest = require_bundle(bundle, "pair", levels)[0]
    with_maps(Bundle(Path(bundle_folder(bundle)), manifest))
    used = levels or manifest.method.noise_levels.fractions
    require_choice(manifest.method, used, layer, head, level)
    images, failures = images_named(named)
    refuse_input(output, (it for it in images if isinstance(it, Path)))
    refuse_unwritable(output)
    _require_room(form, len(images) * len(texts), against is not None)

    scorer = opening.scorer(bundle, "pair")
    chosen = {"layer": layer, "head": head, "level": level}
    found: list[tuple[Explanation, Contrast | None]] = []
    pictures: list[Image.Image | None] = []
    lost = list(failures)
    with progress_bar("images") as progress:
        for done, image in enumerate(images, start=1):
            try:
                of_image = _explained(scorer, image, texts, against, levels, chosen)
            except ImageError as error:
                name = name_of(image, done - 1)
                lost.append(Failure(name, str(error).removeprefix(f"{name}: ")))
                continue
            finally:
                progress(done, len(images))
            found += of_image
            pictures += [_picture(image, form)] * len(of_image)
    if not found:
        _report(lost)
        raise InputError("no image could be explained")
    origin = _origin(scorer, levels, chosen)
    _write(output, form, found, pictures, lost, origin)
    if output != "-":
        note(f"wrote {counted(len(found), 'explanation')} to {output}")
    if lost:
        _report(lost)
        ctx.exit(3)


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
    if not images:
        hint = f"; {arguments[0]!r} is no file, so it is taken for a text" if arguments else ""
        raise InputError(f"give IMAGES to explain{hint}; see: dsd-trt explain --help")
    if not texts:
        raise InputError(
            f"give a TEXT to explain, such as: dsd-trt explain {shlex.quote(images[0])} 'a red "
            "circle' -o FILE.png. A text that is also a file's name: --text TEXT"
        )
    return images, texts


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

        most, other = MOST, "FILE.json"
    else:
        return
    if count > most:
        raise InputError(
            f"{counted(count, 'explanation')}, and FILE.{form} has room for {most}: give fewer "
            f"images or texts, or -o {other}"
        )


def _explained(
    scorer: Scorer,
    image: Scorable,
    texts: Sequence[str],
    against: str | None,
    levels: Sequence[float] | None,
    chosen: dict[str, Any],
) -> list[tuple[Explanation, Contrast | None]]:
    wanted = [*texts, *([] if against is None else [against])]
    found = [it.without_maps() for it in scorer.explain(image, wanted, levels, **chosen)]
    if against is None:
        return [(it, None) for it in found]
    return [(it, it.against(found[-1])) for it in found[:-1]]


def _picture(image: Scorable, form: str) -> Image.Image | None:
    """The image to show; None for one of an index, and where none is shown."""
    from dsd_trt.image.preprocess import load_image
    from dsd_trt.image.stored import StoredImage

    if form == "json" or not isinstance(image, (Path, StoredImage)):
        return None
    from dsd_trt.explanation_png import fitting

    return fitting(load_image(image))


def _origin(
    scorer: Scorer, levels: Sequence[float] | None, chosen: dict[str, Any]
) -> list[tuple[str, str]]:
    """What the scores were computed with, by name."""
    from importlib.metadata import version

    provenance = scorer.manifest.provenance
    heat = ", ".join(f"{name} {value}" for name, value in chosen.items() if value is not None)
    used = levels or scorer.manifest.method.noise_levels.fractions
    return [
        ("dsd-trt", version("dsd-trt")),
        ("bundle", f"{provenance.base_model}, {scorer.manifest.digest[:12]}"),
        ("engine", str(scorer.engine)),
        ("noise levels", ", ".join(map(str, used))),
        ("heat maps of", heat or "all layers, heads and levels, as in the score"),
    ]


def _write(
    output: str,
    form: str,
    found: Sequence[tuple[Explanation, Contrast | None]],
    pictures: Sequence[Image.Image | None],
    lost: Sequence[Failure],
    origin: Sequence[tuple[str, str]],
) -> None:
    from dsd_trt.commands.output import write_output

    if form == "png":
        from dsd_trt.explanation_png import write_png

        write_png(Path(output), found, pictures)
    elif form == "html":
        from dsd_trt.explanation_html import to_html

        write_output(output, [to_html(found, pictures, lost, origin)])
    else:
        plain = {
            "computed_with": dict(origin),
            "explanations": [
                {**it.to_plain(), "contrast": contrast.to_plain() if contrast else None}
                for it, contrast in found
            ],
            "errors": [{"image": it.image, "reason": it.reason} for it in lost],
        }
        write_output(output, [json.dumps(plain, ensure_ascii=False), "\n"])


def _report(lost: Sequence[Failure]) -> None:
    say(f"images that could not be explained: {len(lost)}")
    for failure in lost:
        say(f"  {failure}")
