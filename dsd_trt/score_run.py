"""A run of `dsd-trt score` that can go on where it was stopped: what it is of, and its journal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsd_trt.cache import cache_folder
from dsd_trt.errors import DsdError, InputError
from dsd_trt.files import followed, is_device
from dsd_trt.image_files import printable
from dsd_trt.index import Index, IndexedImage
from dsd_trt.inputs import Pair
from dsd_trt.journal import Journal, open_journal, require_ours, scored_pairs
from dsd_trt.limits import IMAGE_BYTES, IMAGE_PIXELS
from dsd_trt.lock import sole_writer
from dsd_trt.scorer import Scorer

_FOLDER = "scores"  # in the cache
_WEEK = 7 * 24 * 3600


def describe(
    scorer: Scorer,
    images: Sequence[Path | IndexedImage] | Sequence[Pair],
    texts: Sequence[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What the results of a run depend on, by name.

    Of an image file, its name, size and time of change count: content is not read for this.

    Args:
        scorer: that scores.
        images: what is scored, or pairs.
        texts: against which; none with pairs.
        settings: the command's.
    """
    return {
        "bundle": scorer.manifest.digest,
        "engine": scorer.fingerprint,
        "mode": scorer.mode,
        "images": _digest(_images(images)),
        "texts": _digest(texts),
        "limits": [IMAGE_BYTES.value(), IMAGE_PIXELS.value()],
        **settings,
    }


def journal_path(output: str, run: dict[str, Any]) -> Path | None:
    """Where the journal of a run lies: beside its output, or in the cache if that is no file.

    None where nothing is to be remembered.
    """
    if output != "-" and not is_device(Path(output)):
        return Path(f"{output}.journal")
    if (cache := cache_folder()) is None:
        return None
    folder = cache / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for left in folder.iterdir():
            with contextlib.suppress(OSError):  # another run's may go at any moment
                if time.time() - left.stat().st_mtime > _WEEK:
                    left.unlink()  # nobody went on with it
    except OSError:
        return None
    return folder / f"{_digest([json.dumps(run)])[:32]}.journal"


@contextlib.contextmanager
def kept(output: str, run: dict[str, Any], *, resume: bool) -> Iterator[tuple[Journal | None, int]]:
    """The journal of a run, which goes when the block ends without an error.

    A journal that `resume` does not go on with is kept under another name until then.

    Args:
        output: where results go; one run at a time writes there.
        run: as `describe` has it.
        resume: whether to go on where a run was stopped.

    Yields:
        The journal, None where there is none, and how many pairs are in it that are set aside.

    Raises:
        InputError: the run that was stopped is another, another process writes to `output`, or
            nothing can be written there.
    """
    if (path := journal_path(output, run)) is None:
        if resume:
            raise InputError(
                "--resume needs a place for what was scored: name a file, -o FILE, or a folder in "
                "DSD_TRT_CACHE"
            )
        yield None, 0
        return
    in_cache = output == "-" or is_device(Path(output))
    target = path if in_cache else followed(Path(output))
    old = path.with_name(f"{path.name}.old")
    try:
        for there in (path, old):
            require_ours(there)
        with sole_writer(target):
            aside = 0 if resume and path.exists() else _set_aside(path, old)
            try:
                journal = open_journal(path, run, resume=resume)
            except InputError:
                raise
            except DsdError as error:  # a full disk
                if not in_cache:
                    raise
                raise DsdError(
                    f"{error}. What is scored is kept there until the command has ended: name a "
                    "file, -o FILE, or another folder in DSD_TRT_CACHE"
                ) from error
            try:
                yield journal, aside
            except BaseException:
                journal.close()
                if not journal.pairs:
                    path.unlink(missing_ok=True)
                raise
            journal.close()
            for done in (path, old):
                done.unlink(missing_ok=True)
    except OSError as error:
        if error.filename != str(path):
            raise
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _set_aside(path: Path, old: Path) -> int:
    """Give a journal another name, unless one that has more is there; how many pairs are in it."""
    pairs, before = scored_pairs(path), scored_pairs(old)
    if before < pairs:
        path.replace(old)
    return max(pairs, before)


def _images(images: Sequence[Path | IndexedImage] | Sequence[Pair]) -> Iterator[str]:
    if isinstance(images, Index):
        yield json.dumps(asdict(images.manifest.table))
        return
    for it in images:
        if isinstance(it, IndexedImage):
            yield json.dumps([it.name, it.entry.sha256, it.index.manifest.table.sha256])
            continue
        file, names = (it.image, [it.name, it.text]) if isinstance(it, Pair) else (it, [])
        try:
            status = file.stat()
            found = [status.st_size, status.st_mtime_ns]
        except OSError:  # scoring will say so
            found = []
        yield json.dumps([printable(str(file)), *names, *found])


def _digest(parts: Iterable[str]) -> str:
    content = hashlib.sha256()
    for part in parts:
        content.update(json.dumps(part).encode() + b"\n")
    return content.hexdigest()
