"""Strict reading of weights from .safetensors files into modules.

The libraries' own `from_pretrained` only warns if a file does not match its module, and continues
with random or empty weights. Here the files' headers are compared with the module before any
weights are read, and all weights have to be finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dsd_trt.errors import ModelError, counted, one_line
from dsd_trt.files.lfs import POINTER, is_pointer_file
from dsd_trt.files.tensor_file import require_unique

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# Insertions of wrappers into the names of the wrapped module's weights, and the remedy.
_WRAPPERS: Mapping[str, str] = {
    "base_layer.": "saved from PEFT without merging; call merge_and_unload() before saving",
    "base_model.model.": "saved from PEFT without merging; call merge_and_unload() before saving",
    "module.": "saved from DataParallel; save its .module instead",
    "_orig_mod.": "saved from torch.compile; save its ._orig_mod instead",
    "_fsdp_wrapped_module.": "saved from FSDP; gather a full state dict before saving",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, as the file's header describes it.

    Attributes:
        file: file that holds the tensor.
        shape: shape of the tensor.
        dtype: type of the elements by its name in safetensors, such as "F16".
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str

    def empty(self) -> Tensor:
        """A tensor of this shape on the meta device."""
        return torch.empty(self.shape, device="meta")


@contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file, and report errors of opening or of reading in the block.

    Raises:
        ModelError: the file is truncated, damaged, or a Git LFS pointer.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        pointer = is_pointer_file(path)
        what = POINTER if pointer else f"{one_line(error)}. Download or save it again"
        raise ModelError(f"cannot read {path}: {what}") from error


def read_headers(files: Iterable[Path]) -> dict[str, Stored]:
    """Headers of all tensors in some files, by name; no weights are read.

    Raises:
        ModelError: a file is truncated or damaged, or two files hold a tensor of the same name.
    """
    found: dict[str, Stored] = {}
    for path in files:
        with open_weights(path) as file:
            try:
                with path.open("rb") as content:
                    require_unique(content)
            except ValueError as error:
                raise ModelError(f"cannot read {path}: {one_line(error)}") from None
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in found:
                    raise ModelError(f"{name} is both in {found[name].file} and in {path}")
                part = file.get_slice(name)
                found[name] = Stored(path, tuple(part.get_shape()), str(part.get_dtype()))
    return found


def read_tensors(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Read tensors in their stored type, file by file, each with its name.

    Raises:
        ModelError: a file cannot be read.
    """
    for path in sorted({tensor.file for tensor in stored.values()}):
        with open_weights(path) as file:
            for name, tensor in stored.items():
                if tensor.file == path:
                    yield name, file.get_tensor(name)


def check_names(
    module: nn.Module, weights: Mapping[str, Tensor | Stored], where: str, what: str
) -> None:
    """Compare names and shapes of a part's weights with its module.

    Args:
        module: module of the part, possibly on the meta device.
        weights: tensors or headers, by their names in the module.
        where: file or folder, for the message.
        what: name of the part, for the message.

    Raises:
        ModelError: a weight is missing, unknown or of another shape; the message names the first.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing:
        raise ModelError(f"{where}: {what} lacks {_some(missing)}{_reason(missing, unexpected)}")
    if unexpected:
        raise ModelError(
            f"{where}: {what} has {_some(unexpected)}, which {_kind(module)} of this configuration "
            "does not have: it is another model, or its config.json is"
        )
    for name, wanted in expected.items():
        shape = tuple(weights[name].shape)
        if shape != tuple(wanted.shape):
            raise ModelError(
                f"{where}: {name} of {what} is {shape}, expected {tuple(wanted.shape)}: it is "
                "another model, or its config.json is"
            )


def check_types(weights: Mapping[str, Stored], where: str, what: str) -> None:
    """Refuse weights that are not stored as floating-point numbers.

    Args:
        weights: headers of the weights, by name.
        where: file or folder, for the message.
        what: name of the part, for the message.

    Raises:
        ModelError: a weight has another type; the message names the first.
    """
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{where}: {name} of {what} is stored as {tensor.dtype}; read are "
                f"{', '.join(_DTYPES)}. Save the model without quantisation"
            )


def check_numbers(weights: Mapping[str, Stored], where: str, what: str) -> None:
    """Check that all weights are finite, one tensor at a time.

    Args:
        weights: headers of the weights, by name.
        where: file or folder, for the message.
        what: name of the part, for the message.

    Raises:
        ModelError: a tensor holds NaN or infinity, or a file is damaged.
    """
    for name, tensor in read_tensors(weights):
        if not is_finite(tensor):
            _refuse_infinite(name, tensor, tensor.dtype, where, what)


def fill_module(
    module: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype, where: str, what: str
) -> None:
    """Assign weights to their module.

    Args:
        module: module of the part, possibly on the meta device.
        weights: tensors by their names in the module; emptied in the process, so that no tensor
            is in memory twice.
        dtype: type that the weights are converted to.
        where: file or folder, for the message.
        what: name of the part, for the message.

    Raises:
        ModelError: `check_names` fails, or a weight is NaN, infinite or too large for `dtype`.
    """
    check_names(module, weights, where, what)
    converted = {}
    for name in list(weights):
        stored = weights.pop(name)
        converted[name] = stored.to(dtype)
        if not is_finite(converted[name]):
            _refuse_infinite(name, stored, dtype, where, what)
    module.load_state_dict(converted, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; several times faster than `isfinite`."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def _refuse_infinite(name: str, stored: Tensor, dtype: torch.dtype, where: str, what: str) -> None:
    if is_finite(stored):
        largest = stored.double().abs().max().item()
        raise ModelError(
            f"{where}: {name} of {what} reaches {largest:.3g}, too large for "
            f"{str(dtype).removeprefix('torch.')}: use FP32: dsd-trt export --precision fp32"
        )
    count = int((~torch.isfinite(stored.float())).sum())
    raise ModelError(
        f"{where}: {name} of {what} has NaN or infinity in {count} of {stored.numel()} places: the "
        "model is damaged, get it again or use another"
    )


def _kind(module: nn.Module) -> str:
    return f"a {type(module).__name__}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] + (f" and {counted(more, 'more weight')}" if more else "")


def _reason(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Reason why weights are missing, derived from the names found instead."""
    wanted = set(missing)
    for wrapper, advice in _WRAPPERS.items():
        for name in unexpected:
            if wrapper in name and name.replace(wrapper, "", 1) in wanted:
                return f", but has {name}: {advice}"
    if unexpected:
        return f", but has {_some(unexpected)}: it is another model, or its config.json is"
    return ": the weights are incomplete or another model's, download or save them again"
