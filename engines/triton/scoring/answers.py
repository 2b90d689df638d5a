"""Answers to requests of clients: strings, numbers that JSON can hold, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from dsd_trt.errors import InputError

UNSCORED = np.finfo(np.float32).min
"""Placeholder for a missing score or probability, because JSON has no NaN.

All probabilities are missing if none were fitted to the bundle's scores. It is below every possible
score, and any average that includes it is visibly wrong.
"""


def answered(tensors: Callable[[], list[Any]]) -> Any:
    """The response to a request: its tensors, or the reason why there are none.

    Args:
        tensors: function that returns the answer's tensors. An InputError of it is the client's
            fault, anything else the server's.
    """
    try:
        return pb_utils.InferenceResponse(tensors())
    except InputError as error:
        return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
    except Exception as error:  # otherwise the backend fails all requests of this call
        return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def strings_of(request: Any, name: str) -> list[bytes]:
    """An input of strings."""
    strings: list[bytes] = pb_utils.get_input_tensor_by_name(request, name).as_numpy().tolist()
    return strings


def numbers(name: str, values: NDArray[np.float32]) -> Any:
    """An output of scores or probabilities, with `UNSCORED` where a number is missing."""
    return pb_utils.Tensor(name, np.where(np.isfinite(values), values, UNSCORED))


def strings(name: str, values: Sequence[str]) -> Any:
    """An output of strings."""
    return pb_utils.Tensor(name, np.array([value.encode() for value in values], np.object_))


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
