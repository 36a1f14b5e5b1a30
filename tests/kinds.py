"""The kinds of servers that one case runs against, HTTP/1.1 or HTTP/2, plain or over TLS; scripts that serve all."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from faces import Door, fresh_h2, fresh_server
from http2_peer import DATA, END_STREAM, frame, head, rst
from support.listeners import listen
from support.scripted import Peer, Scripted
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import authority

INTERNAL_ERROR = 2


class Kind(NamedTuple):
    """What a server speaks."""

    http2: bool
    tls: bool

    def __str__(self) -> str:
        return ("h2 " if self.http2 else "") + ("tls" if self.tls else "plain")

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def options(self) -> dict[str, Any]:
        """What a client must be told: whom to trust, and that it is HTTP/2 where there is no TLS to agree on it."""
        if self.tls:
            return {"ca_certs": authority("127.0.0.1").ca_path}
        return {"http2": True} if self.http2 else {}

    def server(self, **options: Any) -> contextlib.AbstractContextManager[Door]:
        """Give a server that runs for the whole test process, one of each *options*."""
        return fresh_h2(tls=self.tls, **options) if self.http2 else fresh_server(tls=self.tls, **options)

    @contextlib.contextmanager
    def scripted(self, *scripts: Callable[[Speaker], None]) -> Iterator[Place]:
        """Serve the first connection by the first of *scripts*, and so on."""
        if self.http2:
            with ScriptedH2(*(_of_h2(script) for script in scripts), tls=self.tls) as server:
                yield Place(server, server.url + "/")
            return
        with Scripted(*(_of_h1(script, self.tls) for script in scripts)) as server:
            yield Place(server, f"{self.scheme}://127.0.0.1:{server.port}/")

    @contextlib.contextmanager
    def silent(self) -> Iterator[str]:
        """Give the URL of a server that takes connections and says nothing."""
        with listen(["127.0.0.1"])[0] as listener:
            yield f"{self.scheme}://127.0.0.1:{listener.getsockname()[1]}/"


PLAIN, TLS, H2_PLAIN, H2_TLS = KINDS = tuple(Kind(http2, tls) for http2 in (False, True) for tls in (False, True))


class Place:
    """Where a script serves."""

    def __init__(self, server: Scripted, url: str) -> None:
        self._server, self.url = server, url

    @property
    def accepted(self) -> int:
        return self._server.accepted


class Speaker(Protocol):
    """The server's end of one connection, whatever it speaks. To return from a script closes the connection."""

    http2: bool

    def request(self) -> bool:
        """Read a request with its body; False if the client has closed."""

    def arrival(self) -> bool:
        """Read the head of a request, and of its body no more than came along."""

    def say(self, data: bytes) -> None:
        """Send any bytes."""

    def begin(self, length: int | None = None) -> None:
        """Send the head of a response to it."""

    def piece(self, data: bytes) -> None:
        """Send some of its body."""

    def answer(self, body: bytes = b"ok", status: int = 200) -> None:
        """Send a whole response."""

    def pause(self, seconds: float) -> bool:
        """Wait; False if the client has meanwhile told that it wants no more of the response."""

    def cut(self) -> None:
        """End a response in the middle of its body; over HTTP/2 the connection goes on."""

    def refuse(self) -> None:
        """Want no more of a request that was answered before its end."""


class Http1:
    """HTTP/1.1."""

    http2 = False

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def request(self) -> bool:
        return bool(self.peer.request())

    def arrival(self) -> bool:
        return bool(self.peer.sock.recv(1000))

    def say(self, data: bytes) -> None:
        self.peer.send(data)

    def begin(self, length: int | None = None) -> None:
        known = "" if length is None else f"Content-Length: {length}\r\n"
        self.peer.send(f"HTTP/1.1 200 OK\r\n{known}\r\n".encode())

    def piece(self, data: bytes) -> None:
        self.peer.send(data)

    def answer(self, body: bytes = b"ok", status: int = 200) -> None:
        self.peer.answer(body, status=f"{status} Fine")

    def pause(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True

    def cut(self) -> None:
        self.peer.sock.close()

    def refuse(self) -> None:
        self.peer.sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            while self.peer.sock.recv(65536):
                pass


class Http2:
    """HTTP/2, one request after the other; it greets before the first."""

    http2 = True

    def __init__(self, peer: H2Peer) -> None:
        self.peer = peer
        self.stream = 0
        self._greeted = False

    def request(self) -> bool:
        if self.arrival():
            with contextlib.suppress(ConnectionError):
                self.peer.body(self.stream)
                return True
        return False

    def arrival(self) -> bool:
        with contextlib.suppress(ConnectionError):
            if not self._greeted:
                self._greeted = True
                self.peer.greet()
            self.stream = self.peer.request().stream
            return True
        return False

    def say(self, data: bytes) -> None:
        self.peer.send(data)

    def begin(self, length: int | None = None) -> None:
        known = [] if length is None else [("content-length", str(length))]
        self.peer.send(head(self.stream, (":status", "200"), *known))

    def piece(self, data: bytes) -> None:
        self.peer.send(frame(DATA, 0, self.stream, data))

    def answer(self, body: bytes = b"ok", status: int = 200) -> None:
        known = ("content-length", str(len(body)))
        self.peer.send(
            head(self.stream, (":status", str(status)), known, end=not body),
            *([frame(DATA, END_STREAM, self.stream, body)] if body else []),
        )

    def pause(self, seconds: float) -> bool:
        self.peer.quiet(seconds)
        return self.stream not in self.peer.resets

    def cut(self) -> None:
        self.peer.send(rst(self.stream, INTERNAL_ERROR))

    def refuse(self) -> None:
        self.peer.send(rst(self.stream, 0))
        self.peer.end()


def _of_h1(script: Callable[[Speaker], None], tls: bool) -> Callable[[Peer], None]:
    def handle(peer: Peer) -> None:
        if tls:
            keys = authority("127.0.0.1")
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(keys.chain, keys.key)
            peer.secure(context)
        script(Http1(peer))

    return handle


def _of_h2(script: Callable[[Speaker], None]) -> Callable[[H2Peer], None]:
    def handle(peer: H2Peer) -> None:
        script(Http2(peer))

    return handle
