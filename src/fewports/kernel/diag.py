"""What TCP sockets the kernel has: count them, list them, look one up. Reports; what counts as held is for others.

By NETLINK_SOCK_DIAG (sock_diag(7)), which needs no privilege; where that is refused, from /proc/net/tcp and tcp6.

- Rows are those of this network namespace, the server's side of a local connection included, as a flow of its own.
- An address is written as inet_ntop() does, an IPv4-mapped one (of a dual-stack socket) as IPv4. A link-local one
  carries its %scope as a number, which /proc does not tell.
- A socket bound to a device (SO_BINDTODEVICE) is in `rows` and `count`. `look_up` finds it if `note_device` has learned
  of the device: the kernel compares the interface too, and a `Flow` has none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from fewports.address import Destination, Flow, sockaddr
from fewports.kernel import options, portable, procnet
from fewports.kernel.netlink import HEADER, Netlink, Part


class State(IntEnum):
    """TCP states as include/net/tcp_states.h numbers them."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


def mask(*states: State) -> int:
    """Return what `rows` and `count` take for these states."""
    return sum(1 << state for state in states)


ALL = mask(*State)
CONNECTED = ALL & ~mask(State.LISTEN, State.CLOSE)  # every state in which a socket holds a flow


class Row(NamedTuple):
    """A socket that the kernel has.

    remaining: seconds until the kernel's TIME_WAIT or FIN_WAIT2 timer frees it, None without such a timer. In
    FIN_WAIT2 it takes longer if tcp_fin_timeout is above 60; in TIME_WAIT the flow can be used again sooner where
    tcp_tw_reuse allows it (`facts.time_wait_hold`). Such a socket has no owner any more: its inode and uid are 0.
    """

    state: State
    flow: Flow
    remaining: float | None
    inode: int
    uid: int


_NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h
# The older request covers both families in one walk through the kernel's table (inet_diag_dump_compat); so does ss(8).
_TCPDIAG_GETSOCK = 18  # include/uapi/linux/inet_diag.h
_SOCK_DIAG_BY_FAMILY = 20  # include/uapi/linux/sock_diag.h
_REQ_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_SOURCE_COND, _DESTINATION_COND, _DEVICE_COND = 7, 8, 9  # INET_DIAG_BC_S_COND, _D_COND, _DEV_COND (Linux 4.9)

_DUMP_REQUEST = struct.Struct("=4x48xII")  # struct inet_diag_req: no family, no id; states, dbs
_EXACT_REQUEST = struct.Struct("=BB2xI")  # struct inet_diag_req_v2: family, protocol, states; the id follows
_ENDS = struct.Struct("!HH16s16s")  # struct inet_diag_sockid: ports, addresses
_INTERFACE = struct.Struct("=I")
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_OPERATION = struct.Struct("=BBH")  # struct inet_diag_bc_op: code, how far to go on if true, and if not
_HOST = struct.Struct("=BB2xi")  # struct inet_diag_hostcond: family, prefix length, port (-1: any); the address follows
# struct inet_diag_msg: family, state, timer, ports, addresses; interface, expires (ms), uid, inode.
_MESSAGE = struct.Struct("!BBBxHH16s16s")
_MESSAGE_REST = struct.Struct("=I8xI8xII")
_STATES = {int(state): state for state in State}

SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # they say nothing about what is granted

_sockets = Netlink(_NETLINK_SOCK_DIAG)
_granted: bool | None = None
_devices: set[int] = set()  # interfaces to which sockets of this process were bound


def available() -> bool:
    """Say whether the system can be asked; where it is not Linux, the other functions raise NotImplementedError."""
    return portable.current() is portable.LINUX and (netlink_granted() or os.access(procnet.TABLES[0], os.R_OK))


