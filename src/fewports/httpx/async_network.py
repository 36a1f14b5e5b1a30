"""The ``network_stream`` extension for tasks."""

from __future__ import annotations

import ssl
from time import monotonic
from typing import Any

import anyio

from ..aio import Tls
from ..aio.connection import HIGH, LOW, Connection
from ..gated import GatedSocket
from .libraries import Library
from .network import about

DRAIN = 0.005  # seconds between two looks at whether more can be sent: flush() would wait where read() does


class AsyncNetworkStream:
    """One connection, as an AsyncNetworkStream of httpcore; errors are those of the *library's* httpcore.

    It can be read and written once take_over() has made it the receiver of what comes.
    """

    answered = False  # as a Receiver: there is always use in sending more

    def __init__(self, library: Library, sock: GatedSocket, session: ssl.SSLObject | None = None) -> None:
        self._library = library
        self._sock = sock
        self._session = session
        self._connection: Connection | None = None
        self._came = bytearray()
        self._ended = False
        self._error: Exception | None = None

    def take_over(self, connection: Connection) -> None:
        """Own *connection* from now on, with what came behind the head of its response."""
        self._connection = connection
        self._came += connection.reader.beyond
        self._ended = connection.link.lost
        connection.link.receiver = self

    def received(self, data: bytes) -> None:
        self._came += data
        if self._connection is not None:
            self._connection.link.wake()
            if len(self._came) >= HIGH:
                self._connection.link.hold()  # until read() has taken it

    def ended(self, error: Exception | None) -> None:
        self._ended, self._error = True, self._error or error
        if self._connection is not None:
            self._connection.link.wake()

    def abandon(self) -> None:
        """Close, and all that is idle in the pool with it: the loop ends."""
        if self._connection is not None:
            self._connection.abandon()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        core = self._library.core
        try:
            link = self._owned().link
            link.patience, link.deadline = timeout, None
            while not self._came and not self._ended and not link.closed:
                link.resume()
                await link.wait()
        except TimeoutError as error:
            raise core.ReadTimeout(error) from error
        except OSError as error:
            raise core.ReadError(error) from error
        if not self._came and self._error is not None:
            raise core.ReadError(self._error) from self._error
        data = bytes(self._came[:max_bytes])
        del self._came[:max_bytes]
        if len(self._came) <= LOW and not link.closed:
            link.resume()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        core = self._library.core
        until = None if timeout is None else monotonic() + timeout
        try:
            link = self._owned().link
            flows = not buffer or link.write(buffer)
            while not flows:
                if until is not None and monotonic() >= until:
                    raise core.WriteTimeout("timed out")
                await anyio.sleep(DRAIN)
                flows = link.write(b"")
        except OSError as error:
            raise core.WriteError(error) from error

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.discard()
            await connection.link.loop.rest()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        core = self._library.core
        try:
            with anyio.fail_after(timeout):
                link = self._owned().link
                await link.secure(Tls(ssl_context, server_hostname))
                self._session = link.session
        except TimeoutError as error:
            await self.aclose()
            raise core.ConnectTimeout(error) from error
        except OSError as error:
            await self.aclose()
            raise core.ConnectError(error) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._session if info == "ssl_object" else about(self._sock, info)

    def _owned(self) -> Connection:
        if self._connection is None:
            raise OSError("the connection is not this stream's: it is closed, or speaks HTTP")
        return self._connection
