"""The choice of a backend: the one that was named, or the fastest that works here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from dsd_trt.engine import AUTO, AUTOMATIC, ON_GPU, Backend, find_backend
from dsd_trt.errors import DsdError, EngineError, one_line
from dsd_trt.installation import install_command
from dsd_trt.log import get_logger

if TYPE_CHECKING:
    from dsd_trt.bundle.folder import Bundle

logger = get_logger(__name__)

T = TypeVar("T")

_ON_CPU = " or ".join(f"--engine {name}" for name in AUTOMATIC if name not in ON_GPU)


@dataclass(frozen=True)
class Choice:
    """A backend that works on this machine, and why it was taken.

    Attributes:
        backend: backend that was taken, on its device.
        reason: reasons why `AUTO` passed the faster ones over, each with its backend; empty if the
            backend was asked for by name.
    """

    backend: Backend
    reason: str = ""


def open_first(
    name: str,
    device: int,
    bundle: Bundle,
    graphs: Sequence[str],
    attempt: Callable[[Choice], T],
    threads: int | None = None,
) -> T:
    """Open a bundle on a backend: on the named one, or with `AUTO` on the fastest that opens it.

    Args:
        name: name of the backend, or `AUTO`: TensorRT if the bundle has plans for this GPU, else
            ONNX Runtime on the GPU, else OpenVINO, else ONNX Runtime on the processor.
        device: number of the GPU, see `Backend.on_device`; with `AUTO` other than 0, only GPUs
            count.
        bundle: the verified bundle to open.
        graphs: names of the graphs that will be opened.
        attempt: function that opens the graphs on a choice, and raises an EngineError where the
            backend fails, such as a GPU whose memory is in use.
        threads: number of threads, see `Backend.with_threads`; with `AUTO`, without effect on a
            GPU.

    Returns:
        What `attempt` returned.

    Raises:
        InputError: there is no backend of that name, or it computes on the processor and a device
            is given, or on a GPU and threads are.
        EngineError: the backend does not work on this machine (`Backend.require`) or fails, or
            every one does.
    """
    if not _is_auto(name):
        logger.info("engine %s, which was asked for", name)
        return attempt(Choice(_named(name, device, threads)))
    passed: dict[str, list[str]] = {}  # names of backends by the reason
    works = False
    for backend in _candidates(device, threads):
        if (why := _why_not(backend, bundle, graphs)) is None:
            works = True
            choice = Choice(backend, _reasons(passed))
            over = f"; passed over: {choice.reason}" if choice.reason else ""
            logger.info("engine %s, the fastest that works here%s", backend.name, over)
            try:
                return attempt(choice)
            except EngineError as error:
                why = str(error)
        passed.setdefault(why, []).append(backend.name)
    _refuse(device, passed, works=works)


def require_possible(name: str, device: int = 0, threads: int | None = None) -> None:
    """Refuse what works with no bundle on this machine, before anything is read.

    Args:
        name: name of the backend, or `AUTO`, as for `open_first`.
        device: number of the GPU, from 0.
        threads: number of threads, as for `open_first`.

    Raises:
        InputError: there is no backend of that name, or device or threads are not for it.
        EngineError: the named backend does not work on this machine, or none does.
    """
    if not _is_auto(name):
        _named(name, device, threads)
        return
    passed: dict[str, list[str]] = {}
    # Those that need plans come last: their libraries are slow to import, and few bundles have any.
    for backend in sorted(_candidates(device, threads), key=lambda it: not it.reads_graphs):
        if (why := _why_not(backend, None, ())) is None:
            return
        passed.setdefault(why, []).append(backend.name)
    _refuse(device, passed, works=False)


def named_backend(name: str, device: int = 0, threads: int | None = None) -> Backend:
    """The backend of a name, which works on this machine.

    Args:
        name: name of the backend.
        device: number of the GPU, see `Backend.on_device`.
        threads: number of threads, see `Backend.with_threads`.

    Raises:
        InputError: there is no backend of that name, or it computes on the processor and a device
            is given, or on a GPU and threads are.
        EngineError: the backend does not work on this machine (`Backend.require`).
    """
    backend = find_backend(name).on_device(device).with_threads(threads)
    try:
        backend.require()
    except DsdError:
        raise
    except (Exception, SystemExit) as error:  # a broken library may raise anything on import
        raise EngineError(
            f"{name} does not work here ({type(error).__name__}: {one_line(error, 400)}). Install "
            f"its packages again: {install_command(backend.extra, '--force-reinstall')}"
        ) from error
    return backend


def _is_auto(name: object) -> bool:
    """Whether a backend was not named, but is to be chosen."""
    return isinstance(name, str) and name == AUTO


def _named(name: str, device: int, threads: int | None) -> Backend:
    """`named_backend` for work that the processor can do, too, which its error then says."""
    try:
        return named_backend(name, device, threads)
    except EngineError as error:
        if name not in ON_GPU:
            raise
        raise EngineError(f"{error}. To score on the processor: {_ON_CPU}") from error


def _candidates(device: int, threads: int | None) -> Iterator[Backend]:
    """Backends that `AUTO` may take, the fastest first."""
    for candidate in map(find_backend, AUTOMATIC):
        if candidate.on_gpu:
            yield candidate.on_device(device)
        elif not device:
            yield candidate.with_threads(threads)


def _why_not(backend: Backend, bundle: Bundle | None, graphs: Sequence[str]) -> str | None:
    try:
        why = backend.why_not(bundle, graphs)
    except (Exception, SystemExit) as error:  # a broken library may raise anything on import
        return f"{type(error).__name__}: {one_line(error, 200)}"
    if why is None:
        return None
    said = f"{re.escape(backend.name)} cannot be used here"
    return re.sub(rf"^{said}: |^{said} \((.*?)\)(?=\. )", r"\1", why)


def _refuse(device: int, passed: Mapping[str, Sequence[str]], *, works: bool) -> NoReturn:
    """Raise the error that no candidate opens a bundle.

    Args:
        device: number of the GPU, from 0.
        passed: names of the candidates by the reason.
        works: whether one works here, and fails with this bundle alone.
    """
    if device:
        raise EngineError(
            f"no engine works on GPU {device}: {_reasons(passed)}. nvidia-smi lists the GPUs; to "
            "use the first one, or the processor, leave --device out"
        )
    advice = "" if works else f" Install one with: {install_command('cpu')}."
    raise EngineError(f"no engine works here.{advice} Tried: {_reasons(passed)}")


def _reasons(passed: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in passed.items())
