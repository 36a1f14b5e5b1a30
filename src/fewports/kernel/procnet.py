"""What /proc/net/tcp and tcp6 say, line by line: for sandboxes that refuse netlink. Filters and decides nothing.

A line has no interface: a link-local address comes without its %scope.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from fewports.address import Destination, Flow

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_FIN_WAIT2 = 5  # include/net/tcp_states.h
# tr of get_tcp4_sock() and get_timewait4_sock() in net/ipv4/tcp_ipv4.c; net/ipv4/inet_diag.c gives the same numbers.
_SOCKET_TIMER, _TIME_WAIT_TIMER = 2, 3

MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291, section 2.5.5.2
_WORD = struct.Struct("=I")


class Line(NamedTuple):
    """One socket: its state's number, its flow, seconds until the kernel frees it (or None), its inode and owner."""

    state: int
    flow: Flow
    remaining: float | None
    inode: int
    uid: int


def lines() -> Iterator[Line]:
    """Yield the TCP sockets of this network namespace; raise OSError if the IPv4 table cannot be read.

    Each connection once: the kernel hands a table out in pages, and where others come and go meanwhile a line of the
    page before comes again (tcp_seek_last_pos() in net/ipv4/tcp_ipv4.c).
    """
    seen: set[Flow] = set()
    for table in TABLES:
        try:
            with open(table, encoding="ascii") as rows:
                next(rows, None)  # the headings
                for line in map(parse, rows):
                    if line.flow not in seen or not line.flow.destination.port:  # several may listen
                        seen.add(line.flow)
                        yield line
        except FileNotFoundError:
            if table == TABLES[0]:
                raise  # only tcp6 may be missing, where there is no IPv6


def parse(line: str) -> Line:
    """Read one line, by its fields: from the 10,000th row on, the columns are no longer where they were."""
    _, source, destination, state, _, timer, _, uid, _, inode = line.split(maxsplit=10)[:10]
    kind, _, ticks = timer.partition(":")
    remaining = freed_in(int(state, 16), int(kind, 16), int(ticks, 16) / os.sysconf("SC_CLK_TCK"), int(inode))
    address, port = _end(source)
    return Line(int(state, 16), Flow(address, port, Destination(*_end(destination))), remaining, int(inode), int(uid))


def freed_in(state: int, timer: int, seconds: float, inode: int) -> float | None:
    """Return *seconds* if the timer that runs out then frees the socket."""
    # FIN_WAIT2 after close() is under TIME_WAIT's timer; or under the socket's own, if the ACK of our FIN came while
    # close() was still busy with it, or for what tcp_fin_timeout exceeds 60 s (then the 60 s follow: a lower bound).
    # See tcp_rcv_state_process() in net/ipv4/tcp_input.c. The same timer is SO_KEEPALIVE's, but of a socket that
    # still has an owner, and so an inode.
    orphan = timer == _SOCKET_TIMER and state == _FIN_WAIT2 and not inode
    return seconds if orphan or timer == _TIME_WAIT_TIMER else None


def text_of(packed: bytes) -> str:
    """Write an address of 4 or 16 bytes, an IPv4-mapped one as the IPv4 address that it is on the wire."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _end(field: str) -> tuple[str, int]:
    digits, _, port = field.partition(":")
    # Words in network order, printed as numbers of this machine: tcp4_seq_show() and get_tcp6_sock().
    packed = b"".join(_WORD.pack(int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8))
    return text_of(packed), int(port, 16)
