"""urllib3's connection with a seat on a shared one: its requests go out as streams of HTTP/2."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from time import monotonic
from typing import Any, cast

from urllib3.connection import _get_default_user_agent
from urllib3.util import SKIP_HEADER
from urllib3.util.request import body_to_chunks

from ..http1 import IDEMPOTENT, Field
from ..http2 import ProtocolError, RemoteProtocolError, Unprocessed
from ..http2.message import header_fields, request_fields
from ..sync.shared import SharedWire
from ..sync.stream import StreamWire, leave_seat
from .response import BadLength, BadResponse, Response, receive

H2 = "h2"
HTTP_11 = "http/1.1"


class Offer:
    """A TLS context that offers protocols of ours, whatever urllib3 has it offer. All else is the context's own.

    The context may be the user's, and may serve other pools: so the offer is made for each handshake.
    """

    def __init__(self, context: ssl.SSLContext, protocols: list[str]) -> None:
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "_protocols", protocols)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_context"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(object.__getattribute__(self, "_context"), name, value)

    def set_alpn_protocols(self, protocols: list[str]) -> None:
        """Leave urllib3's list: ours is set when the handshake begins."""

    def wrap_socket(self, *args: Any, **keywords: Any) -> ssl.SSLSocket:
        return _offering(self).wrap_socket(*args, **keywords)

    def wrap_bio(self, *args: Any, **keywords: Any) -> ssl.SSLObject:
        return _offering(self).wrap_bio(*args, **keywords)


def _offering(offer: Offer) -> ssl.SSLContext:
    """Return the context of *offer* after having it make that."""
    context = cast(ssl.SSLContext, object.__getattribute__(offer, "_context"))
    context.set_alpn_protocols(object.__getattribute__(offer, "_protocols"))
    return context


Encoded = tuple[tuple[Field, ...], bytes]


PRESETS = 16  # different sets of header fields that are remembered
WITHOUT_BODY = frozenset(("GET", "HEAD", "DELETE", "TRACE", "OPTIONS"))  # urllib3 sends no Content-Length: 0 with these


class Rider:
    """One connection's seat on a shared one, for one exchange after the other. Methods raise what http.client does."""

    __slots__ = ("carrier", "wire")

    def __init__(self, carrier: SharedWire) -> None:
        self.carrier = carrier
        self.wire: StreamWire | None = None

    def encode(self, method: str, url: str, body: Any, headers: Mapping[str, str]) -> Encoded | None:
        """Return a request with its body in one piece; None if there is anything uncommon in it."""
        if body is not None and type(body) not in (bytes, str):
            return None
        key = tuple(headers.items())
        presets = self.carrier.presets
        try:
            preset = presets.get(key)
        except TypeError:  # a value without hash
            return None
        if preset is None:
            preset = _preset(key)
            if len(presets) >= PRESETS:
                presets.clear()
            presets[key] = preset
        data = body.encode() if type(body) is str else body or b""
        length = len(data) if body is not None or method not in WITHOUT_BODY else None
        return self._fields(method, url, preset, length), data

    def _fields(self, method: str, url: str, preset: tuple[Field, ...], length: int | None) -> tuple[Field, ...]:
        scheme, authority = self.carrier.origin
        if not preset or preset[0][0] != ":authority":
            preset = ((":authority", authority), *preset)
        return request_fields(method, scheme, url, preset, length)

    def send(self, data: Encoded, method: str, timeout: float | None, deadline: float | None) -> None:
        """Send a request whose body is in one piece."""
        wire = self._wire(method, timeout, deadline)
        try:
            wire.ask(*data)
        except ProtocolError as error:
            raise _translated(error) from error

    def request(
        self, method: str, url: str, body: Any, headers: Mapping[str, str], blocksize: int, timeout: Any, deadline: Any
    ) -> None:
        """Send a request; a body in pieces as they come."""
        pieces = body_to_chunks(body, method=method, blocksize=blocksize)
        fields = self._fields(method, url, _preset(tuple(headers.items())), pieces.content_length)
        wire = self._wire(method, timeout, deadline)
        try:
            if pieces.chunks is None:
                wire.ask(fields, b"")
                return
            wire.begin(fields)
            for piece in pieces.chunks:
                if piece:
                    wire.send(piece.encode() if isinstance(piece, str) else piece)
            wire.send(b"", end=True)
        except ProtocolError as error:
            raise _translated(error) from error

    def receive(self, asked: Any, read: float | None) -> Response:
        """Receive the response to what was sent."""
        wire = self.wire
        assert wire is not None
        wire.timeout = read
        wire.preloads = asked.preload_content
        try:
            return receive(cast(Any, wire), asked, "HTTP/2")
        except ProtocolError as error:
            if isinstance(error, (BadResponse, BadLength)):
                raise
            raise _translated(error) from error

    def begin(self, method: str) -> StreamWire:
        """Return what a request of its own way goes out with."""
        return self._wire(method, None, None)

    def _wire(self, method: str, timeout: float | None, deadline: float | None) -> StreamWire:
        if self.wire is not None:  # the seat is the next one's
            self.wire.seated = False
            self.wire.close()
        wire = self.wire = StreamWire(self.carrier, method)
        wire.timeout = timeout
        wire.deadline = deadline
        return wire

    @property
    def begun(self) -> bool:
        """Say whether a request has been begun: of its body something may have been read."""
        return self.wire is not None and self.wire.stream is not None

    def unanswered(self, method: str, error: Exception) -> bool:
        """Say whether the request that failed may be sent again."""
        wire = self.wire
        cause = error.__cause__ if isinstance(error, BadResponse) else error
        return wire is not None and wire.repeatable(cause or error, idempotent=method in IDEMPOTENT)

    def give_back(self) -> None:
        """Give the seat back with its place; a response that is under way keeps the seat until its end."""
        wire, self.wire = self.wire, None
        carrier = self.carrier
        home = carrier.home
        assert home is not None
        if wire is not None:
            if not wire.over:
                wire.parted = True
                home.drop_place()
                return
            wire.seated = False
        for connection, reason in home.give_back(carrier, monotonic()):
            connection.end(reason)

    def leave(self) -> None:
        """Leave the exchange that is under way, and give up the seat."""
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.leave()
        else:
            leave_seat(self.carrier)


def _preset(fields: tuple[tuple[str, str], ...]) -> tuple[Field, ...]:
    """Return what urllib3 adds and *fields*, without what only HTTP/1.1 has."""
    given = {
        "accept-encoding": ("accept-encoding", "identity"),
        "user-agent": ("user-agent", _get_default_user_agent()),
    }
    kept = []
    for name, value in fields:
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        given.pop(name.lower(), None)
        if value != SKIP_HEADER:
            kept.append((name, value))
    return header_fields([*given.values(), *kept])


def _translated(error: ProtocolError) -> Exception:
    """Return what http.client would raise, for urllib3 to go on with."""
    if isinstance(error, Unprocessed):
        return BadResponse(RemoteProtocolError(str(error), "the request"))
    if isinstance(error, RemoteProtocolError) and not isinstance(error, BadResponse):
        return BadResponse(error)
    return error
