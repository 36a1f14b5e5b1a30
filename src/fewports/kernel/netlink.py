"""Netlink requests to the kernel and the replies to them, as bytes. What they mean, it does not know.

The kernel answers a request while it is being sent, so nothing here waits for anybody. A socket is lent to one caller
at a time and kept for the next; one whose exchange was broken off, by KeyboardInterrupt for instance, is closed, so
that nobody reads the rest of its answer.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

AF_NETLINK = 16  # include/linux/socket.h; Python names it on Linux only
# include/uapi/linux/netlink.h
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port id
_CODE = struct.Struct("=i")  # the negative errno that follows the header of NLMSG_ERROR and NLMSG_DONE

_REPLY = 8192  # bytes; one reply to one question is some 100
_CHUNK = 1 << 16  # bytes; the kernel fills at most 32 KiB of a dump at a time (netlink_dump in af_netlink.c)
_ATTEMPTS = 5  # for a dump that a change breaks into: a change in each of five runs of a millisecond is unheard of
_KEPT = 4  # idle sockets; more threads than that seldom ask within the same 10 us


class Part(NamedTuple):
    """A piece of a dump, and where in it the payloads start."""

    data: bytes
    starts: list[int]


class Netlink:
    """The sockets of one netlink protocol."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._sequence = itertools.count(1)
        # Appended to and popped from without a lock: each is one atomic operation of a list.
        self._idle: list[socket.socket] = []
        if hasattr(os, "register_at_fork"):
            # A child that read from its parent's socket would take the parent's answers. A socket that another thread
            # was using at the fork stays open in the child, unused.
            os.register_at_fork(after_in_child=self.reset)
        atexit.register(self.reset)

    def ask(self, kind: int, body: bytes) -> bytes:
        """Return the one reply to a request, header included; raise OSError with the errno of a refusal."""
        sequence = next(self._sequence) & 0xFFFFFFFF
        idle = self._idle
        link = self._lend(idle)
        try:
            link.send(HEADER.pack(HEADER.size + len(body), kind, _REQUEST, sequence, 0) + body)
            reply = link.recv(_REPLY)
            while HEADER.unpack_from(reply)[3] != sequence:
                reply = link.recv(_REPLY)
        except BaseException:
            link.close()
            raise
        self._take_back(link, idle)
        if HEADER.unpack_from(reply)[1] == _ERROR:
            raise _refusal(reply, HEADER.size)
        return reply

    def dump(self, kind: int, body: bytes) -> list[Part]:
        """Return all replies to a dump request; raise OSError with the errno of a refusal.

        A dump that a change breaks into is taken again. If that happens five times, the last one stands, in which a
        row may be missing or double.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                parts, interrupted = self._dump(kind, body)
            except OSError as error:
                if error.errno != errno.ENOBUFS or attempt == _ATTEMPTS:  # ENOBUFS: no memory at that moment
                    raise
                continue
            if not interrupted:
                break
        return parts

    def reset(self) -> None:
        """Close the sockets; later requests open new ones, in the network namespace of their thread."""
        idle, self._idle = self._idle, []
        _close_all(idle)

    def _dump(self, kind: int, body: bytes) -> tuple[list[Part], bool]:
        sequence = next(self._sequence) & 0xFFFFFFFF
        idle = self._idle
        link = self._lend(idle)
        parts: list[Part] = []
        interrupted = done = False
        try:
            link.send(HEADER.pack(HEADER.size + len(body), kind, _REQUEST | _DUMP, sequence, 0) + body)
            while not done:
                data = link.recv(_CHUNK)
                starts = []
                for start, reply, flags, asked in _messages(data):
                    if asked != sequence:
                        continue
                    interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                    done = reply == _DONE
                    if reply == _ERROR or (done and _CODE.unpack_from(data, start)[0] < 0):
                        raise _refusal(data, start)
                    if not done:
                        starts.append(start)
                parts.append(Part(data, starts))
        except BaseException:
            link.close()
            raise
        self._take_back(link, idle)
        return parts, interrupted

    def _lend(self, idle: list[socket.socket]) -> socket.socket:
        try:
            return idle.pop()
        except IndexError:
            return socket.socket(AF_NETLINK, socket.SOCK_RAW, self._protocol)

    def _take_back(self, link: socket.socket, idle: list[socket.socket]) -> None:
        if len(idle) >= _KEPT:
            link.close()
            return
        idle.append(link)
        if idle is not self._idle:  # reset() came in between: it or we find the socket in the old list
            _close_all(idle)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield payload start, type, flags and sequence number of each message."""
    at, unpack = 0, HEADER.unpack_from
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = unpack(data, at)
        if length < HEADER.size:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        yield at + HEADER.size, kind, flags, sequence
        at += (length + 3) & ~3  # NLMSG_ALIGN


def _refusal(data: bytes, start: int) -> OSError:
    code = -_CODE.unpack_from(data, start)[0]
    return OSError(code, os.strerror(code))


def _close_all(links: list[socket.socket]) -> None:
    while links:
        try:
            link = links.pop()
        except IndexError:  # another thread closes the same list
            return
        link.close()
