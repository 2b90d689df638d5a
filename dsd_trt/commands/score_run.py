"""A resumable run of `dsd-trt score`: what its results depend on, and its journal."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsd_trt.cache import cache_folder
from dsd_trt.commands.log import note, say
from dsd_trt.errors import DsdError, InputError, counted
from dsd_trt.files.lock import sole_writer
from dsd_trt.files.regular import open_regular
from dsd_trt.files.schema import parse_json
from dsd_trt.files.whole import followed, is_device, whole
from dsd_trt.image.files import printable
from dsd_trt.index.index import Index, IndexedImage
from dsd_trt.index.tar_image import TarImage
from dsd_trt.journal import Journal, Survey, open_journal, require_ours, survey
from dsd_trt.limits import IMAGE_BYTES, IMAGE_PIXELS
from dsd_trt.pairs.survey import PairSurvey
from dsd_trt.scorer import Scorer

_FOLDER = "scores"  # in the cache
_WEEK = 7 * 24 * 3600
_NO_JOURNAL = (
    "nothing is kept of what is scored, and a run that is stopped cannot go on: results go to no "
    "file, and there is no cache. To be able to, name a file, -o FILE, or a folder in DSD_TRT_CACHE"
)


def describe_run(
    scorer: Scorer,
    images: Sequence[Path | IndexedImage | TarImage] | PairSurvey,
    texts: Sequence[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Everything the results of a run depend on, by name.

    An image file is described by name, size and modification time; its content is not read.

    Args:
        scorer: scorer that computes the scores.
        images: images to score, or pairs.
        texts: texts to score; empty with pairs.
        settings: settings of the command, as shown to the user.
    """
    inputs: dict[str, Any]
    if isinstance(images, PairSurvey):
        inputs = {"pairs": {"count": images.count, "digest": images.digest}}
    else:
        inputs = {
            "images": _counted_digest(len(images), _images(images)),
            "texts": _counted_digest(len(texts), texts),
        }
    return {
        "bundle": {"digest": scorer.manifest.digest},
        "engine": scorer.fingerprint,
        "mode": scorer.mode,
        **inputs,
        "limits": {it.variable: it.value() for it in (IMAGE_BYTES, IMAGE_PIXELS)},
        **settings,
    }


def counted_of(pairs: int, run: Mapping[str, Any]) -> str:
    """A number of pairs for messages, with the total if it is known."""
    if run.get("prune") == "yes":  # most pairs get no score
        return counted(pairs, "pair")
    if "pairs" in run:
        return f"{pairs} of {counted(run['pairs']['count'], 'pair')}"
    return f"{pairs} of {counted(run['images']['count'] * run['texts']['count'], 'pair')}"


def journal_path(output: str, run: dict[str, Any]) -> Path | None:
    """Path of a run's journal: beside its output, or in the cache if the output is no file.

    None if there is no cache.
    """
    if output != "-" and not is_device(Path(output)):
        return Path(f"{output}.journal")
    if (cache := cache_folder()) is None:
        return None
    folder = cache / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for left in folder.iterdir():
            with contextlib.suppress(OSError):  # another run may remove its journal at any moment
                if time.time() - left.stat().st_mtime > _WEEK:
                    left.unlink()  # never resumed
    except OSError:
        return None
    return folder / f"{_digest([json.dumps(run)])[:32]}.journal"


