"""Training state on disk: written atomically, and read without executing code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_trt.errors import ModelError
from dsd_trt.files.whole import whole
from dsd_trt.log import get_logger
from dsd_trt.train.pickles import pickle_fault
from dsd_trt.train.run.device import arithmetic

logger = get_logger(__name__)

_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # Adam's state of each parameter
_COMPUTED_WITH = "computed with"  # key of `arithmetic`, in every state


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write training state atomically: an interruption leaves the previous file.

    It gets a record of the `arithmetic` that it was computed with.

    Args:
        path: path of the file; its folder is created if missing.
        state: tensors, numbers, strings and containers of them.

    Raises:
        DsdError: the file could not be written, for example on a full disk; the previous file is
            unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        try:
            torch.save({**state, _COMPUTED_WITH: arithmetic()}, file)
        except RuntimeError as error:  # PyTorch hides a full disk's OSError behind its own error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any] | None:
    """Read training state onto the CPU; None if there is no file.

    Raises:
        ModelError: the file is truncated, or does not hold training state.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # fed with junk, an unpickler may raise anything
        raise _unusable(path, pickle_fault(error)) from None
    if not isinstance(state, dict):
        raise _unusable(path, "it holds no training state")
    return state


@contextlib.contextmanager
def resumed(path: Path, steps: int | None = None) -> Iterator[dict[str, Any] | None]:
    """Training state of a file, for a block that restores it; None if there is no file.

    Errors in the block are reported like those of reading, since a damaged or foreign state may
    show only when it is restored. A warning tells if the state was computed with another
    `arithmetic`: the run is not refused, for the machine may have changed for good.

    Args:
        path: file that an earlier call may have written.
        steps: number of steps of the run, with one loss each in the state: if none is left, no
            warning is due. None is unknown.

    Raises:
        ModelError: the file cannot be read, or the state is another model's or optimiser's.
    """
    state = load_state(path)
    try:
        yield state
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from None
    several = dist.is_available() and dist.is_initialized()
    if state is None or (several and dist.get_rank()):  # one process tells it
        return
    before, now = state.get(_COMPUTED_WITH), arithmetic()
    ended = steps is not None and len(state["losses"]) >= steps
    if (
        isinstance(before, str) and before != now and not ended
    ):  # states of earlier versions lack it
        logger.warning(
            "the run in %s was computed with %s, and is continued with %s: the last digits of its "
            "result may not be those of an uninterrupted run. For these, stop, and continue as it "
            "was begun",
            *(path.parent, before, now),
        )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load Adam's state, and check names and shapes, which PyTorch would do only during a step.

    Args:
        optimizer: Adam or AdamW over the parameters that the state belongs to.
        state: state_dict of an optimiser.

    Raises:
        ValueError: the state is another optimiser's; `load_state_dict` may raise other errors.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        if kept.keys() != _ADAM:
            raise ValueError(f"a parameter has {', '.join(map(str, kept))}")
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} of a parameter is {tuple(value.shape)}")


def require_like(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors whose names or shapes differ from the expected ones.

    Raises:
        ValueError: a name or shape differs; the message names the first.
    """
    for name in [*wanted, *found]:
        one, other = found.get(name), wanted.get(name)
        if one is None or other is None or one.shape != other.shape:
            raise ValueError(f"{name} is not as the model has it")


def _unusable(path: Path, reason: object) -> ModelError:
    told = str(reason).strip().partition("\n")[0]
    return ModelError(f"cannot resume from {path}: {told}. Delete it to start again")
