"""What a command says when its scoring is stopped: what is kept, and how to go on."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_trt.commands.formats import FORMATS, Streamed
from dsd_trt.commands.log import say
from dsd_trt.commands.score_run import counted_of
from dsd_trt.errors import DsdError, InputError, is_disk_full, with_causes

if TYPE_CHECKING:
    from dsd_trt.journal import Journal


@contextlib.contextmanager
def saying_how_to_go_on(
    journal: Journal | None, output: str, run: dict[str, Any]
) -> Iterator[None]:
    """When scoring is stopped or fails, report the saved scores and how to resume.

    A failure gets this appended to its message. Wrong input gets nothing: the same command would
    fail again.
    """
    before = _state(output)
    try:
        yield
    except (GeneratorExit, InputError):
        raise
    except BaseException as error:
        if journal and journal.pairs:
            advice = _how_to_go_on(journal, run, error)
            causes = [type(it) for it in with_causes(error)]
            if isinstance(error, DsdError) and KeyboardInterrupt not in causes:
                if output != "-" and any(issubclass(it, OSError) for it in causes):
                    advice += f"\n{_how_to_go_on_elsewhere(journal, output)}"
                    if isinstance(FORMATS.get(run.get("format", "")), Streamed) and _state(
                        output
                    ) not in (
                        None,
                        before,
                    ):
                        advice += (
                            f"\nWhat is written of {output} stays, for --resume there; once the "
                            "run has gone on elsewhere it may be deleted"
                        )
                error.args = (f"{error}\n{advice}",)
            else:
                say(advice)
        raise


def _state(output: str) -> tuple[int, int, int] | None:
    """Identity and modification state of a file; None if the output is not a file."""
    path = Path(output)
    if output == "-" or not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _how_to_go_on(journal: Journal, run: dict[str, Any], error: BaseException) -> str:
    kept = f"{counted_of(journal.pairs, run)} are kept in {journal.path}: "
    if is_disk_full(error):
        return f"{kept}free space, and the same command with --resume goes on from there"
    return f"{kept}the same command with --resume goes on from there"


def _how_to_go_on_elsewhere(journal: Journal, output: str) -> str:
    name, kept = shlex.quote(Path(output).name), shlex.quote(str(journal.path))
    return (
        f"Or go on elsewhere: mv {kept} OTHER/{name}.journal, then the same command with "
        f"-o OTHER/{name} --resume"
    )
