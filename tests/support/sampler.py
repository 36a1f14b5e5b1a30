"""The referee: how many ports the kernel says are held, independent of fewports' own view of the kernel.

Three rules. A row counts whatever its state (TIME_WAIT, SYN_SENT and FIN_WAIT included), if its *destination* port is
one of the servers'; on loopback the server's end of a connection is a row as well, with that port as its source. One in
TIME_WAIT counts for as long as no other connect() can have its port: where tcp_tw_reuse applies, as it does on loopback
by default, that is for a second, although the row stays for a minute. And a reading is two dumps one after the other,
of which the rows in both count: one dump is no snapshot, and a flow that ends while another begins could be counted
beside it. So a reading may be short of a flow that lived for less than the two dumps, and never says too many.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20  # linux/sock_diag.h
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
LISTEN, TIME_WAIT = 10, 6
MINUTE = 60.0  # seconds; TCP_TIMEWAIT_LEN, include/net/tcp.h
ANY_STATE = 0xFFFFFFFF
STATES = (
    "",
    *("ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"),
    *("LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)  # include/net/tcp_states.h


class Space(NamedTuple):
    """Source address, destination address and destination port: what 28,232 ports are for."""

    source: str
    address: str
    port: int


class Row(NamedTuple):
    """One socket of the kernel; *left* are the seconds until its timer runs out, if it has one."""

    source: str
    source_port: int
    address: str
    port: int
    state: str
    cookie: int
    left: float

    @property
    def space(self) -> Space:
        return Space(self.source, self.address, self.port)

    def counts(self) -> bool:
        """Say whether its port is held."""
        return self.state != "TIME_WAIT" or MINUTE - self.left < _hold(self.source, self.address)


class Sample(NamedTuple):
    """What was held at a time of time.monotonic()."""

    at: float
    held: dict[Space, int]


class Kernel:
    """A sock_diag socket: asks for all TCP sockets of the network namespace."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)

    def close(self) -> None:
        self._netlink.close()

    def rows(self, ports: tuple[int, ...]) -> list[Row]:
        """Return the client-side rows towards the given ports."""
        return [row for row in self._dump() if row.port in ports and row.state != "LISTEN"]

    def listening(self, port: int) -> set[str]:
        """Return the addresses at which somebody listens on *port*."""
        return {row.source for row in self._dump() if row.state == "LISTEN" and row.source_port == port}

    def held(self, ports: tuple[int, ...]) -> list[Row]:
        """Return what is held at one moment, that between two dumps."""
        before = {row[:4]: row.cookie for row in self.rows(ports)}
        # A socket that turns to TIME_WAIT goes on under a new cookie.
        return [
            row
            for row in self.rows(ports)
            if before.get(row[:4]) == row.cookie or (row.state == "TIME_WAIT" and row[:4] in before)
            if row.counts()
        ]

    def _dump(self) -> Iterator[Row]:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, ANY_STATE)
            head = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
            self._netlink.send(head + request)
            yield from self._answer(4 if family == socket.AF_INET else 16)

    def _answer(self, length: int) -> Iterator[Row]:
        while True:
            data = self._netlink.recv(1 << 16)
            offset = 0
            while offset < len(data):
                size, kind = struct.unpack_from("=IH", data, offset)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", data, offset + 16)[0], "sock_diag")
                yield _row(data, offset + 16, length)
                offset += (size + 3) & ~3


def _row(data: bytes, offset: int, length: int) -> Row:
    """Read struct inet_diag_msg: family, state, timer, retransmits, then struct inet_diag_sockid."""
    state, source_port, port = struct.unpack_from("!xBxxHH", data, offset)
    source, address = data[offset + 8 :][:length], data[offset + 24 :][:length]
    cookie, left = struct.unpack_from("=QI", data, offset + 44)  # idiag_expires is in milliseconds
    return Row(_text(source), source_port, _text(address), port, STATES[state], cookie, left / 1000)


def _hold(source: str, address: str) -> float:
    """Return for how many seconds a TIME_WAIT keeps others from its port: see tcp_tw_reuse in ip-sysctl.rst."""
    reuse = int(Path("/proc/sys/net/ipv4/tcp_tw_reuse").read_text())
    loopback = any(ipaddress.ip_address(end).is_loopback for end in (source, address))
    if reuse == 0 or (reuse == 2 and not loopback):
        return MINUTE
    delay = Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay")  # Linux 6.14; before that it was a second
    return int(delay.read_text()) / 1000 if delay.exists() else 1.0


def _text(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def client_rows(*ports: int) -> list[Row]:
    """Return what the kernel holds towards the given server ports now."""
    with contextlib.closing(Kernel()) as kernel:
        return kernel.rows(ports)


def held(*ports: int) -> dict[Space, int]:
    """Count what the kernel holds towards the given server ports now, TIME_WAIT included."""
    return dict(Counter(row.space for row in client_rows(*ports)))


class KernelSampler:
    """Takes a reading every *interval* seconds, in a process of its own, while the block lasts.

    After it *series* has the readings, *maximum* the largest number held at once by each port space, *peak* the
    largest of those (0 if nothing was seen), and *most* the rows of the reading with the most.
    """

    def __init__(self, *ports: int, interval: float = 0.01) -> None:
        self._ports = ports
        self._interval = interval
        self._process: subprocess.Popen[str] | None = None
        self.series: list[Sample] = []
        self.maximum: dict[Space, int] = {}
        self.most: list[Row] = []

    @property
    def peak(self) -> int:
        return max(self.maximum.values(), default=0)

    def __enter__(self) -> Self:
        start = "import sys; sys.path[:0] = [sys.argv[1]]; from support.sampler import main; main(*sys.argv[2:])"
        place = str(Path(__file__).parents[1])
        arguments = [place, str(self._interval), *map(str, self._ports)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process
        text, _ = self._process.communicate()
        series, most = json.loads(text)
        self.series = [Sample(at, {Space(*space): number for space, number in pairs}) for at, pairs in series]
        self.most = [Row(*row) for row in most]
        for sample in self.series:
            for space, number in sample.held.items():
                self.maximum[space] = max(number, self.maximum.get(space, 0))


def main(interval: str, *ports: str) -> None:
    """Take readings until the standard input ends, then print those that differ from the one before."""
    kernel = Kernel()
    wanted = tuple(map(int, ports))
    series: list[tuple[float, list[tuple[Space, int]]]] = []
    last: Counter[Space] | None = None
    most: list[Row] = []
    due = time.monotonic()
    while True:
        rows = kernel.held(wanted)
        now = Counter(row.space for row in rows)
        if now != last:
            series.append((time.monotonic(), list(now.items())))
            most = max(rows, most, key=len)
        if last is None:
            os.write(1, b"ready\n")
        last = now
        due = max(due + float(interval), time.monotonic())
        if select.select([0], [], [], max(due - time.monotonic(), 0))[0]:
            break
    final = Counter(row.space for row in kernel.held(wanted))
    series.append((time.monotonic(), list(final.items())))
    sys.stdout.write(json.dumps([series, most]))