def netlink_granted() -> bool:
    """Say whether sock_diag answers, by asking it for no state at all; remembered until `reset`."""
    global _granted
    if _granted is None:
        try:
            # Not by a look-up: its ENOENT may mean "no such socket" or "no tcp_diag module".
            _dump(b"", 0)
            _granted = True
        except OSError as error:  # EPERM, EACCES, EAFNOSUPPORT, EPROTONOSUPPORT, ECONNREFUSED, ENOENT: each means no
            if error.errno in SHORTAGES:
                return False  # for now
            _granted = False
    return _granted


def undecided() -> bool:
    """Say whether it is still to be found out if sock_diag answers: there was no descriptor, or no memory, to ask."""
    return portable.current() is portable.LINUX and _granted is None


def reset() -> None:
    """Close the netlink sockets and forget whether they were granted, as after a change of network namespace."""
    global _granted
    _granted = None
    _sockets.reset()


def note_device(sock: socket.socket) -> None:
    """Learn to which device *sock* is bound, if to any."""
    if portable.current() is portable.LINUX:
        with contextlib.suppress(OSError):  # before Linux 5.0
            _devices.add(sock.getsockopt(socket.SOL_SOCKET, options.SO_BINDTOIFINDEX))


def rows(*, source: str | None = None, destination: Destination | None = None, states: int = CONNECTED) -> list[Row]:
    """List the sockets with this local address and this remote end, in *states* (see `mask`).

    Raises OSError if a %scope names no interface, or if neither netlink nor /proc can be read.
    """
    _require_linux()
    bytecode = _bytecode(source, destination)
    if netlink_granted():
        try:
            parts = _dump(bytecode, states & ALL)
        except OSError:
            pass  # no memory, or the sandbox has closed since: /proc can still say
        else:
            text_of = cache(procnet.text_of)  # few addresses stand in many rows
            return [_row(data, start, text_of) for data, starts in parts for start in starts]
    return list(_proc_rows(source, destination, states))


def count(*, source: str | None = None, destination: Destination | None = None, states: int = CONNECTED) -> int:
    """Return how many sockets `rows` would list, and raise as it does."""
    _require_linux()
    bytecode = _bytecode(source, destination)
    if netlink_granted():
        try:
            return sum(len(starts) for _, starts in _dump(bytecode, states & ALL))
        except OSError:
            pass  # as in rows()
    return sum(1 for _ in _proc_rows(source, destination, states))


def look_up(flow: Flow) -> Row | None:
    """Return the socket that holds *flow*, in TIME_WAIT too, or None if there is none. Takes no dump: some 8 us.

    Raises OSError if a %scope names no interface, or if neither netlink nor /proc can be read.
    """
    _require_linux()
    source, scope = _packed(flow.source)
    destination, other_scope = _packed(flow.destination.address)
    if netlink_granted():
        ends = _ENDS.pack(flow.port, flow.destination.port, source, destination)
        family = socket.AF_INET if len(destination) == 4 else socket.AF_INET6
        request = _EXACT_REQUEST.pack(family, socket.IPPROTO_TCP, ALL) + ends
        try:
            # A flow may be missed while it turns to TIME_WAIT: the kernel looks without a lock, and finds that the
            # socket it came upon was let go of (__inet_lookup_established() in net/ipv4/inet_hashtables.c; in 7 of
            # 53,000 such turns). What took its place is there by then, for the second look.
            asked = request + _INTERFACE.pack(other_scope or scope) + _ANY_COOKIE
            row = _row_of(asked, ends, flow) or _row_of(asked, ends, flow)
            if row is None and _devices:  # what is bound to one is found by that alone (include/net/inet_sock.h)
                others = [request + _INTERFACE.pack(index) + _ANY_COOKIE for index in list(_devices)]
                row = next(filter(None, (_row_of(other, ends, flow) for other in others * 2)), None)
            return row
        except OSError:
            pass  # as in rows()
    text = procnet.text_of
    bare = Flow(text(source), flow.port, Destination(text(destination), flow.destination.port))
    return next((Row(State(line.state), flow, *line[2:]) for line in procnet.lines() if line.flow == bare), None)


def _row_of(request: bytes, ends: bytes, flow: Flow) -> Row | None:
    try:
        reply = _sockets.ask(_SOCK_DIAG_BY_FAMILY, request)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return _row(reply, HEADER.size, procnet.text_of)._replace(flow=flow) if _same_ends(reply, ends) else None