@contextlib.contextmanager
def kept(output: str, run: dict[str, Any], *, resume: bool) -> Iterator[Journal | None]:
    """The journal of a run, removed when the block ends without an error.

    A journal that is not resumed is kept under another name until then. A damaged one is kept
    permanently. What becomes of an earlier journal is said before the block begins.

    Args:
        output: path of the results, or "-"; one run at a time writes there.
        run: description of the run, from `describe_run`.
        resume: whether to continue a stopped run.

    Yields:
        The journal; None if there is none.

    Raises:
        InputError: the stopped run was a different one, another process writes to `output`, or it
            cannot be written.
    """
    if (path := journal_path(output, run)) is None:
        if resume:
            raise InputError(
                "--resume needs a place for what was scored: name a file, -o FILE, or a folder in "
                "DSD_TRT_CACHE"
            )
        say(_NO_JOURNAL)
        yield None
        return
    in_cache = output == "-" or is_device(Path(output))
    target = path if in_cache else followed(Path(output))
    old = path.with_name(f"{path.name}.old")
    try:
        for there in (path, old):
            require_ours(there)
        with sole_writer(target):
            found = survey(path)
            if resume:
                _require_same(path, found, run)
                if not path.exists():
                    note(f"there is no {path} to resume: scoring from the beginning")
            if found.damaged:
                say(_set_damaged_aside(path, old, found, run, resume=resume))
            if not (resume and path.exists()) and (aside := _set_aside(path, old)):
                say(_how_to_go_on_instead(path, old, aside))
            try:
                journal = open_journal(path, run, resume=resume)
            except DsdError as error:  # a full disk
                if not in_cache:
                    raise
                raise DsdError(
                    f"{error}. What is scored is kept there until the command has ended: name a "
                    "file, -o FILE, or another folder in DSD_TRT_CACHE"
                ) from error
            try:
                if journal.pairs:
                    note(f"going on after {counted_of(journal.pairs, run)}")
                yield journal
            except BaseException:
                journal.close()
                if not journal.pairs:
                    path.unlink(missing_ok=True)
                raise
            journal.close()
            path.unlink(missing_ok=True)
            if not survey(old).damaged:
                old.unlink(missing_ok=True)
    except OSError as error:
        if error.filename != str(path):
            raise
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _require_same(path: Path, found: Survey, run: Mapping[str, Any]) -> None:
    """Refuse to resume a different run; a journal without a run description is damaged."""
    if (then := found.run) is None:
        return
    now = parse_json(json.dumps(run))
    differ = [
        f"{name} ({_difference(name, then.get(name), now.get(name))})"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    if differ:
        raise InputError(
            f"{path} is of another run, which differs in: {', '.join(differ)}. Give what was given "
            "then, or start again without --resume"
        )


def _difference(name: str, then: Any, now: Any) -> str:
    """How a setting of the stopped run differs from this one's."""
    if isinstance(then, dict) and isinstance(now, dict):
        if "digest" not in now:
            changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
            return "; ".join(f"{it} then {then.get(it)}, now {now.get(it)}" for it in changed)
        if "count" in now and then.get("count") == now["count"]:
            same = f"{now['count']} then and now"
            if name == "texts":
                return f"{same}, but others"
            return f"{same}, but a name, or a file's size or time of change, is another"
    return f"then {_shown(then)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["count"]) if "count" in value else str(value.get("digest"))[:12]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _set_damaged_aside(
    path: Path, old: Path, found: Survey, run: Mapping[str, Any], *, resume: bool
) -> str:
    """Keep a damaged journal under another name, and reuse its intact part if resuming."""
    aside = _free(old)
    if resume and found.pairs:
        with open_regular(path) as damaged, whole(aside) as copy:
            shutil.copyfileobj(damaged, copy)
    else:
        path.replace(aside)
    again = "what follows is scored again" if resume else "this run starts anew"
    return (
        f"{path} is damaged after {counted_of(found.pairs, run)}: {again}. The damaged file is set "
        f"aside as {aside}"
    )


def _set_aside(path: Path, old: Path) -> int:
    """Rename a journal, unless an older one has more pairs; return the number of pairs."""
    pairs, before = survey(path).pairs, survey(old)
    if before.pairs < pairs:
        if before.damaged:
            old.replace(_free(old))
        path.replace(old)
    return max(pairs, before.pairs)


def _free(old: Path) -> Path:
    """A name that no existing file has."""
    more = (old.with_name(f"{old.name}.{number}") for number in itertools.count(2))
    return next(it for it in itertools.chain([old], more) if not it.exists())


def _how_to_go_on_instead(path: Path, old: Path, pairs: int) -> str:
    return (
        f"{counted(pairs, 'pair')} of a run that was stopped {'is' if pairs == 1 else 'are'} "
        "set aside, and this one starts anew; to go on with what was scored, stop it, "
        f"mv {shlex.quote(str(old))} {shlex.quote(str(path))}, and give --resume"
    )


def _images(images: Sequence[Path | IndexedImage | TarImage]) -> Iterator[str]:
    if isinstance(images, Index):
        yield json.dumps(asdict(images.manifest.table))
        return
    for it in images:
        if isinstance(it, IndexedImage):
            yield json.dumps([it.name, it.entry.sha256, it.index.manifest.table.sha256])
            continue
        if isinstance(it, TarImage):
            yield json.dumps([it.name, *it.tar.identity[2:]])
            continue
        try:
            status = it.stat()
            found = [status.st_size, status.st_mtime_ns]
        except OSError:  # scoring reports the error
            found = []
        yield json.dumps([printable(str(it)), *found])


def _counted_digest(count: int, parts: Iterable[str]) -> dict[str, Any]:
    return {"count": count, "digest": _digest(parts)}


def _digest(parts: Iterable[str]) -> str:
    content = hashlib.sha256()
    for part in parts:
        content.update(json.dumps(part).encode() + b"\n")
    return content.hexdigest()
