"""The bytes of one HTTP/1.1 connection, moved by the thread that has it: requests out, responses in.

Nothing is read ahead of what the codec expects next, but for the rest of the packet that brought a head
or the framing of a chunk.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..http1 import Head, Reader, RemoteProtocolError, Truncated

RECEIVE = 65536  # bytes asked for at once; above 128 KiB malloc() maps pages and unmaps them again each time
TOGETHER = 16384  # bytes of body that go out with the head in one call: one TLS record
PARTING = 2  # milliseconds for the FIN of a peer that announced it; on its way it is 0.1 behind the response
AT_ONCE = 1 << 30  # bytes of memory for a body whose length the peer only says; 4 KiB pages are touched as it comes


class Wire:
    """One connection, between two requests or in the middle of one.

    ``deadline`` (monotonic, or None) bounds whatever is received, beside the time-out of each call.
    """

    __slots__ = (
        "_pending",
        "_poll",
        "_timeout",
        "_waits",
        "closed",
        "deadline",
        "failure",
        "parted",
        "reader",
        "sock",
        "used",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = Reader()
        self.used = False  # a response came before
        self.closed = False
        self.parted = False  # nobody has it any more but the response that is under way
        self.deadline: float | None = None
        self.failure: Exception | None = None  # why a body ended early
        self._timeout: object = self  # what the socket has now; not known yet
        self._waits: float | None = None
        self._poll: Any = None
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)  # what TLS has read ahead

    def clean(self) -> bool:
        """Say whether the last response has ended with nothing behind it, so that another request may follow."""
        return self.reader.reusable and not self.closed and not (self._pending and self._pending())

    @property
    def silent(self) -> bool:
        """Say whether nothing came, not even the end, since the last response: another request may go out."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        return not self._poll.poll(0) and not (self._pending and self._pending())

    def patience(self, timeout: float | None) -> None:
        """Have each call wait for *timeout* seconds at most; None is for ever."""
        self._waits = timeout
        if timeout != self._timeout:
            self._timeout = timeout
            self.sock.settimeout(timeout)

    def unknown(self) -> None:
        """Learn that somebody else may have set a time-out."""
        self._timeout = self

    def send(self, data: bytes) -> bool:
        """Send all of *data*; False where the peer had closed and not a byte went out."""
        try:
            send = self.sock.send
        except AttributeError:  # that of pyOpenSSL, as urllib3 wraps it
            self.sock.sendall(data)
            return True
        try:
            count = send(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            return False  # of TLS: not a record
        if count < len(data):
            self.put(memoryview(data)[count:])
        return True

    def put(self, data: bytes | memoryview) -> None:
        """Send all of *data*; raises ConnectionError, over TLS too, where the peer has closed: it may have answered."""
        try:
            self.sock.sendall(data)
        except ssl.SSLEOFError as error:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error

    def head(self) -> Head:
        """Receive until the head of the final response is there."""
        reader = self.reader
        while (head := reader.head) is None:
            if self.deadline is not None:
                self.hurry()
            data = self.sock.recv(RECEIVE)
            try:
                reader.receive(data)
            except RemoteProtocolError:
                if reader.head is None:
                    raise
                # What came with the head is bad. The head is good, and whoever reads on is told.
        self.used = True
        return head

    def receive(self) -> None:
        """Receive once, and have the codec look at it."""
        if self.deadline is not None:
            self.hurry()
        self.reader.receive(self.sock.recv(RECEIVE))

    def hurry(self) -> None:
        """Shorten the next wait to what is left until the deadline; raise TimeoutError if nothing is."""
        if self.deadline is None:
            return
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._timeout = left if self._waits is None else min(left, self._waits)
        self.sock.settimeout(self._timeout)

    def unhurried(self) -> None:
        """Forget the deadline; each call may wait its time again."""
        self.deadline = None
        self.patience(self._waits)

    def read(self, size: int | None = None) -> bytes:
        """Return *size* bytes of body, or all that is left; less only at its end, and then see ``failure``."""
        reader = self.reader
        if size is None:
            if reader.length is None:
                return self._read_on()
            size = reader.expects
        ready = reader.ready
        if ready and (ready >= size or (ready == reader.expects and reader.length is not None)):
            piece = reader.take(size)
            return piece if type(piece) is bytes else bytes(piece)
        file = io.BufferedReader(_Into(self), 1)  # it has the kernel write into the very bytes that it returns
        if size <= AT_ONCE:
            return file.read(size)
        pieces = []
        while size and (data := file.read(min(size, AT_ONCE))):
            pieces.append(data)
            size -= len(data)
        return b"".join(pieces)

    def read_some(self, size: int | None = None) -> bytes:
        """Return what is there of the body, *size* bytes at most; wait only for the first of it."""
        reader = self.reader
        while not reader.done:
            if piece := reader.take(RECEIVE if size is None else size):
                return bytes(piece)
            if not self._received():
                break
        return b""

    def read_into(self, view: memoryview) -> int:
        """Fill the front of *view* with body; 0 at its end. Large parts go there straight from the kernel."""
        reader = self.reader
        while not reader.done:
            if piece := reader.take(len(view)):
                view[: len(piece)] = piece
                return len(piece)
            expects = reader.expects
            if not expects:
                if not self._received():
                    break
                continue
            if self.deadline is not None:
                self.hurry()
            if count := self.sock.recv_into(view[:expects]):
                reader.took(count)
                return count
            if not self._ended():
                break
        return 0

    def part(self) -> None:
        """Close after a whole response that is the last; a moment later than the peer, if it is as good as its word.

        Who closes first has the TIME_WAIT: a port for 60 s.
        """
        if self.reader.done and not self.closed and not self.reader.persists and not self.reader.excess and self.silent:
            self._poll.poll(PARTING)
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self.sock.close()

    def _read_on(self) -> bytes:
        """Read to an end that is not known yet."""
        reader = self.reader
        pieces: list[bytes | memoryview] = []
        while not reader.done:
            if piece := reader.take():
                pieces.append(piece)
                continue
            if self.deadline is not None:
                self.hurry()
            data = self.sock.recv(RECEIVE)
            if data:
                reader.receive(memoryview(data))  # so that a piece of it is no copy
            elif not self._ended():
                break
        return b"".join(pieces)

    def _received(self) -> bool:
        """Receive once; False if the peer closed too early."""
        if self.deadline is not None:
            self.hurry()
        data = self.sock.recv(RECEIVE)
        if not data:
            return self._ended()
        self.reader.receive(data)
        return True

    def _ended(self) -> bool:
        try:
            self.reader.eof()
        except Truncated as error:
            self.failure = error
            return False
        return True


class _Into(io.RawIOBase):
    """The body as the lowest layer of a buffered file."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wire, view = self._wire, memoryview(buffer)
        reader = wire.reader
        wanted = min(len(view), reader.expects)
        if not wanted or reader.ready:
            return wire.read_into(view)
        # A large body is hundreds of recv(): what Python does for each is felt.
        receive, hurried, filled = wire.sock.recv_into, wire.deadline is not None, 0
        try:
            while filled < wanted:
                if hurried:
                    wire.hurry()
                if not (count := receive(view[filled:wanted])):
                    break
                filled += count
        finally:
            if filled:
                reader.took(filled)
        return filled or wire.read_into(view)
