"""Places of models: the package itself, a folder, a single file, or the Hugging Face Hub.

What a user may name wrong is said here, before PyTorch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dsd_trt.bundle.hub import Repository
from dsd_trt.bundle.manifest import MANIFEST_NAME
from dsd_trt.errors import ModelError
from dsd_trt.files.names import is_file_name, stays_inside
from dsd_trt.files.schema import parse_json
from dsd_trt.files.whole import sha256_of
from dsd_trt.train.diffusion.families import FAMILIES
from dsd_trt.train.diffusion.weight_files import (
    DIFFUSERS,
    WEIGHT_NAMES,
    find_weights,
    has_weights,
    read_json,
    weight_patterns,
)

EMBEDDED = "shapes"
ADAPTER = "adapter"
"""Subfolder of a model that holds its own adapter."""

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
"""Parts of every model, by the names of their folders."""

_ADAPTER_CONFIG = "adapter.json"
_FILE = re.compile(r"(?P<path>.+\.safetensors)(@(?P<family>[^@/]+))?")
_SMALL_WEIGHTS = 2**26  # bytes, hashed in 0.05 s
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_LORA = re.compile(r"(^|[._])lora[._]|\.(hada|lokr)_")  # names of tensors
# The files that are read; repositories hold every weight in several formats.
_SMALL = (
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/*", "tokenizer_2/*"),
    *(f"{part}/config.json" for part in WEIGHT_NAMES),
)


@dataclass(frozen=True)
class ModelPlace:
    """The local files of a model, not yet opened.

    Attributes:
        name: name of the model in a bundle, without local folders.
        path: folder in diffusers' format, or single file.
        family: family that the user named for a file; None otherwise.
        revision: commit of a model from the hub; None for any other.
    """

    name: str
    path: Path
    family: str | None = None
    revision: str | None = None

    @property
    def own_adapter(self) -> Path | None:
        """Folder of the adapter that the model brings along; None if it has none."""
        folder = self.path / ADAPTER
        return folder if (folder / _ADAPTER_CONFIG).is_file() else None


def embedded_model_folder() -> Path:
    """Folder of the demonstration in the installed package."""
    return Path(str(files("dsd_trt") / "data" / "shapes-model"))


def find_place(model: str | Path) -> ModelPlace:
    """Find a model, downloading it from the hub if it is not in the hub's cache.

    Args:
        model: "shapes" for the demonstration; a folder in diffusers' format; a single file,
            "FILE.safetensors[@FAMILY]"; or a repository on the Hugging Face Hub,
            "ORG/NAME[@REVISION]".

    Raises:
        ModelError: the model does not exist, or the hub cannot be reached.
    """
    if str(model) == EMBEDDED:
        return ModelPlace(EMBEDDED, embedded_model_folder())
    if Path(model).is_dir():
        return ModelPlace(Path(model).resolve().name, Path(model))
    if (found := _FILE.fullmatch(str(model))) and Path(found["path"]).is_file():
        path = Path(found["path"])
        return ModelPlace(path.stem, path, found["family"])
    if Path(model).suffix in _PICKLES and Path(model).is_file():
        raise ModelError(
            f"{model} is a pickle, which can run code when it is read: convert it to .safetensors, "
            "or use a folder in diffusers' format"
        )
    if named := Repository.named(str(model)):
        return _from_hub(named.name, named.revision)
    raise ModelError(
        f"no model {str(model)!r}: give a folder in diffusers' format, a .safetensors file "
        "(FILE or FILE@FAMILY), a repository on the Hugging Face Hub "
        f'(ORG/NAME@REVISION, or ORG/NAME where no folder ORG is here), or "{EMBEDDED}"'
    )


def require_model(place: ModelPlace) -> None:
    """Refuse what is no model by its files alone; their content is checked when it is opened.

    Raises:
        ModelError: parts, configurations or weights are missing or unreadable; or it is a bundle,
            an adapter, a LoRA, or a file of an unknown family.
    """
    if place.path.is_dir():
        _require_folder(place.path)
    else:
        _require_file(place)


def count_cross_attention(place: ModelPlace) -> int | None:
    """Number of cross-attention layers of a U-Net, by the names of its weights.

    Returns:
        None if the names are of another layout, which is refused when the model is opened.
    """
    files = [place.path]
    if place.path.is_dir():
        files = find_weights(place.path / "unet", DIFFUSERS, index_first=True)
    return sum(map(_has_keys, (name for file in files for name in _tensor_names(file)))) or None


def require_small_weights(place: ModelPlace, hashes: Mapping[str, str]) -> None:
    """Refuse a model whose small weight files are others; large ones are hashed when opened.

    Args:
        place: model whose weight files are read.
        hashes: sha256 of each weight file of the model that is meant, by file name.

    Raises:
        ModelError: a file differs; the message names it.
    """
    parent = place.path if place.path.is_dir() else place.path.parent
    # Names of an adapter's file may be anything.
    paths = {name: parent / name for name in hashes if is_file_name(name) and stays_inside(name)}
    found = {
        name: sha256_of(path)
        for name, path in paths.items()
        if path.is_file() and path.stat().st_size <= _SMALL_WEIGHTS
    }
    require_weights({name: hashes[name] for name in found}, found)


def require_weights(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse weight files other than those that an adapter was trained on.

    Args:
        expected: sha256 of each weight file that the adapter was trained on, by file name.
        found: sha256 of each weight file of the model.

    Raises:
        ModelError: a weight file differs or is missing; the message names the first.
    """
    for file in expected:
        if found.get(file) != expected[file]:
            raise ModelError(
                f"the adapter was trained on another model: {file} differs. Train one for "
                "this model: dsd-trt train"
            )


