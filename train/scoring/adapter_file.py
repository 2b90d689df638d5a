"""The files of an adapter, checked without PyTorch: configuration, headers and content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from dsd_trt.bundle.lists import Lists
from dsd_trt.bundle.manifest import Resize
from dsd_trt.bundle.method import HeadMode, ScoreKind, TrainedFor
from dsd_trt.errors import ModelError
from dsd_trt.files.schema import SchemaError, from_plain, read_json
from dsd_trt.files.tensor_file import TensorHeader, read_tensor_headers
from dsd_trt.train.scoring.choices import PromptConfig

CONFIG_NAME, PLAN_NAME, STATE_NAME = "adapter.json", "plan.json", "training.ckpt"
"""Files of an adapter's folder: its description, and the settings and state of its training."""

REFIT_NAME = "refit.ckpt"
"""The state of the second training, on all questions."""

RESUMED = (STATE_NAME, REFIT_NAME, CONFIG_NAME)
"""Files that a training goes on from; without any of them it starts from the beginning."""

REPORT_NAME = "report.json"
"""The record of a finished training, also of one whose adapter was not written."""

WEIGHTS_NAME = "adapter.safetensors"
NEXT_WEIGHTS = f".{WEIGHTS_NAME}.next"
"""The weights, and those of a save that is not complete."""

TOKEN_HEADS = ("base", "of_token", "gate", "offset")
"""Names of the parameters of `TokenHeads`, among the weights "token_heads.NAME"."""

RELATIONS = ("roles", "heads", "of_word", "base")
"""Names of the parameters of `Relations`, among the weights "relations.NAME"."""

_PARTS = ("prompts.", "merged.", "head_weights.", "token_heads.", "relations.")

FORMAT = 2
"""Version of `adapter.json`."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Schema of `adapter.json`; fields that older versions did not write are optional."""

    format: int
    weights: str | None = field(default=None, metadata={"optional": True})
    prompts: PromptConfig | None
    head_mode: HeadMode
    score: ScoreKind
    denoising_weight: float
    a: float
    b: float
    mode: TrainedFor | None = field(default=None, metadata={"optional": True})
    matrix_a: float | None = field(default=None, metadata={"optional": True})
    matrix_b: float | None = field(default=None, metadata={"optional": True})
    levels: tuple[float, ...]
    resize: Resize | None = field(default=None, metadata={"optional": True})
    base: Mapping[str, str]
    lists: Lists | None = field(default=None, metadata={"optional": True})
    training: Mapping[str, Any]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter whose files belong together and have the names of an adapter.

    Attributes:
        folder: folder of the adapter.
        config: content of its `adapter.json`.
        content: bytes of its weights.
        headers: headers of its tensors, by name.
    """

    folder: Path
    config: AdapterConfig
    content: bytes
    headers: Mapping[str, TensorHeader]

    @classmethod
    def read(cls, folder: Path) -> AdapterFile:
        """Read an adapter's files; whether its numbers are finite is checked by `Adapter.load`.

        Args:
            folder: folder of `adapter.json` and `adapter.safetensors`.

        Raises:
            ModelError: the folder is not an adapter, its two files do not belong together, or its
                format is not one this version reads.
        """
        config = read_config(folder)
        content = _weights(folder, config)
        try:
            headers = read_tensor_headers(BytesIO(content))
            _require_known(config, headers)
        except ValueError as error:
            raise unreadable(folder, error) from None
        return cls(folder, config, content, headers)

    @property
    def merged(self) -> bool:
        """Whether it changes weights of the U-Net itself."""
        return any(name.startswith("merged.") for name in self.headers)

    @property
    def layers(self) -> int:
        """Number of cross-attention layers of the base model; 0 if the adapter does not tell."""
        prompts = (name.removeprefix("prompts.") for name in self.headers)
        return count_prompted(prompts) or len(self.head_weights)

    @property
    def head_weights(self) -> list[str]:
        """Names of the head weights' tensors, layer by layer."""
        return _head_weights(self.headers)


def count_prompted(names: Iterable[str]) -> int:
    """Number of layers whose keys have a prompt, by the names of the prompts' tensors."""
    return sum(name.startswith("key.") and name.endswith(".u") for name in names)


def unreadable(folder: Path, error: Exception) -> ModelError:
    """The error for an adapter whose weights cannot be read."""
    return ModelError(f"cannot read an adapter from {folder}: {WEIGHTS_NAME}: {error}")


def adapter_hash(folder: Path) -> str:
    """sha256 of the weights that `Adapter.load` reads.

    Raises:
        ModelError: `adapter.json` or the weights it names cannot be read.
    """
    return hashlib.sha256(_weights(folder, read_config(folder))).hexdigest()


def read_config(folder: Path) -> AdapterConfig:
    """Read `adapter.json`.

    Raises:
        ModelError: the folder is not an adapter, or its format is not one this version reads.
    """
    path = folder / CONFIG_NAME
    try:
        plain = read_json(path)
        found = plain.get("format") if isinstance(plain, dict) else None
        if found != FORMAT:
            raise ValueError(f"{CONFIG_NAME}: format {found!r} is not {FORMAT}")
        config = from_plain(AdapterConfig, plain)
        if not all(0 < level < 1 for level in config.levels):
            raise ValueError(f"{CONFIG_NAME}: field 'levels' must be of numbers between 0 and 1")
        return config
    except FileNotFoundError:
        raise ModelError(_why_none(folder)) from None
    except SchemaError as error:
        raise ModelError(f"cannot read an adapter from {folder}: {CONFIG_NAME}: {error}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read an adapter from {folder}: {error}") from None


