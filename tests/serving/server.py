"""The real Triton server, with its python backend alone."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from triton_server import command_line

T = TypeVar("T")

READY_WITHIN = 120  # seconds; it takes 5 where nothing else runs


class Server:
    """A running server, on ports of its own.

    Args:
        repository: what it serves.
        scratch: a folder for its backends and its log.
        arguments: further ones.
    """

    def __init__(self, repository: Path, scratch: Path, arguments: Sequence[str] = ()) -> None:
        self.http, self.grpc, self._metrics = (f"127.0.0.1:{port}" for port in _free_ports(3))
        self.log = scratch / "server.log"
        command, environment = command_line(
            repository,
            scratch / "backends",
            [
                "--exit-timeout-secs=5",
                *_address("http", self.http),
                *_address("grpc", self.grpc),
                *_address("metrics", self._metrics),
                *arguments,
            ],
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + READY_WITHIN
        while time.monotonic() < until and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the server is not ready:\n{self.log.read_text()[-8000:]}")

    def terminate(self) -> subprocess.Popen[bytes]:
        """Tell it to end, and give its process to wait for."""
        self._process.terminate()
        return self._process

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's values over all series that have these labels."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        series = [re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line) for line in lines]
        values = [
            float(it[2])
            for it in series
            if it and all(f'{key}="{value}"' in it[1] for key, value in labels.items())
        ]
        assert values, f"no metric {name} {labels}"
        return sum(values)

    def memory(self) -> int:
        """Bytes that the server and its models hold: what is shared counts once."""
        process = psutil.Process(self._process.pid)
        return sum(it.memory_full_info().pss for it in (process, *process.children(recursive=True)))


def settled(read: Callable[[], T]) -> T:
    """A count that no longer changes."""
    found = read()
    while True:
        time.sleep(0.2)
        if (later := read()) == found:
            return found
        found = later


def eventually(read: Callable[[], T], expected: T) -> bool:
    """Whether a count becomes what it is to be: the server counts after it has answered."""
    until = time.monotonic() + 10
    while (found := read()) != expected and time.monotonic() < until:
        time.sleep(0.02)
    assert found == expected
    return True


def _address(service: str, address: str) -> list[str]:
    host, port = address.split(":")
    return [f"--{service}-address={host}", f"--{service}-port={port}"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports
