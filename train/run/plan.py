"""The plan of a run: everything its outcome depends on, so that no other run resumes there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsd_trt.errors import InputError
from dsd_trt.files.schema import read_json

_SHOWN = 80  # characters of a value in a message


def require_plan(
    path: Path, plan: Mapping[str, Any], states: Iterable[str], *, partial: bool = False
) -> None:
    """Refuse to resume in a folder that holds a run with another plan.

    Args:
        path: path of the folder's plan; a missing file means a new run.
        plan: everything that determines the run's outcome, as JSON takes it.
        states: names in the folder that the run would resume from. Without any of them nothing
            can be mixed, so that a run which failed before its first state blocks no other.
        partial: whether `plan` is a part alone, which is known before models are read.

    Raises:
        InputError: the folder's plan differs, or cannot be read.
    """
    if not any((path.parent / name).exists() for name in states):
        return
    try:
        kept = read_json(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}, the settings of the run in its folder: {error}. Choose another "
            "folder, or delete it"
        ) from None
    wanted = json.loads(json.dumps(plan))
    if partial and isinstance(kept, dict):
        kept = {name: value for name, value in kept.items() if name in wanted}
    if kept != wanted:
        raise InputError(
            f"{path.parent} holds a run with other settings{difference(kept, wanted)} (see "
            f"{path.name}): choose another folder, or delete it"
        )


def difference(before: Any, wanted: Mapping[str, Any]) -> str:
    """The first difference of two keys, as the end of a sentence.

    Args:
        before: key of an earlier run, as its file has it.
        wanted: key of this run.
    """
    if not isinstance(before, dict):
        return ""
    for name in (*wanted, *before):
        if before.get(name) != wanted.get(name):
            old, new = (_shown(it.get(name)) for it in (before, wanted))
            return f": {name} was {old}, and now is {new}"
    return ""


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
