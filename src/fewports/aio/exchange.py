"""A response, as the engine hands it out."""

from __future__ import annotations

from os import getpid
from typing import TYPE_CHECKING

from .. import http1
from ..events import CloseReason
from .errors import LoopChanged

if TYPE_CHECKING:
    from .connection import Connection
    from .ride import Ride


class Exchange:
    """A response: its *head*, and the body, which is read from its connection unless it is here, in ``body``.

    The connection is given back at the end of the body, or by release(), which everybody calls in the end.
    """

    __slots__ = ("_connection", "_reading", "body", "chunked", "encoded", "head", "length", "stream_id")

    def __init__(self, connection: Connection | Ride, head: http1.Head, body: bytes | None) -> None:
        reader = connection.reader
        self.head = head
        self.body = body
        self.length = reader.length  # of the whole body, None where it is not known
        self.chunked = reader.chunked
        self.encoded = reader.encoded  # there is a Content-Encoding
        self.stream_id = connection.stream_id  # None where the protocol has no streams
        self._connection = connection if body is None else None
        self._reading = False  # a task waits for more of the body

    @property
    def connection(self) -> Connection | Ride | None:
        """The connection, while it is in use."""
        return self._connection

    @property
    def ready(self) -> bool:
        """Say whether all of the body is here, so that read() waits for nothing."""
        connection = self._connection
        return connection is None or connection.whole

    def forget(self) -> None:
        """Leave the connection to somebody else: it is a tunnel now."""
        self._connection = None

    @property
    def open(self) -> bool:
        """Say whether the connection is still in use."""
        return self._connection is not None

    async def read(self) -> bytes:
        """Return all that is left of the body; raises what piece() does."""
        return await self._read(None, True)

    async def piece(self, limit: int | None = None) -> bytes:
        """Return what is there of the body, *limit* bytes at most; wait only for the first of it; b"" at its end.

        Raises TimedOut, Disconnected, or RemoteProtocolError; the connection is closed then. In another event loop it
        raises LoopChanged.
        """
        return await self._read(limit, False)

    async def release(self) -> None:
        """Give the connection back: to the pool if the body was read to its end, closed if not.

        A task that reads meanwhile is told that it broke.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if not connection.link.loop.here:
            _drop(connection)
        elif self._reading:
            connection.discard()
        else:
            await connection.settle()

    async def _read(self, limit: int | None, whole: bool) -> bytes:
        connection = self._connection
        if connection is None:
            return b""
        if not connection.link.loop.here:
            raise LoopChanged("this response is of another event loop, whose connection it has: read it there")
        if self._reading:
            raise RuntimeError("another task reads this response: one at a time can")
        self._reading = True
        try:
            data = await connection.piece(limit, whole=whole)
        except BaseException:
            if self._connection is connection:  # else release() has seen to it
                self._connection = None
                connection.discard()
            raise
        finally:
            self._reading = False
        if self._connection is connection and connection.reader.done and (whole or not connection.pending):
            await self.release()
        return data

    def __del__(self) -> None:
        # The garbage collector may call, in the middle of anything: no lock of a pool may be taken.
        # A socket that the loop has closed, as the peer did, says nothing: the place is still to be given back.
        connection = self._connection
        if connection is not None:
            _drop(connection)


def _drop(connection: Connection | Ride) -> None:
    """Have its own loop close *connection*, or do so where that has ended."""
    loop = connection.link.loop
    if loop.pid == getpid() and not loop.call(connection.discard):  # in a forked child it is the parent's
        connection.end(CloseReason.DROPPED)  # the pool is of a loop that has ended, and serves nobody