def _require_linux() -> None:
    if portable.current() is not portable.LINUX:
        raise NotImplementedError("only Linux lists its TCP sockets to every program: ask diag.available() first")


def _packed(address: str) -> tuple[bytes, int]:
    """Return the bytes of an address, 4 of them for an IPv4-mapped one, and the interface of its %scope or 0."""
    if ":" not in address:
        return socket.inet_pton(socket.AF_INET, address), 0
    name = sockaddr(address, 0)
    packed = socket.inet_pton(socket.AF_INET6, name[0])
    return packed.removeprefix(procnet.MAPPED), name[3] if len(name) == 4 else 0


def _dump(bytecode: bytes, states: int) -> list[Part]:
    request = _DUMP_REQUEST.pack(states, 0)
    if bytecode:
        request += struct.pack("=HH", 4 + len(bytecode), _REQ_BYTECODE) + bytecode
    return _sockets.dump(_TCPDIAG_GETSOCK, request)


def _bytecode(source: str | None, destination: Destination | None) -> bytes:
    """Write the filter as inet_diag_bc_run() reads it: every condition must hold. IPv4 matches mapped sockets too."""
    conditions = []
    interface = 0
    ends = [(_SOURCE_COND, source, -1)]
    if destination is not None:
        ends.append((_DESTINATION_COND, destination.address, destination.port))
    for code, address, port in ends:
        if address is None:
            continue
        packed, scope = _packed(address)
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        conditions.append((code, _HOST.pack(family, len(packed) * 8, port) + packed))
        interface = interface or scope
    if interface:
        conditions.append((_DEVICE_COND, _INTERFACE.pack(interface)))
    bytecode = b""
    for code, operand in reversed(conditions):
        size = _OPERATION.size + len(operand)
        # A jump to 4 bytes past the end is how a filter says no.
        bytecode = _OPERATION.pack(code, size, size + len(bytecode) + 4) + operand + bytecode
    return bytecode


def _row(data: bytes, start: int, text_of: Callable[[bytes], str]) -> Row:
    family, state, timer, source_port, port, source, destination = _MESSAGE.unpack_from(data, start)
    interface, expires, uid, inode = _MESSAGE_REST.unpack_from(data, start + _MESSAGE.size)
    if family == socket.AF_INET:
        here, there = text_of(source[:4]), text_of(destination[:4])
    else:
        here, there = text_of(source), text_of(destination)
        if interface:
            here, there = _scoped(here, source, interface), _scoped(there, destination, interface)
    remaining = procnet.freed_in(state, timer, expires / 1000, inode)
    return Row(_STATES[state], Flow(here, source_port, Destination(there, port)), remaining, inode, uid)


def _scoped(text: str, packed: bytes, interface: int) -> str:
    link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80  # fe80::/10, RFC 4291, section 2.5.6
    return f"{text}%{interface}" if link_local else text


def _same_ends(reply: bytes, ends: bytes) -> bool:
    """Tell the socket asked for from a listener on its port, which the kernel returns where there is none."""
    family, state, _, source_port, port, source, destination = _MESSAGE.unpack_from(reply, HEADER.size)
    if family == socket.AF_INET:
        source, destination = source[:4], destination[:4]
    found = _ENDS.pack(source_port, port, source.removeprefix(procnet.MAPPED), destination.removeprefix(procnet.MAPPED))
    return found == ends and state != State.LISTEN


def _proc_rows(source: str | None, destination: Destination | None, states: int) -> Iterator[Row]:
    here = None if source is None else procnet.text_of(_packed(source)[0])
    there = None
    if destination is not None:
        there = Destination(procnet.text_of(_packed(destination.address)[0]), destination.port)
    for line in procnet.lines():
        if not states >> line.state & 1 or here not in (None, line.flow.source):
            continue
        if there in (None, line.flow.destination):
            yield Row(State(line.state), *line[1:])
