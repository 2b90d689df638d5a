"""The choice of a backend: the one that was named, or the fastest that works here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from dsd_trt.engine import AUTO, AUTOMATIC, Backend, find_backend
from dsd_trt.errors import DsdError, EngineError, one_line
from dsd_trt.installation import install_command

if TYPE_CHECKING:
    from dsd_trt.bundle.folder import Bundle

T = TypeVar("T")


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


def choose_backend(
    name: str,
    device: int = 0,
    bundle: Bundle | None = None,
    graphs: Sequence[str] = ("image_encoder", "text_encoder", "pair_scorer"),
    failed: Mapping[str, str] = MappingProxyType({}),
    threads: int | None = None,
) -> Choice:
    """A backend that works on this machine: the named one, or with `AUTO` the fastest.

    Args:
        name: name of the backend, or `AUTO`: TensorRT if the bundle has plans for this GPU, else
            ONNX Runtime on the GPU, else OpenVINO, else ONNX Runtime on the processor.
        device: number of the GPU, see `Backend.on_device`; with `AUTO` other than 0, only GPUs
            count.
        bundle: the verified bundle to score with; None passes over backends that need its plans.
        graphs: names of the graphs that will be opened.
        failed: with `AUTO`, backends that could not open the bundle, with the reason.
        threads: number of threads, see `Backend.with_threads`; with `AUTO`, without effect on a
            GPU.

    Raises:
        InputError: there is no backend of that name, or it computes on the processor and a device
            is given, or on a GPU and threads are.
        EngineError: the backend does not work on this machine (`Backend.require`), or none does.
    """
    if not is_auto(name):
        return Choice(_named(name, device, threads))
    passed: dict[str, list[str]] = {}  # names of backends by the reason
    for candidate in map(find_backend, AUTOMATIC):
        if device and not candidate.on_gpu:
            continue
        backend = candidate.on_device(device)
        backend = backend if backend.on_gpu else backend.with_threads(threads)
        if (why := failed.get(backend.name) or _why_not(backend, bundle, graphs)) is None:
            return Choice(backend, _reasons(passed))
        passed.setdefault(why, []).append(backend.name)
    if device:
        raise EngineError(f"no engine works on GPU {device}: {_reasons(passed)}")
    advice = "" if failed else f" Install one with: {install_command('cpu')}."
    raise EngineError(f"no engine works here.{advice} Tried: {_reasons(passed)}")


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
        name: name of the backend, or `AUTO`, as for `choose_backend`.
        device: number of the GPU, from 0.
        bundle: the verified bundle to open.
        graphs: names of the graphs that will be opened.
        attempt: function that opens the bundle on a choice, and raises an EngineError where the
            backend fails, such as a GPU whose memory is in use.
        threads: number of threads, as for `choose_backend`.

    Returns:
        What `attempt` returned.

    Raises:
        InputError, EngineError: as for `choose_backend`, or a named backend fails.
    """
    failed: dict[str, str] = {}
    while True:
        choice = choose_backend(name, device, bundle, graphs, failed, threads)
        try:
            return attempt(choice)
        except EngineError as error:
            if not is_auto(name):
                raise
            failed[choice.backend.name] = str(error)


def _why_not(backend: Backend, bundle: Bundle | None, graphs: Sequence[str]) -> str | None:
    try:
        why = backend.why_not(bundle, graphs)
    except (Exception, SystemExit) as error:  # a broken library may raise anything on import
        return f"{type(error).__name__}: {one_line(error, 200)}"
    return None if why is None else why.removeprefix(f"{backend.name} cannot be used here: ")


def require_named(name: str, device: int = 0, threads: int | None = None) -> None:
    """Refuse a backend before gigabytes are read, if it was named; arguments as `choose_backend`.

    Raises:
        InputError: there is no backend of that name, as for `choose_backend`.
        EngineError: the backend does not work on this machine.
    """
    if not is_auto(name):
        _named(name, device, threads)


def is_auto(name: object) -> bool:
    """Whether a backend was not named, but is to be chosen."""
    return isinstance(name, str) and name == AUTO


def _named(name: str, device: int, threads: int | None) -> Backend:
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


def _reasons(passed: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in passed.items())
