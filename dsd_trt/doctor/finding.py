"""A finding: a thing that was examined, its state, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

State = Literal["ok", "note", "warning", "fault"]
STATES: tuple[State, ...] = get_args(State)
"""States, the best first: works; could be used after the remedy; works badly; does not work."""

_PROGRAMS = r"(?:\S*pip|\S*python\S* -m pip|uv pip|hf|git|dsd-trt|--)"
# "cause. What to do: command", or "cause; what to do: command"
_ADVICE = re.compile(rf"(?P<cause>.+)[.;:] [^.;:]+: (?P<remedy>{_PROGRAMS}[ -]?.*)", re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        subject: name of the thing, such as "openvino" or "GPU 0".
        state: how well it works, one of `STATES`.
        detail: what it is, or the cause of what is wrong, in one line.
        remedy: one shell command that mends it; "" if there is nothing to do.
        facts: values behind `detail` for programs, as for JSON.
    """

    subject: str
    state: State
    detail: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Finding:
        """The finding that `to_plain` made."""
        return cls(**plain)

    def to_plain(self) -> dict[str, Any]:
        """The finding as values for JSON."""
        return {it.name: getattr(self, it.name) for it in fields(self)} | {"facts": {**self.facts}}


def split_advice(message: str) -> tuple[str, str]:
    """Cause and command of an error message of this package; the command is "" if it has none."""
    message = " ".join(message.split())
    found = _ADVICE.fullmatch(message)
    if found is None:
        return message, ""
    remedy = found["remedy"].rstrip(".")
    if remedy.startswith("--"):  # an option of the command that would score
        remedy = f"dsd-trt score IMAGES TEXTS {remedy}"
    return found["cause"], remedy
