"""The ``network_stream`` extension: the connection below a response, for who is to speak another protocol on it."""

from __future__ import annotations

import select
import socket
import ssl
from typing import Any

from ..gated import close_unfinished
from .libraries import Library


def about(sock: socket.socket | None, info: str) -> Any:
    """Return what httpcore's streams say of themselves under the name *info*, or None."""
    if sock is None:
        return None
    if info == "ssl_object":
        return sock if isinstance(sock, ssl.SSLSocket) else getattr(sock, "sslobj", None)
    if info == "client_addr":
        return sock.getsockname()
    if info == "server_addr":
        return sock.getpeername()
    if info == "socket":
        return sock
    if info == "is_readable":
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return None


class NetworkStream:
    """One connection, as a NetworkStream of httpcore; errors are those of the *library's* httpcore."""

    def __init__(self, library: Library, sock: socket.socket | None, ahead: bytes = b"") -> None:
        self._library = library
        self._sock = sock
        self._ahead = ahead  # what came with the response head

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:max_bytes], self._ahead[max_bytes:]
            return data
        core = self._library.core
        try:
            return self._standing(timeout).recv(max_bytes)
        except TimeoutError as error:
            raise core.ReadTimeout(error) from error
        except OSError as error:
            raise core.ReadError(error) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        core = self._library.core
        try:
            if buffer:
                self._standing(timeout).sendall(buffer)
        except TimeoutError as error:
            raise core.WriteTimeout(error) from error
        except OSError as error:
            raise core.WriteError(error) from error

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        core = self._library.core
        try:
            wrapped = ssl_context.wrap_socket(self._standing(timeout), server_hostname=server_hostname)
        except BaseException as error:
            close_unfinished(error)
            self.close()
            if isinstance(error, TimeoutError):
                raise core.ConnectTimeout(error) from error
            if isinstance(error, OSError):
                raise core.ConnectError(error) from error
            raise
        return NetworkStream(self._library, wrapped)

    def get_extra_info(self, info: str) -> Any:
        return about(self._sock, info)

    def _standing(self, timeout: float | None) -> socket.socket:
        sock = self._sock
        if sock is None:
            raise OSError("the connection is closed")
        sock.settimeout(timeout)
        return sock
