"""Training state on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsd_trt.errors import InputError, ModelError
from dsd_trt.files.schema import read_json
from dsd_trt.files.whole import whole

_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what it keeps of a parameter


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; a kill leaves the previous file.

    Raises:
        DsdError: the disk is full, or the like; the previous file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch's, of a full disk: that it is one it does not say
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any] | None:
    """Read training state, or None where there is none.

    Raises:
        ModelError: the file is cut, or holds something else.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # fed with junk, an unpickler may raise anything
        raise _unusable(path, error) from None
    if not isinstance(state, dict):
        raise _unusable(path, "it holds something else")
    return state


@contextlib.contextmanager
def resumed(path: Path) -> Iterator[dict[str, Any] | None]:
    """`load_state`, for a block that puts to use what was read, which may fail as reading may.

    Raises:
        ModelError: as for `load_state`, or the state is another model's or optimizer's.
    """
    state = load_state(path)
    try:
        yield state
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from None


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load Adam's state, whose names and shapes PyTorch would find wrong in the middle of a step.

    Raises:
        ValueError, or what else `load_state_dict` raises: it is another optimizer's.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        if kept.keys() != _ADAM:
            raise ValueError(f"a parameter has {', '.join(map(str, kept))}")
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} of a parameter is {tuple(value.shape)}")


def require_like(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names or shapes.

    Raises:
        ValueError: names the first.
    """
    for name in [*wanted, *found]:
        one, other = found.get(name), wanted.get(name)
        if one is None or other is None or one.shape != other.shape:
            raise ValueError(f"{name} is not as the model has it")


def require_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder where a run with another plan was begun.

    Args:
        path: where the folder's plan is kept; there need not be one yet.
        plan: of the run that is to go on, as `json.dumps` takes it.

    Raises:
        InputError: it is another, or cannot be read.
    """
    try:
        kept = read_json(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}, what the run in its folder is of: {error}. Choose another "
            "folder, or delete it"
        ) from None
    if kept != json.loads(json.dumps(plan)):
        raise InputError(
            f"{path.parent} holds a run with other settings (see {path.name}): choose another "
            "folder, or delete it"
        )


def _unusable(path: Path, reason: object) -> ModelError:
    told = str(reason).strip().partition("\n")[0]
    return ModelError(f"cannot go on from {path}: {told}. Delete it to start again")
