"""A training in a process of its own, beside that of the caller.

The kernels of a small model gain little from a second thread: two trainings on one thread each take
as long as one on two. The process leaves the training's state in a file, from which the caller's
own call of `fit_adapter` goes on: it finds all steps done, or makes those that are missing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.fit import fit_adapter
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.run.libraries import hush_libraries
from dsd_trt.train.run.memory import keep_freed_memory
from dsd_trt.train.scoring.adapter import Adapter

_WAIT = 0.2  # seconds between reports of how far it is


class Alongside:
    """A process that can make one training, see `alongside`."""

    def __init__(self, model: str, start: Path | None, threads: int) -> None:
        context = mp.get_context("spawn")
        self._own, self._other = context.Pipe()
        self._done, self._loss = context.RawValue("l"), context.RawValue("d")
        arguments = (self._other, self._done, self._loss, model, start, threads)
        self._process = context.Process(target=_train, args=arguments, daemon=True)

    def begin(self) -> None:
        """Start the process, which reads the model."""
        with _without_interrupts():
            self._process.start()
        self._other.close()

    def train(self, examples: Examples, settings: FewShotSettings, state_path: Path) -> None:
        """Begin the training, of which `wait` waits for the end.

        Args:
            examples: encoded questions to learn from.
            settings: hyperparameters of few-shot training.
            state_path: file of the training state; what is there is gone on from.
        """
        what = (_plain(examples), settings, state_path)
        # The process reads it when it has imported its libraries.
        threading.Thread(target=self._send, args=(what,), daemon=True).start()

    def _send(self, what: object) -> None:
        with suppress(OSError):  # it has ended; the caller makes its steps itself
            self._own.send(what)

    def wait(self, report: Callable[[int, float], None]) -> None:
        """Wait until the training has ended, however it did.

        Args:
            report: callback `(step, loss)`, called now and then with the last completed step.
        """
        while self._process.is_alive():
            report(self._done.value, self._loss.value)
            self._process.join(_WAIT)

    def end(self) -> None:
        """End the process now, whatever it does."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._own.close()


@contextmanager
def alongside(model: str, start: Path | None, threads: int) -> Iterator[Alongside]:
    """A process for a training, which ends with the block.

    Args:
        model: base model, as for `train_adapter`.
        start: folder of the adapter that training starts from; None is the base model.
        threads: number of threads that it computes with.
    """
    process = Alongside(model, start, threads)
    try:
        process.begin()
        yield process
    finally:
        process.end()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: it is the caller's, who ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which unblocks signals as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _train(
    connection: Any, done: Any, loss_of: Any, model: str, start: Path | None, threads: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    hush_libraries()
    torch.set_num_threads(threads)
    keep_freed_memory()
    caller = mp.parent_process()
    assert caller is not None
    checkpoint = read_checkpoint(model, torch.device("cpu"))
    checkpoint.forget()
    began = None if start is None else Adapter.load(start)
    try:
        plain, settings, state_path = connection.recv()
    except EOFError:  # the caller has ended
        return

    def report(step: int, loss: float, _: object) -> None:
        done.value, loss_of.value = step, loss
        if not caller.is_alive():
            raise SystemExit(1)

    # The caller meets the same error, because it goes on from here, and tells it.
    with suppress(Exception):
        fit_adapter(
            checkpoint,
            _examples(plain),
            settings,
            start=began,
            calibration={},
            state_path=state_path,
            report=report,
        )


def _plain(examples: Examples) -> dict[str, Any]:
    """Fields of examples with arrays for tensors, which would be sent as shared memory."""
    values = {it.name: getattr(examples, it.name) for it in fields(examples)}
    return {name: it.numpy() if isinstance(it, Tensor) else it for name, it in values.items()}


def _examples(plain: Mapping[str, Any]) -> Examples:
    tensors = {name: it for name, it in plain.items() if hasattr(it, "dtype")}
    return Examples(**{**plain, **{name: torch.from_numpy(it) for name, it in tensors.items()}})
