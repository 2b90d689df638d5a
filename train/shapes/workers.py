"""Data-parallel training in several processes, from which small models gain more than from threads.

Every worker does the same steps on its own part of each batch. Gradients are averaged, so all
workers have the same weights at all times. The calling process is worker 0.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dsd_trt.errors import DsdError
from dsd_trt.train.run.memory import keep_freed_memory


@dataclass(frozen=True)
class Worker:
    """One of several training processes.

    Attributes:
        rank: index of the worker, from 0; worker 0 reports and saves.
        count: number of all workers.
    """

    rank: int = 0
    count: int = 1

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the workers, in one all-reduce."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))


ALONE = Worker()


@contextmanager
def workers(count: int, run: Callable[..., None], *arguments: Any) -> Iterator[Worker]:
    """Start the other workers, which call `run(worker, *arguments)`; the caller is worker 0.

    Args:
        count: number of all workers, with one thread each; 1 starts no process.
        run: module-level function of the other workers, which does the same training steps as the
            block.
        arguments: picklable arguments of `run` after the worker.

    Yields:
        Worker 0.

    Raises:
        DsdError: a worker ended before all had started.
    """
    if count == 1:
        yield Worker()
        return
    threads = torch.get_num_threads()
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, "workers")
        others = [
            context.Process(target=_enter, args=(rank, count, meeting, run, arguments), daemon=True)
            for rank in range(1, count)
        ]
        try:
            for process in others:
                process.start()
            _wait(others, [_arrival(meeting, rank) for rank in range(1, count)])
            yield _join(0, count, meeting)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for process in others:
                process.join(timeout=60)
            torch.set_num_threads(threads)


def _wait(others: Sequence[BaseProcess], arrivals: Sequence[Path]) -> None:
    """Wait until all workers have started; PyTorch would wait half an hour for a dead one."""
    while not all(arrival.exists() for arrival in arrivals):
        for rank, (process, arrival) in enumerate(zip(others, arrivals, strict=True), 1):
            if not process.is_alive() and not arrival.exists():
                for other in others:
                    other.kill()
                raise DsdError(
                    f"worker {rank} ended at its start (exit code {process.exitcode}). Repeat the "
                    "command to resume the run"
                )
        time.sleep(0.02)


def _arrival(meeting: Path, rank: int) -> Path:
    return meeting.with_name(f"{rank} is here")


def _enter(
    rank: int, count: int, meeting: Path, run: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    keep_freed_memory()
    try:
        run(_join(rank, count, meeting), *arguments)
    except RuntimeError as error:
        # Worker 0 was killed or interrupted; repeating the command starts all workers again.
        raise SystemExit(f"worker {rank} stops: {error}") from None


def _join(rank: int, count: int, meeting: Path) -> Worker:
    torch.set_num_threads(1)
    _arrival(meeting, rank).touch()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # A file, not a port: with a port PyTorch asks name servers for the name of 127.0.0.1.
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    return Worker(rank, count)
