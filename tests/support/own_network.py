"""Run a command in its own network namespace, in which every address is this machine.

This file run as a script is the inner process. It sets up the network, runs the command, and
records every packet to another machine. Packets also reveal C++ libraries, which no Python hook
sees.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

UNSHARE = ["unshare", "--map-root-user", "--net", "--mount"]
NAME_SERVER = "192.0.2.53"  # from the address block reserved for examples
END = "192.0.2.254"  # where the packet goes that ends the recording


@dataclass(frozen=True)
class Ended:
    """Outcome of a command.

    Attributes:
        code: exit code of the command.
        output: standard output and standard error, in one text.
        asked: names that were looked up, and addresses that packets went to.
        files: files that it wrote, relative to its home folder.
    """

    code: int
    output: str
    asked: tuple[str, ...]
    files: tuple[str, ...]


class Running:
    """A command in its own network, with its own home folder and an almost empty environment.

    Args:
        command: program with its arguments.
        folder: folder for its home and its report, created here; the command starts in it.
        variables: environment variables besides the few that Python needs.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._home, self._report = folder / "home", folder / "report.json"
        for it in (self._home, folder / "tmp"):
            it.mkdir(parents=True)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        }
        # Libraries that report nothing from CI would hide what they do elsewhere.
        environment |= {"HOME": str(self._home), "TMPDIR": str(folder / "tmp")}
        self._process = subprocess.Popen(
            [*UNSHARE, sys.executable, __file__, self._report, *command],
            env={**environment, **(variables or {})},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> Ended:
        """Wait for the end of the command."""
        output, _ = self._process.communicate()
        assert self._report.exists(), output
        files = [it.relative_to(self._home) for it in self._home.rglob("*") if it.is_file()]
        asked = tuple(json.loads(self._report.read_text()))
        return Ended(self._process.returncode, output, asked, tuple(sorted(map(str, files))))


def run(
    command: Sequence[str | Path], folder: Path, variables: Mapping[str, str] | None = None
) -> Ended:
    """Run a command to its end; the arguments are those of `Running`."""
    return Running(command, folder, variables).end()


@pytest.fixture(scope="session")
def own_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test if network namespaces are not available: no unshare, or not permitted."""
    try:
        report = tmp_path_factory.mktemp("own-network") / "report.json"
        command = [*UNSHARE, sys.executable, __file__, str(report), "true"]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no network of its own: {error}")
    if done.returncode:
        pytest.skip(f"no network of its own: {done.stderr.strip().splitlines()[-1]}")


def _make_network() -> None:
    """Route all addresses to this machine through the loopback interface."""
    with socket.socket() as any_socket:
        up = struct.pack("16sh14x", b"lo", 1)  # struct ifreq: IFF_UP
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    _route_to_loopback(socket.AF_INET)
    with contextlib.suppress(OSError):  # a kernel without IPv6
        _route_to_loopback(socket.AF_INET6)


def _route_to_loopback(family: int) -> None:
    """Do what `ip route add local default dev lo` does."""
    flags = 0x1 | 0x4 | 0x400  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
    # struct rtmsg: RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL; then RTA_OIF.
    route = struct.pack("8BI", family, 0, 0, 0, 255, 4, 254, 2, 0)
    route += struct.pack("HHi", 8, 4, socket.if_nametoindex("lo"))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("IHHII", 16 + len(route), 24, flags, 1, 0) + route)  # RTM_NEWROUTE
        (error,) = struct.unpack_from("i", kernel.recv(4096), 16)
        if error:
            raise OSError(-error, os.strerror(-error))


def _ask_one_name_server() -> None:
    """Make all name lookups go to one name server as packets, not to local services or files."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name, content in (
        ("resolv.conf", f"nameserver {NAME_SERVER}\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ):
        if not Path("/etc", name).exists():
            continue  # without this file, lookups use packets as well
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(content)
        Path(file.name).chmod(0o644)
        bind = 0x1000  # MS_BIND
        if libc.mount(file.name.encode(), f"/etc/{name}".encode(), None, bind, None):
            raise OSError(ctypes.get_errno(), f"cannot replace /etc/{name}")


class _Packets(threading.Thread):
    """A thread that records the destinations of packets."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.asked: dict[str, None] = {}
        everything = 3  # ETH_P_ALL
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(everything))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)

    def run(self) -> None:
        while (asked := _asks(self._socket.recv(65536))) != END:
            if asked is not None:
                self.asked[asked] = None

    def end(self) -> tuple[str, ...]:
        """All that was asked so far, however late the thread is: packets come in order."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
            outward.sendto(b"the end", (END, 9))
        self.join(60)
        if self.is_alive():
            raise RuntimeError("the packet that ends the recording was lost, and others may be")
        return tuple(self.asked)


def _asks(packet: bytes) -> str | None:
    """The name that a packet looks up, or the other machine that it goes to."""
    if packet[0] >> 4 == 4:
        target, protocol, start = socket.inet_ntoa(packet[16:20]), packet[9], packet[0] % 16 * 4
        own = target.startswith("127.")
    else:
        target, protocol, start = socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[6], 40
        own = target == "::1" or target.startswith("ff02:")  # neighbour discovery by the kernel
    if protocol == socket.IPPROTO_UDP and packet[start + 2 : start + 4] == b"\0\x35":
        return _question(packet[start + 8 :])
    # ICMP is the kernel's answer to a packet that was recorded before.
    return None if own or protocol in (1, 58) else target


def _question(query: bytes) -> str:
    """The name in a DNS query, in which a length byte precedes each label."""
    labels, place = [], 12
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].decode("latin-1"))
        place += 1 + length
    return ".".join(labels)


def _main(report: Path, command: Sequence[str]) -> int:
    _make_network()
    _ask_one_name_server()
    packets = _Packets()
    packets.start()
    code = subprocess.call(command)
    report.write_text(json.dumps(packets.end()))
    return code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: own_network.py REPORT COMMAND..., started by `in_own_network`")
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
