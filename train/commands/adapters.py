"""The option that names a few-shot adapter; imports nothing heavy, so that help is fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsd_trt.commands.options import Command
from dsd_trt.errors import InputError

if TYPE_CHECKING:
    from dsd_trt.train.scoring.adapter_file import AdapterFile

OWN, NONE = "own", "none"


def adapter_option(of: str, flag: str = "--adapter") -> Callable[[Command], Command]:
    """An option that names an adapter, with the model's own as the default.

    Args:
        of: help text of the option: what the adapter is for.
        flag: name of the option.
    """
    return click.option(
        flag,
        "adapter",
        default=OWN,
        metavar="ADAPTER|own|none",
        help=f"{of}: a folder; own, the model's folder `adapter`, if it has one; or none."
        "  [default: own]",
    )


def chosen_adapter(adapter: str, model: str) -> AdapterFile | None:
    """The adapter that an option names; None for none.

    Args:
        adapter: folder of an adapter, "own" or "none".
        model: base model, see `find_place`.

    Raises:
        InputError: there is no such folder.
        ModelError: the folder is no adapter; or its model cannot be found, where it is asked for.
    """
    from dsd_trt.train.diffusion.place import find_place
    from dsd_trt.train.scoring.adapter_file import AdapterFile

    if adapter == NONE:
        return None
    if adapter == OWN:
        own = find_place(model).own_adapter
        return None if own is None else AdapterFile.read(own)
    if not Path(adapter).is_dir():
        raise InputError(
            f"no adapter folder {adapter!r}: name the folder that dsd-trt train wrote, or {OWN} "
            f"for the model's own, or {NONE}"
        )
    return AdapterFile.read(Path(adapter))


def sentence(file: AdapterFile | None, adapter: str, flag: str = "--adapter") -> str:
    """What a command says about the adapter it uses.

    Args:
        file: the adapter; None for none.
        adapter: value of the option, as the user gave it.
        flag: name of the option.
    """
    if file is None:
        return "adapter: none" + ("; the model has none of its own" if adapter == OWN else "")
    if adapter == OWN:
        return f"adapter: {file.folder}, the model's own; {flag} {NONE} leaves it out"
    return f"adapter: {file.folder}"
