"""The files of a model's parts: where their configuration and weights lie, read without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_trt.errors import ModelError, one_line
from dsd_trt.files.names import is_file_name
from dsd_trt.files.schema import read_json as load_json

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""Names of weight files, without variant and extension, in the two libraries."""

WEIGHT_NAMES: Mapping[str, str] = {
    "vae": DIFFUSERS,
    "text_encoder": TRANSFORMERS,
    "text_encoder_2": TRANSFORMERS,
    "unet": DIFFUSERS,
}
"""Name of each part's weight files, without variant and extension."""

_VARIANTS = ("", ".fp16")  # some repositories publish only the second


def find_weights(folder: Path, name: str, *, index_first: bool = False) -> list[Path]:
    """Weight files of a part: a single file, or the shards that an index lists.

    Args:
        folder: folder of the part.
        name: name without variant and extension: "model" in transformers,
            "diffusion_pytorch_model" in diffusers.
        index_first: whether an index takes precedence over a single file, as in diffusers.

    Raises:
        ModelError: there are no weights as safetensors in a known variant, or a shard is missing.
    """
    for variant in _VARIANTS:
        whole, index = folder / f"{name}{variant}.safetensors", _index(folder, name, variant)
        if index.is_file() and (index_first or not whole.is_file()):
            return _shards(index)
        if whole.is_file():
            return [whole]
    wanted = folder / f"{name}.safetensors"
    if wanted.is_symlink():
        raise ModelError(f"{wanted} is a link to a file that is not there: download it again")
    shards = sorted(path.name for path in folder.glob(f"{name}*-of-*.safetensors"))
    if shards:
        raise ModelError(
            f"{folder} holds {shards[0]} without {_index(folder, name, '').name}, which lists the "
            "shards: download or save the model again"
        )
    others = sorted(
        path.name
        for path in folder.glob("*")
        if path.is_file()
        and path.suffix in (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")
    )
    if others:
        raise ModelError(
            f"{folder} holds no {wanted.name}, but {', '.join(others)}, which is not read: save "
            f"the weights as safetensors under that name, or as {name}.fp16.safetensors"
        )
    raise ModelError(f"{folder} holds no {wanted.name}: download or save the model again")


def has_weights(folder: Path, name: str, variant: str = "") -> bool:
    """Whether a folder has weights of a variant; shards are not checked.

    Args:
        folder: folder of the part.
        name: name of the weight files without variant and extension.
        variant: variant of the weights, "" or ".fp16".
    """
    paths = (folder / f"{name}{variant}.safetensors", _index(folder, name, variant))
    return any(path.is_file() for path in paths)


def weight_patterns(name: str, variant: str = "") -> list[str]:
    """Glob patterns of all files that `find_weights` may use for a variant."""
    shard = "-?????-of-?????"
    patterns = [f"{name}{variant}.safetensors", f"{name}{variant}{shard}.safetensors"]
    if variant:  # names of shards in older versions of diffusers
        patterns.append(f"{name}{shard}{variant}.safetensors")
    return [*patterns, _index(Path(), name, variant).name]


def _index(folder: Path, name: str, variant: str) -> Path:
    return folder / f"{name}.safetensors.index{variant}.json"


def _shards(index: Path) -> list[Path]:
    try:
        listed = sorted(set(load_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of shards: {one_line(repr(error))}") from error
    for name in listed:
        if not isinstance(name, str) or Path(name).name != name or not is_file_name(name):
            raise ModelError(f"{index} names a shard {one_line(repr(name))} outside its folder")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index} names {name}, which is missing: download it again")
        if not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name}, which is no .safetensors file")
    if not listed:
        raise ModelError(f"{index} lists no shards")
    return [index.parent / name for name in listed]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ModelError: the file is missing, unreadable, or does not hold an object.
    """
    try:
        found = load_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"cannot read {path}: it holds no JSON object")
    return found


def require_class(found: Any, known: Sequence[str], where: Path, field: str) -> None:
    """Refuse a part whose class is not supported.

    Args:
        found: class that the part's file names; None if it names none.
        known: names of the supported classes.
        where: file that names the class.
        field: field of that file, such as "_class_name".

    Raises:
        ModelError: the class is not supported; the message names the supported ones.
    """
    if found is not None and found not in known:
        raise ModelError(
            f"{where}: {field} is {found!r}; known is {' or '.join(known)}. It is not a "
            "supported model of the Stable Diffusion family"
        )
