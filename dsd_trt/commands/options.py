"""Options shared by several commands; imports nothing heavy, so that help is fast."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from dsd_trt.commands.environment import setting
from dsd_trt.engine import engine_names

if TYPE_CHECKING:
    from dsd_trt.tables.columns import Role

Command = TypeVar("Command", bound=Callable[..., Any])

_COLUMNS = {
    "image": "the table's images: paths, relative to the table",
    "text": "the table's texts",
    "label": "the table's labels: 1 for positive pairs, 0 for negative ones",
    "id": "the table's identifiers",
}


class Share(click.FloatRange):
    """A number between 0 and 1; a percentage is refused with the number that it means."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, checked."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if 0 <= number <= 100 and (text.endswith("%") or number >= 5):
            self.fail(
                f"{text!r} is a percentage; write it as a share: {number / 100:g}", param, ctx
            )
        return super().convert(value, param, ctx)


class TablePath(click.Path):
    """Path of a table; a URL is refused by name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, checked."""
        if "://" in str(value) and not Path(str(value)).exists():
            self.fail(f"{str(value)!r} is a URL: download it first, and give the file", param, ctx)
        return super().convert(value, param, ctx)


def parse_levels(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Parse "0.2,0.4"; whether the bundle has these levels is checked later."""
    if value is None:
        return None
    try:
        levels = tuple(float(level) for level in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list such as 0.2,0.4") from None
    if not all(0 < level < 1 for level in levels):
        raise click.BadParameter(f"{value!r}: every noise level lies between 0 and 1")
    return levels


def mode_option(explanation: str) -> Callable[[Command], Command]:
    """--mode, the mode to score in: "auto", "pair" or "matrix".

    Args:
        explanation: help text of the option.
    """
    return click.option(
        "--mode",
        type=click.Choice(["auto", "pair", "matrix"]),
        default="auto",
        show_default=True,
        help=explanation,
    )


def levels_option(command: Command) -> Command:
    """--levels, the noise levels to average over; None is all of the bundle's."""
    return click.option(
        "--levels",
        metavar="S,S...",
        callback=parse_levels,
        help="Noise levels to average over, such as 0.1,0.2.  [default: all]",
    )(command)


def bundle_option(purpose: str) -> Callable[[Command], Command]:
    """--bundle, a folder or a repository on the hub; None is the demonstration's."""
    return click.option(
        "--bundle",
        **setting("BUNDLE"),
        metavar="FOLDER|HUB_ID",
        help=f"Bundle to {purpose}: a folder, or ORG/NAME[@REVISION] on the Hugging Face Hub.  "
        "[default: the demonstration's]",
    )


def signature_option(command: Command) -> Command:
    """--require-signature, path of a public key; None requires no signature."""
    return click.option(
        "--require-signature",
        **setting("REQUIRE_SIGNATURE"),
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="KEY",
        help="Public key (minisign.pub) that must have signed the bundle; see dsd-trt sign.",
    )(command)


def engine_option(command: Command) -> Command:
    """--engine, name of the backend that computes."""
    return click.option(
        "--engine",
        **setting("ENGINE"),
        type=click.Choice(engine_names()),
        default="auto",
        show_default=True,
        help="Engine that computes; auto is the fastest that works here with this bundle.",
    )(command)


def _gpu_number(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Parse the number of a GPU; whether there is such a GPU is asked later."""
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise click.BadParameter(
            f"{value!r} is no number of a GPU. The first one is 0, the second 1: nvidia-smi lists "
            "them"
        )
    return int(value)


def device_option(command: Command) -> Command:
    """--device, number of the GPU; 0 is the first one."""
    return click.option(
        "--device",
        **setting("DEVICE"),
        callback=_gpu_number,
        default="0",
        show_default=True,
        metavar="N",
        help="Number of the GPU, for engines that compute on one.",
    )(command)


def threads_option(command: Command) -> Command:
    """--threads, number of threads of an engine of the processor; None is one per core."""
    return _threads(
        command,
        "Number of threads, for engines that compute on the processor.  "
        "[default: every core this process may use]",
    )


def pytorch_threads_option(command: Command) -> Command:
    """--threads, number of threads of PyTorch on the processor; None is its own choice."""
    return _threads(
        command,
        "Number of CPU threads that PyTorch computes with; 1 is best for a small model while "
        "other programs use the cores.  [default: PyTorch's, one per core]",
    )


def _threads(command: Command, explanation: str) -> Command:
    return click.option(
        "--threads",
        **setting("THREADS"),
        type=click.IntRange(1, 2**15 - 1),
        metavar="N",
        help=explanation,
    )(command)


def memory_option(command: Command) -> Command:
    """--memory-budget, MiB for activations; None is the engine's own choice."""
    return click.option(
        "--memory-budget",
        **setting("MEMORY_BUDGET"),
        type=click.FloatRange(0, 2**30, max_open=True),
        metavar="MIB",
        help="Memory for activations, in MiB, which bounds the batch sizes; weights and texts come "
        "on top. On a processor, a budget below the size of a large bundle's weights also closes "
        "encoders while they are not in use.  [default: 1024 on a processor, two fifths of the "
        "free memory on a GPU]",
    )(command)


def cache_compiled_option(command: Command) -> Command:
    """--cache-compiled; only compiled models of small bundles are kept by default."""
    return click.option(
        "--cache-compiled",
        **setting("CACHE_COMPILED"),
        is_flag=True,
        help="Keep what OpenVINO compiles of a bundle with at least 500 MB of weights, too: twice "
        "the size of FP16 weights in the cache. Later starts are faster, and half of the memory is "
        "pages of these files.",
    )(command)


def self_check_option(command: Command) -> Command:
    """--no-self-check; the self-check is on by default."""
    return click.option(
        "--no-self-check",
        "self_check",
        flag_value=False,
        default=True,
        help="Open the bundle without checking that its graphs reproduce its stored results. "
        "Faulty weights, plans, drivers and processors then go unnoticed.",
    )(command)


def column_options(*roles: Role) -> Callable[[Command], Command]:
    """--image-column and so on, one option per role; the command gets `columns`: `ColumnNames`."""

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def with_columns(**given: Any) -> Any:
            from dsd_trt.tables.columns import ColumnNames

            names = {role: given.pop(f"{role}_column") for role in roles}
            return command(**given, columns=ColumnNames(**names))

        for role in reversed(roles):
            with_columns = click.option(
                f"--{role}-column",
                metavar="NAME",
                help=f"Column of {_COLUMNS[role]}.  [default: {role}]",
            )(with_columns)
        return cast(Command, with_columns)

    return add


def pair_options(*more: Role) -> Callable[[Command], Command]:
    """Options that say where pairs have images and texts: `columns`, `images_at`, `text_field`.

    Args:
        more: roles of further columns.
    """
    options = (
        column_options("image", "text", *more),
        click.option(
            "--images",
            "images_at",
            type=click.Path(exists=True, path_type=Path),
            metavar="FOLDER|TAR|INDEX",
            help="Where the table's images are: a folder that their paths are relative to, a tar "
            "file, or an index whose names they are.  [default: the table's folder]",
        ),
        click.option(
            "--text-field",
            metavar="NAME",
            help="Field of a WebDataset's .json that has the text.  [default: its .txt]",
        ),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def images_folder_option(command: Command) -> Command:
    """--images, the folder of the images of a labelled table: `images_at`."""
    return click.option(
        "--images",
        "images_at",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Folder that the paths of a table's images are relative to.  [default: the table's]",
    )(command)


def model_option(command: Command) -> Command:
    """--model, the checkpoint of a diffusion model."""
    return click.option(
        "--model",
        default="shapes",
        show_default=True,
        metavar="DIR|FILE|HUB_ID",
        help="Stable Diffusion: a folder in diffusers' format, FILE.safetensors[@FAMILY], or "
        'ORG/NAME[@REVISION] on the Hugging Face Hub. "shapes" is the demonstration.',
    )(command)


def fair_resolution_option(command: Command) -> Command:
    """--fair-resolution, the paper's protocol for comparisons with CLIP: a `Resize`, or None."""
    return click.option(
        "--fair-resolution",
        "resize",
        flag_value="bicubic-stretch-through-224",
        help="Shrink images to 224 x 224 pixels first, the resolution CLIP sees (the paper's "
        "Table 1).",
    )(command)


def table_format_option(command: Command) -> Command:
    """--format, the output format of figures."""
    return click.option(
        "-f",
        "--format",
        "form",
        **setting("REPORT_FORMAT"),
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Output format: a table to read, or JSON.",
    )(command)


def seed_option(of: str) -> Callable[[Command], Command]:
    """--seed, the seed of random numbers.

    Args:
        of: help text of the option: what depends on the seed.
    """
    return click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=of
    )
