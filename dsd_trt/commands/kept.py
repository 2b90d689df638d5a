"""All outputs of a filter."""

from __future__ import annotations

from pathlib import Path

from dsd_trt.commands.filtered import DROPPED, KEPT, Filtered
from dsd_trt.commands.formats import FORMATS, AtEnd, format_of
from dsd_trt.commands.kept_samples import KeptSamples, copy_images
from dsd_trt.commands.layout import Layout
from dsd_trt.commands.log import note, say
from dsd_trt.commands.pairs import refuse_output, report_renamed
from dsd_trt.errors import InputError, counted
from dsd_trt.files.folders import require_writable
from dsd_trt.pairs.choice import Choice
from dsd_trt.pairs.images import NamedImages
from dsd_trt.pairs.run import PairRun
from dsd_trt.pairs.shards import NewWebDataset
from dsd_trt.pairs.source import PairSource
from dsd_trt.results import Failure


class KeptOutputs:
    """All outputs of a filter, checked before the work.

    Args:
        source: source of the pairs.
        output: table, WebDataset or "-" for the kept pairs.
        dropped: table for the dropped pairs; None for none.
        copy_to: new folder for copies of the kept images; None for none.
        form: format of the tables; None goes by their suffix, else by the source.
        shard_size: number of samples per tar file.
        force: whether folders and tar files that are there are replaced.

    Attributes:
        journal_place: path beside which the scores wait, or "-".

    Raises:
        InputError: an output cannot be written, is there, or is read as an input.
        MissingExtraError: the package that writes Parquet is not installed.
    """

    def __init__(
        self,
        source: PairSource,
        output: str,
        dropped: str | None,
        copy_to: Path | None,
        form: str | None,
        shard_size: int,
        *,
        force: bool,
    ) -> None:
        self.journal_place: str = output if output == "-" else str(Path(output))
        self._output, self._dropped, self._copy_to = output, dropped, copy_to
        self._own = source.table.form if source.table is not None else "csv"
        self._form = form
        self._samples: NewWebDataset | None = None
        as_samples = _is_webdataset(output, from_one=source.table is None)
        folders = [Path(output)] if as_samples and not output.endswith(".tar") else []
        for folder in [*folders, *([copy_to] if copy_to else [])]:
            _require_new(folder, source, force=force)
        if as_samples:
            self._samples = NewWebDataset(output, shard_size, force=force, inputs=source.files)
        if copy_to is not None:
            require_writable(copy_to.parent, "--copy-to")
        tables = [it for it in (None if self._samples else output, dropped) if it is not None]
        places = [Path(it) for it in (output, dropped, copy_to) if it is not None]
        if len(set(places)) < len(places):
            raise InputError("-o, --dropped and --copy-to must be three different places")
        for table in tables:
            refuse_output(table, source)
            if isinstance(written := FORMATS[self._form_of(table)], AtEnd):
                written.check(table)
        images = getattr(source, "images", None)
        if isinstance(images, NamedImages) and not images.are_files and (self._samples or copy_to):
            raise InputError("an index has no images to copy: name their folder with --images")

    def write(self, run: PairRun, choice: Choice) -> list[Failure]:
        """Write all outputs, the kept pairs last, and report what was written.

        Returns:
            Images and samples that could not be read again.

        Raises:
            DsdError: the disk is full or cannot be written to.
        """
        filtered, failures = Filtered(run, choice), list[Failure]()
        layout = Layout.passing(run.survey.source, DROPPED if self._dropped else KEPT)
        report_renamed(layout, run.survey.source)
        if self._dropped is not None:
            filtered.write_table(self._dropped, self._form_of(self._dropped), kept=False)
            note(f"dropped rows: {self._dropped}")
        if self._copy_to is not None:
            count, failures = copy_images(filtered, self._copy_to)
            note(f"images copied to {self._copy_to}: {count}")
        if self._samples is None:
            filtered.write_table(self._output, self._form_of(self._output), kept=True)
            if self._output != "-":
                note(f"kept rows: {self._output}")
            return failures
        samples = KeptSamples(filtered)
        written = samples.write(self._samples)
        for field, count in samples.left_out.items():
            say(
                f"field {field!r} is left out: only {counted(count, 'kept sample')} "
                f"{'has' if count == 1 else 'have'} it, and readers need the same fields in all"
            )
        note(f"kept samples: {counted(len(written), 'tar file')}, {self._output}")
        return failures + samples.failures

    def _form_of(self, table: str) -> str:
        form = self._form or format_of(table, self._own)
        if form == "html":
            raise InputError(
                f"{table}: a page is written by score alone: dsd-trt score --pairs PAIRS -o "
                "FILE.html. Name a file FILE.csv, .jsonl, .json or .parquet here"
            )
        return form


def _is_webdataset(output: str, *, from_one: bool) -> bool:
    """Whether an output names a WebDataset: tar files, or a folder."""
    path = Path(output)
    if output == "-" or output.endswith("/") or path.name.endswith(".tar"):
        return output != "-"
    return path.is_dir() or (from_one and not path.suffix)


def _require_new(folder: Path, source: PairSource, *, force: bool) -> None:
    """Refuse to replace a folder that has something in it.

    Raises:
        InputError: it has, and is an input or must not be replaced.
    """
    if not folder.exists():
        return
    inside = folder.resolve()
    if any(Path(it).resolve().is_relative_to(inside) for it in source.files()):
        raise InputError(f"{folder} has inputs: give another folder")
    if not folder.is_dir() or (any(folder.iterdir()) and not force):
        raise InputError(f"{folder} is there: give a new folder, or --force to replace it")