def require_parts(where: object, has: Mapping[str, bool]) -> None:
    """Refuse a model without one of its parts.

    Args:
        where: folder or file of the model, for the message.
        has: whether the model has each of `PARTS`.
    """
    if missing := [part for part in PARTS if not has[part]]:
        raise ModelError(
            f"{where} is not a Stable Diffusion checkpoint in diffusers' format: it has no "
            f"{', '.join(missing)}"
        )


def _require_folder(folder: Path) -> None:
    if (folder / MANIFEST_NAME).is_file():
        raise ModelError(
            f"{folder} is a bundle: name the checkpoint that it was exported from instead"
        )
    if (folder / _ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{folder} is an adapter: name the checkpoint that it was trained for, and the adapter "
            f"with an option of its own, such as: dsd-trt eval MODEL --adapter {folder}"
        )
    require_parts(folder, {part: (folder / part).is_dir() for part in PARTS})
    read_json(folder / "scheduler" / "scheduler_config.json")
    for part, name in WEIGHT_NAMES.items():
        if (folder / part).is_dir():
            read_json(folder / part / "config.json")
            find_weights(folder / part, name, index_first=name == DIFFUSERS)


def _require_file(place: ModelPlace) -> None:
    if place.family is not None and place.family not in FAMILIES:
        raise ModelError(
            f"{place.path}: there is no family {place.family!r}; families are {', '.join(FAMILIES)}"
        )
    names = _tensor_names(place.path)
    if any(map(_LORA.search, names)):
        raise ModelError(
            f"{place.path} is a LoRA, which changes a checkpoint and is none: merge it into its "
            "checkpoint, and save that"
        )


def _tensor_names(path: Path) -> list[str]:
    """Names in the header of a safetensors file; none if it has no header, which opening says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return []
        try:
            return list(parse_json(file.read(length).decode()))
        except (ValueError, TypeError):
            return []


def _has_keys(name: str) -> bool:
    """Whether a tensor is the key matrix of a cross-attention layer, in either layout."""
    return name.endswith(".attn2.to_k.weight")


def _from_hub(repository: str, revision: str | None) -> ModelPlace:
    from dsd_trt.train.diffusion.hub import fetch

    folder = fetch(repository, revision, (*_SMALL, *_weights(WEIGHT_NAMES, "")))
    # Parts that are published in FP16 alone.
    lacking = {
        part: name
        for part, name in WEIGHT_NAMES.items()
        if (folder / part).is_dir() and not has_weights(folder / part, name)
    }
    if lacking:
        # The same commit: the branch may have moved on since the first download.
        folder = fetch(repository, folder.name, (*_SMALL, *_weights(lacking, ".fp16")))
    return ModelPlace(repository, folder, revision=folder.name)


def _weights(names: Mapping[str, str], variant: str) -> list[str]:
    """Patterns of a variant's weight files, single or sharded."""
    return [
        f"{part}/{pattern}"
        for part, name in names.items()
        for pattern in weight_patterns(name, variant)
    ]
