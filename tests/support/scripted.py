"""A server whose every byte is the test's: each connection is served by a function of its own, in a thread."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

from support.listeners import listen

PATIENCE = 10.0  # seconds; a test that waits longer for its peer has failed


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b""

    def request(self) -> bytes:
        """Read one request, with the body that its Content-Length announces; b"" if the client closed."""
        while b"\r\n\r\n" not in self._data:
            if not self._more():
                return b""
        head, _, rest = self._data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(rest) < length and self._more():
            rest = self._data.partition(b"\r\n\r\n")[2]
        self._data = rest[length:]
        return head + b"\r\n\r\n" + rest[:length]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, body: bytes = b"ok", *fields: str, status: str = "200 OK") -> None:
        """Send a whole response with Content-Length."""
        lines = "".join(f"{field}\r\n" for field in fields)
        self.send(f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def secure(self, context: ssl.SSLContext) -> None:
        """Go on over TLS, as the server.

        Up to Python 3.12 a client's reset before the handshake leaves the TLS socket, which has the descriptor, open.
        """
        try:
            self.sock = context.wrap_socket(self.sock, server_side=True)
        except BaseException as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if isinstance(made := frame.f_locals.get("self"), ssl.SSLSocket):
                    made.close()
            raise

    def reset(self) -> None:
        """Close with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def end(self) -> bytes:
        """Read until the client closes; return what came."""
        while self._more():
            pass
        return self._data

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return False
        self._data += data
        return bool(data)


class Scripted:
    """Serve the first connection by the first of *handlers*, and so on; more than there are find no answer.

    ``accepted`` counts them. A handler that raises anything but a ConnectionError or an SSLError fails the test.
    """

    def __init__(self, *handlers: Callable[[Peer], None]) -> None:
        self._handlers = handlers
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self.accepted = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        (self._listener,) = listen(["127.0.0.1"])
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for sock in self._socks:
            sock.close()
        if self._failures and error is None:
            raise self._failures[0]

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(PATIENCE)
                self._socks.append(sock)
                number, self.accepted = self.accepted, self.accepted + 1
                if number < len(self._handlers):
                    self._start(lambda sock=sock, handler=self._handlers[number]: self._serve(sock, handler))  # type: ignore[misc]

    def _serve(self, sock: socket.socket, handler: Callable[[Peer], None]) -> None:
        peer = Peer(sock)
        try:
            handler(peer)
        except (ConnectionError, ssl.SSLError):
            pass
        except BaseException as error:
            self._failures.append(error)
        finally:
            with contextlib.suppress(OSError):
                peer.sock.close()  # TLS may have taken it over
