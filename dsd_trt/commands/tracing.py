"""--trace FILE: a trace of what a command does; imports nothing heavy, so that help is fast."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from dsd_trt.commands.log import note
from dsd_trt.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])


def trace_option(command: Command) -> Command:
    """--trace FILE, which traces the command from its options on."""

    @functools.wraps(command)
    def with_trace(**given: Any) -> Any:
        path: Path | None = given.pop("trace")
        if path is None:
            return command(**given)

        from dsd_trt.commands.output import refuse_unwritable
        from dsd_trt.trace import traced

        if path.suffix.lower() != ".json" or _is_among(path, given.values()):
            own = shlex.quote(f"{path.with_suffix('')}.trace.json")
            raise InputError(f"a trace is a JSON file of its own: give --trace {own}")
        refuse_unwritable(str(path))
        with traced(path) as recording:
            try:
                return command(**given)
            finally:
                seconds = recording.seconds
                waited = recording.totals.get("waiting for a picture", 0)
                note(
                    f"waited for pictures {waited:.1f} of {seconds:.1f} s "
                    f"({waited / seconds:.0%}); trace: {path}"
                )

    return click.option(
        "--trace",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.json",
        help="Write what each thread does when: Chrome's trace format, for https://ui.perfetto.dev "
        "and chrome://tracing.",
    )(cast(Command, with_trace))


def _is_among(path: Path, given: Iterable[Any]) -> bool:
    """Whether a file is one of a command's other files, an input or an output."""
    one_by_one = (part for it in given for part in (it if isinstance(it, (tuple, list)) else [it]))
    named = (str(it) for it in one_by_one if isinstance(it, (str, Path)))
    # A trace is JSON, so no other file can be it.
    files = {os.path.realpath(it) for it in named if it.lower().endswith(".json")}
    return os.path.realpath(path) in files
