"""Where figures go: a table to read, JSON or a page, on standard output and in a file."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from dsd_trt.commands.environment import setting
from dsd_trt.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])

_SUFFIXES = {".json": "json", ".html": "html", ".htm": "html"}


@dataclass(frozen=True)
class Destination:
    """Where a command's figures go.

    Attributes:
        form: format of standard output, or "html" for a page.
        output: file of the figures; None for none.
    """

    form: str
    output: Path | None

    def require_form(self) -> None:
        """Check the file's suffix.

        Raises:
            InputError: it is that of another format.
        """
        if self.output is not None and self.output.suffix.lower() not in ("", *_SUFFIXES):
            raise InputError(
                "the figures are JSON or a page: give -o "
                f"{shlex.quote(str(self.output.with_suffix('.json')))} or "
                f"{shlex.quote(str(self.output.with_suffix('.html')))}"
            )

    @property
    def file_form(self) -> str | None:
        """Format of the file: by its suffix; without one a page if that is asked for, else JSON."""
        if self.output is None:
            return None
        asked = "html" if self.form == "html" else "json"
        return _SUFFIXES.get(self.output.suffix.lower(), asked)

    @property
    def printed_form(self) -> str:
        """Format of standard output: a table, if the page goes to the file."""
        return "table" if self.form == "html" == self.file_form else self.form

    @property
    def has_page(self) -> bool:
        """Whether a page is asked for."""
        return "html" in (self.form, self.file_form)

    def require_possible(self) -> None:
        """Check before the work that the figures can be written.

        Raises:
            InputError: the file cannot be written, or a page would go to a terminal.
        """
        from dsd_trt.commands.html import refuse_terminal
        from dsd_trt.commands.output import refuse_unwritable

        if self.printed_form == "html":
            refuse_terminal("-")
        if self.output is not None:
            refuse_unwritable(str(self.output))

    def write(
        self,
        table: Callable[[], str],
        as_json: Callable[[], str],
        as_page: Callable[[], Iterable[str]],
    ) -> None:
        """Write the figures to the file, then print them.

        Args:
            table: function that returns them as a table to read.
            as_json: function that returns them as JSON.
            as_page: function that returns the parts of a page.

        Raises:
            DsdError: the file cannot be written; an existing one is unchanged.
        """
        from dsd_trt.commands.output import write_output

        made: dict[str, Callable[[], Iterable[str]]] = {
            "table": lambda: [table()],
            "json": lambda: [as_json()],
            "html": as_page,
        }
        if self.output is not None and (form := self.file_form) is not None:
            write_output(str(self.output), made[form]())
        write_output("-", made[self.printed_form]())


def destination_options(command: Command) -> Command:
    """-f and -o; the command gets `destination`: `Destination`."""

    @functools.wraps(command)
    def with_destination(*, form: str, output: Path | None, **given: Any) -> Any:
        return command(**given, destination=Destination(form, output))

    decorated = click.option(
        "-f",
        "--format",
        "form",
        **setting("REPORT_FORMAT"),
        type=click.Choice(["table", "json", "html"]),
        default="table",
        show_default=True,
        help="Output format: a table to read, JSON, or a page for a browser.",
    )(with_destination)
    decorated = click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="File for the figures: JSON, or a page if it is named FILE.html.",
    )(decorated)
    return cast(Command, decorated)