def _why_none(folder: Path) -> str:
    """Message for a folder without an adapter: its training may not have finished."""
    if (folder / REPORT_NAME).exists() and (folder / STATE_NAME).exists():
        return (
            f"training in {folder} made the answers worse, so that no adapter was written (see "
            f"{REPORT_NAME}): train again with other settings, or repeat its command with one "
            f"option more, dsd-trt train ... --out {folder} --allow-worse"
        )
    if (folder / STATE_NAME).exists() or (folder / PLAN_NAME).exists():
        return (
            f"training in {folder} has not finished: go on with the command that began it, "
            f"dsd-trt train ... --out {folder}"
        )
    if (folder / "adapter" / CONFIG_NAME).exists():
        return f"no adapter in {folder} (no {CONFIG_NAME}); there is one in {folder / 'adapter'}"
    return f"no adapter in {folder} (no {CONFIG_NAME}): train one with dsd-trt train --out {folder}"


def _weights(folder: Path, config: AdapterConfig) -> bytes:
    """Content of the weight file with the configuration's sha256, which older ones lack."""
    try:
        if config.weights is None:
            return (folder / WEIGHTS_NAME).read_bytes()
        for path in (folder / WEIGHTS_NAME, folder / NEXT_WEIGHTS):
            if path.is_file():
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == config.weights:
                    return content
    except OSError as error:
        raise ModelError(f"cannot read an adapter from {folder}: {error}") from None
    raise ModelError(
        f"cannot read an adapter from {folder}: {WEIGHTS_NAME} is missing, or not the file that "
        f"{CONFIG_NAME} was written with (sha256 differs). Copy the adapter again, or train it "
        "again"
    )


def _require_known(config: AdapterConfig, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse unknown tensors, incomplete low-rank updates and contradicting shapes.

    Whether prompts and head weights fit a base model is checked when the two are combined.

    Raises:
        ValueError: a tensor is unknown, missing or misshapen; the message names it.
    """
    for name, tensor in headers.items():
        if not name.startswith(_PARTS):
            raise ValueError(f"it holds {ascii(name[:80])[1:-1]}, which no adapter has")
        if name.startswith("prompts.") and config.prompts is None:
            raise ValueError(f"it holds {name}, but {CONFIG_NAME} has no prompts")
        if name.startswith("merged."):
            layer, _, part = name.rpartition(".")
            other = f"{layer}.{'down' if part == 'up' else 'up'}"
            if part not in ("up", "down") or other not in headers:
                raise ValueError(f"it holds {name} without {other}")
            if len(tensor.shape) != 2 or not all(tensor.shape):
                raise ValueError(f"{name} is {list(tensor.shape)}, expected a matrix")
            if part == "up" and headers[other].shape[:1] != tensor.shape[1:]:
                raise ValueError(f"{name} and {other} are of different rank")
    _require_token_heads(config, headers)
    _require_relations(headers)
    if config.prompts is not None and not any(name.startswith("prompts.") for name in headers):
        raise ValueError(f"it holds no prompts, but {CONFIG_NAME} has their sizes")
    for name in _head_weights(headers):
        if name not in headers:
            raise ValueError(f"it lacks {name}")
        if len(headers[name].shape) != 1 or not headers[name].shape[0]:
            raise ValueError(f"{name} is {list(headers[name].shape)}, expected one number per head")


def _require_token_heads(config: AdapterConfig, headers: Mapping[str, TensorHeader]) -> None:
    found = {name for name in headers if name.startswith("token_heads.")}
    if not found:
        if config.lists is not None:
            raise ValueError(f"it holds no token heads, but {CONFIG_NAME} has lists made with them")
        return
    if found != {f"token_heads.{name}" for name in TOKEN_HEADS}:
        raise ValueError(f"its token heads are not {', '.join(TOKEN_HEADS)}")
    base, of_token, gate, offset = (headers[f"token_heads.{name}"].shape for name in TOKEN_HEADS)
    if tuple(of_token) != (*base, *gate) or len(of_token) != 2 or tuple(offset) != (1,):
        raise ValueError(f"token_heads.of_token is {list(of_token)}, and the others do not fit it")


def _require_relations(headers: Mapping[str, TensorHeader]) -> None:
    found = {name for name in headers if name.startswith("relations.")}
    if not found:
        return
    if "token_heads.base" not in headers:
        raise ValueError("it holds relations without token heads")
    if found != {f"relations.{name}" for name in RELATIONS}:
        raise ValueError(f"its relations are not {', '.join(RELATIONS)}")
    width = headers["token_heads.of_token"].shape[1]
    heads = headers["relations.heads"].shape[1:]
    wanted = ((3, width), (2, *heads[:1]), (9, width), (9,))
    for name, shape in zip(RELATIONS, wanted, strict=True):
        if (there := tuple(headers[f"relations.{name}"].shape)) != shape:
            raise ValueError(f"relations.{name} is {list(there)}, expected {list(shape)}")


def _head_weights(headers: Mapping[str, TensorHeader]) -> list[str]:
    """Required names of the head weights' tensors, given their count."""
    count = sum(name.startswith("head_weights.") for name in headers)
    return [f"head_weights.{layer}" for layer in range(count)]
