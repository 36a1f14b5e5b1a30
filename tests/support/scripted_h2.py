"""An HTTP/2 server whose every frame is the test's, over a real socket, with TLS or without.

Each connection is served by a function of its own, as scripted.Scripted does it. Frames are made by http2_peer.py.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

from hpack import Decoder
from http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    data,
    frame,
    head,
    settings,
    window,
)

from support.scripted import Peer, Scripted
from support.servers import authority

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACK = 1


class Frame(NamedTuple):
    """A frame that the client sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[:4] if self.kind == RST_STREAM else self.payload[4:8], "big")


class Asked(NamedTuple):
    """The head of a request; *whole* says that no body follows."""

    stream: int
    fields: dict[str, str]
    whole: bool

    @property
    def path(self) -> str:
        return self.fields[":path"]


class H2Peer:
    """The server's end of one connection. Reading answers SETTINGS and PING while *polite*, and gives windows back
    while *generous*.

    ``seen``: the frames that came. ``resets``: the codes of RST_STREAM by stream, ``goodbye``: that of GOAWAY.
    ``bodies``: what came of the bodies, by stream. ``closed``: nothing comes any more.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.polite = self.generous = True
        self.closed = False
        self.seen: list[Frame] = []
        self.resets: dict[int, int] = {}
        self.bodies: dict[int, bytearray] = {}
        self.goodbye: int | None = None
        self._decoder = Decoder()
        self._heads: list[Asked] = []
        self._data = b""
        self._unacknowledged = 0

    def greet(self, **values: int) -> None:
        """Read the preface, send SETTINGS with *values*, those of http2_peer.settings()."""
        while len(self._data) < len(PREFACE):
            if not self._more():
                raise ConnectionError("no preface")
        if not self._data.startswith(PREFACE):
            raise AssertionError(f"no preface: {self._data[:100]!r}")
        self._data = self._data[len(PREFACE) :]
        self._unacknowledged += 1
        self.send(settings(**values))

    def change(self, **values: int) -> None:
        """Send SETTINGS with *values*, and read until the client has acknowledged all SETTINGS."""
        self._unacknowledged += 1
        self.send(settings(**values))
        while self._unacknowledged:
            if self.frame() is None:
                raise ConnectionError("the client has closed")

    def send(self, *pieces: bytes) -> None:
        self.peer.send(b"".join(pieces))

    def frame(self) -> Frame | None:
        """Read one frame; None if the client has closed."""
        while len(self._data) < 9 or len(self._data) < 9 + int.from_bytes(self._data[:3], "big"):
            if not self._more():
                return None
        size = int.from_bytes(self._data[:3], "big")
        stream = int.from_bytes(self._data[5:9], "big") & 0x7FFFFFFF
        found = Frame(self._data[3], self._data[4], stream, self._data[9 : 9 + size])
        self._data = self._data[9 + size :]
        self.seen.append(found)
        self._note(found)
        return found

    def until(self, kind: int, stream: int | None = None) -> Frame:
        """Read until such a frame comes."""
        while (found := self.frame()) is not None:
            if found.kind == kind and stream in (None, found.stream):
                return found
        raise ConnectionError("the client has closed")

    def request(self) -> Asked:
        """Read until the head of a request is here."""
        while not self._heads:
            if self.frame() is None:
                raise ConnectionError("the client has closed")
        return self._heads.pop(0)

    def requests(self, number: int) -> list[Asked]:
        return [self.request() for _ in range(number)]

    def body(self, stream: int) -> bytes:
        """Read until the request on *stream* has ended; return its body."""
        while not self._ended(stream):
            if self.frame() is None:
                raise ConnectionError("the client has closed")
        return bytes(self.bodies.get(stream, b""))

    def answer(self, stream: int, body: bytes = b"ok", *fields: tuple[str, str]) -> None:
        """Send a whole response; *body* goes in frames of 16 KiB, whatever the windows are."""
        pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
        self.send(
            head(stream, (":status", "200"), *fields, end=not pieces),
            *(data(stream, piece, end=number == len(pieces)) for number, piece in enumerate(pieces, 1)),
        )

    def serve(self) -> None:
        """Answer each request with its own path, until the client closes."""
        with contextlib.suppress(ConnectionError):
            while True:
                asked = self.request()
                self.answer(asked.stream, asked.path.encode())

    def quiet(self, seconds: float) -> list[Frame]:
        """Read for *seconds*; return what came."""
        before, deadline = len(self.seen), time.monotonic() + seconds
        patience = self.peer.sock.gettimeout()
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.peer.sock.settimeout(left)
                if self.frame() is None:
                    break
        except TimeoutError:
            pass
        finally:
            self.peer.sock.settimeout(patience)
        return self.seen[before:]

    def end(self) -> int | None:
        """Read until the client closes; return the code of its GOAWAY, None if there was none."""
        while self.frame() is not None:
            pass
        return self.goodbye

    def _more(self) -> bool:
        try:
            piece = self.peer.sock.recv(1 << 16)
        except (ConnectionError, ssl.SSLEOFError):
            piece = b""
        self._data += piece
        self.closed = not piece
        return not self.closed

    def _note(self, found: Frame) -> None:
        kind, flags, stream, payload = found
        if kind == SETTINGS and flags & ACK:
            self._unacknowledged -= 1
        elif kind == SETTINGS and self.polite:
            self._say(frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK and self.polite:
            self._say(frame(PING, ACK, 0, payload))
        elif kind == HEADERS:
            assert flags & END_HEADERS, "a head in pieces"
            fields = dict(self._decoder.decode(payload))
            if ":method" in fields:  # else it is a trailer
                self._heads.append(Asked(stream, fields, bool(flags & END_STREAM)))
        elif kind == DATA:
            self.bodies.setdefault(stream, bytearray()).extend(payload)
            if payload and self.generous:
                self._say(window(0, len(payload)), window(stream, len(payload)))
        elif kind == RST_STREAM:
            self.resets[stream] = found.code
        elif kind == GOAWAY:
            self.goodbye = found.code
        assert kind != CONTINUATION

    def _say(self, *pieces: bytes) -> None:
        # The client may have closed, with more of it to read.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.send(*pieces)

    def _ended(self, stream: int) -> bool:
        return any(
            found.stream == stream and found.kind in (HEADERS, DATA) and found.flags & END_STREAM for found in self.seen
        )


class ScriptedH2(Scripted):
    """Serve the first connection by the first of *scripts*, and so on; more than there are find no answer.

    Over *tls* it answers ALPN with *alpn*. ``peers`` are the connections that were made.
    """

    def __init__(self, *scripts: Callable[[H2Peer], None], tls: bool = False, alpn: str | None = "h2") -> None:
        self._keys = authority("127.0.0.1") if tls else None
        self._alpn = alpn
        self.peers: list[H2Peer] = []
        super().__init__(*(self._handler(script) for script in scripts))

    @property
    def url(self) -> str:
        return f"{'https' if self._keys else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca_path(self) -> str | None:
        return self._keys.ca_path if self._keys else None

    def _handler(self, script: Callable[[H2Peer], None]) -> Callable[[Peer], None]:
        def handle(peer: Peer) -> None:
            if self._keys:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self._keys.chain, self._keys.key)
                if self._alpn:
                    context.set_alpn_protocols([self._alpn])
                peer.secure(context)
            self.peers.append(H2Peer(peer))
            script(self.peers[-1])

        return handle
