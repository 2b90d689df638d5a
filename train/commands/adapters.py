"""The option that names a few-shot adapter; imports nothing heavy, so that help is fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsd_trt.commands.options import Command
from dsd_trt.errors import InputError, ModelError, counted

if TYPE_CHECKING:
    from dsd_trt.train.diffusion.place import ModelPlace
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


def require_base(file: AdapterFile | None, place: ModelPlace) -> None:
    """Refuse an adapter of another model, as far as names and small files of weights tell.

    What is left is refused when the model is read, seconds later.

    Raises:
        ModelError: the model's weights differ, or it has another number of layers.
    """
    from dsd_trt.train.diffusion.place import count_cross_attention, require_small_weights

    if file is None:
        return
    require_small_weights(place, file.config.base)
    found = count_cross_attention(place)
    if found and file.layers and file.layers != found:
        raise ModelError(
            f"the adapter was trained on another model: it has {counted(file.layers, 'layer')}, "
            f"and {place.name} has {found}. Train one for this model: dsd-trt train"
        )


def require_layers(selection: str, place: ModelPlace) -> None:
    """Refuse cross-attention layers that a model lacks, by the names of its weights.

    Raises:
        InputError: the selection names a layer that the model does not have.
    """
    from dsd_trt.train.diffusion.place import count_cross_attention
    from dsd_trt.train.scoring.choices import select_layers

    if found := count_cross_attention(place):
        try:
            select_layers(selection, found)
        except ValueError as error:
            raise InputError(f"{error} for {place.name}") from None


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
