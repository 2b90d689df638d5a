"""A run of `dsd-trt score` that can go on where it was stopped: what it is of, and its journal."""

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
from dsd_trt.commands.inputs import Pair
from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.lock import sole_writer
from dsd_trt.files.regular import open_regular
from dsd_trt.files.schema import parse_json
from dsd_trt.files.whole import followed, is_device, whole
from dsd_trt.image.files import printable
from dsd_trt.index.index import Index, IndexedImage
from dsd_trt.journal import Journal, Survey, open_journal, require_ours, survey
from dsd_trt.limits import IMAGE_BYTES, IMAGE_PIXELS
from dsd_trt.scorer import Scorer

_FOLDER = "scores"  # in the cache
_WEEK = 7 * 24 * 3600
_NO_JOURNAL = (
    "nothing is kept of what is scored, and a run that is stopped cannot go on: results go to no "
    "file, and there is no cache. To be able to, name a file, -o FILE, or a folder in DSD_TRT_CACHE"
)


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
        settings: the command's, as people are told of them.
    """
    inputs = {"images" if texts else "pairs": _counted_digest(len(images), _images(images))}
    if texts:
        inputs["texts"] = _counted_digest(len(texts), texts)
    return {
        "bundle": {"digest": scorer.manifest.digest},
        "engine": scorer.fingerprint,
        "mode": scorer.mode,
        **inputs,
        "limits": {it.variable: it.value() for it in (IMAGE_BYTES, IMAGE_PIXELS)},
        **settings,
    }


def counted(pairs: int, run: Mapping[str, Any]) -> str:
    """A number of pairs that have a score, of as many as a run has where that is known."""
    if run.get("prune") == "yes":  # most pairs get none
        return f"{pairs} pairs"
    if "pairs" in run:
        return f"{pairs} of {run['pairs']['count']} pairs"
    return f"{pairs} of {run['images']['count'] * run['texts']['count']} pairs"


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
def kept(
    output: str, run: dict[str, Any], *, resume: bool
) -> Iterator[tuple[Journal | None, list[str]]]:
    """The journal of a run, which goes when the block ends without an error.

    A journal that `resume` does not go on with is kept under another name until then; a damaged one
    for good.

    Args:
        output: where results go; one run at a time writes there.
        run: as `describe` has it.
        resume: whether to go on where a run was stopped.

    Yields:
        The journal, None where there is none, and what to tell before the run.

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
        yield None, [_NO_JOURNAL]
        return
    in_cache = output == "-" or is_device(Path(output))
    target = path if in_cache else followed(Path(output))
    old = path.with_name(f"{path.name}.old")
    try:
        for there in (path, old):
            require_ours(there)
        with sole_writer(target):
            told, found = [], survey(path)
            if resume:
                _require_same(path, found, run)
            if found.damaged:
                told.append(_set_damaged_aside(path, old, found, run, resume=resume))
            if not (resume and path.exists()) and (aside := _set_aside(path, old)):
                told.append(_how_to_go_on_instead(path, old, aside))
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
                yield journal, told
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
    """Refuse to go on with another run; a journal that does not say which it is of is damaged."""
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
    """What something was in another run, and is in this one."""
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
    """Keep a damaged journal under another name, and what `resume` can use of it; what to tell."""
    aside = _free(old)
    if resume and found.pairs:
        with open_regular(path) as damaged, whole(aside) as copy:
            shutil.copyfileobj(damaged, copy)
    else:
        path.replace(aside)
    again = "what follows is scored again" if resume else "this run starts anew"
    return (
        f"{path} is damaged after {counted(found.pairs, run)}: {again}. The damaged file is set "
        f"aside as {aside}"
    )


def _set_aside(path: Path, old: Path) -> int:
    """Give a journal another name, unless one that has more is there; how many pairs are in it."""
    pairs, before = survey(path).pairs, survey(old)
    if before.pairs < pairs:
        if before.damaged:
            old.replace(_free(old))
        path.replace(old)
    return max(pairs, before.pairs)


def _free(old: Path) -> Path:
    """A name that no file has yet."""
    more = (old.with_name(f"{old.name}.{number}") for number in itertools.count(2))
    return next(it for it in itertools.chain([old], more) if not it.exists())


def _how_to_go_on_instead(path: Path, old: Path, pairs: int) -> str:
    return (
        f"{pairs} pairs of a run that was stopped are set aside, and this one starts anew; to go "
        f"on with them, stop it, mv {shlex.quote(str(old))} {shlex.quote(str(path))}, and give "
        "--resume"
    )


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


def _counted_digest(count: int, parts: Iterable[str]) -> dict[str, Any]:
    return {"count": count, "digest": _digest(parts)}


def _digest(parts: Iterable[str]) -> str:
    content = hashlib.sha256()
    for part in parts:
        content.update(json.dumps(part).encode() + b"\n")
    return content.hexdigest()
