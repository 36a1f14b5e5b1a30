"""A request of either library as what goes out on the wire, and a response head as what its Response is made of.

All of it is the same for threads and event loops.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from .. import http1
from ..http2.message import header_fields
from .libraries import library_of
from .trace import core_request

PRESETS = 256  # different sets of header fields that a transport remembers as bytes,
REMEMBERED = 2048  # bytes of such a set at most
LENGTH = 19  # digits of a Content-Length: what a file offset can have
PORTS = {"http": 80, "https": 443}
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_is_value = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?").fullmatch  # h11's
_VERSIONS = {20: b"HTTP/2", 11: b"HTTP/1.1", 10: b"HTTP/1.0"}

RawFields = tuple[tuple[bytes, bytes], ...]


class Fields(NamedTuple):
    """Header fields of a request as bytes, checked, and what they say of its body and its connection."""

    raw: RawFields
    preset: http1.Preset
    length: int | None
    chunked: bool
    close: bool
    upgrade: bool
    flaw: str  # for which HTTP/1.1 does not take them; HTTP/2 sends values without the white space around them


Known = dict[RawFields, Fields]


class Origin(NamedTuple):
    """Where a request goes: what a pool is found by."""

    library: str
    scheme: str
    host: str
    port: int
    sni: str | None


class Call:
    """One request on its way, for a transport that has header fields *known* already.

    Raises UnsupportedProtocol or LocalProtocolError of the library. ``content`` is the body, None where that is to be
    iterated.
    """

    __slots__ = (*("_known", "content", "extensions", "fields", "library", "method", "origin", "request", "target"),)

    def __init__(self, request: Any, known: Known) -> None:
        self._known = known
        self.request = request
        self.library = library = library_of(request)
        self.extensions: dict[str, Any] = request.extensions
        self.method: str = request.method
        url = request.url
        self.target: bytes = self.extensions.get("target") or url.raw_path
        scheme = _SCHEMES.get(url.scheme)
        if scheme is None:
            raise library.error("UnsupportedProtocol")(_unsupported(url.scheme))
        port = url.port or PORTS[scheme]
        host = url.raw_host.decode("ascii")
        self.origin = Origin(library.name, scheme, host, port, self.extensions.get("sni_hostname"))
        self.fields = self._checked(tuple(request.headers.raw))
        self.content = self._content()

    def addressed(self, before: list[tuple[bytes, bytes]] | None, front: bytes) -> tuple[Fields, str]:
        """Return fields and target; to a proxy that forwards, *before* are its fields and *front* that of the URL."""
        fields, target = self.fields, self.target
        if before:
            given = self.request.headers.raw
            fields = self._checked((*without(before, given), *given))
        if front and target.startswith(b"/"):
            target = front + target
        return fields, target.decode("latin-1")

    def head(self, before: list[tuple[bytes, bytes]] | None = None, front: bytes = b"") -> bytes:
        """Return the request head."""
        fields, target = self.addressed(before, front)
        if fields.flaw:
            raise self.library.error("LocalProtocolError")(fields.flaw)
        try:
            return http1.request_head(self.method, target, (), fields.preset)
        except http1.LocalProtocolError as error:
            raise self.library.error("LocalProtocolError")(str(error)) from error

    def stream_fields(self) -> tuple[http1.Field, ...]:
        """Return what is sent as the head of a stream of HTTP/2."""
        host, *fields = self.fields.raw
        authority = host[1].decode("latin-1")
        target = self.target.decode("latin-1")
        named = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)
        pseudo = ((":method", self.method), (":authority", authority), (":scheme", self.origin.scheme))
        return (*pseudo, (":path", target), *header_fields(named))

    def framed(self, piece: bytes, sent: int) -> bytes:
        """Return a *piece* of the body as it is sent, after *sent* bytes of it."""
        self.counted(piece, sent)
        if self.fields.chunked:
            return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
        return piece

    def framed_end(self, sent: int) -> bytes:
        """Return what comes after a body of *sent* bytes."""
        self.counted_end(sent)
        return http1.LAST_CHUNK if self.fields.chunked else b""

    def counted(self, piece: bytes, sent: int) -> None:
        """Refuse a *piece* that goes beyond what was announced, after *sent* bytes."""
        if not self.fields.chunked and sent + len(piece) > (self.fields.length or 0):
            raise self.library.error("LocalProtocolError")("Too much data for declared Content-Length")

    def counted_end(self, sent: int) -> None:
        """Refuse a body that ends after *sent* bytes if more were announced."""
        if not self.fields.chunked and sent < (self.fields.length or 0):
            raise self.library.error("LocalProtocolError")("Too little data for declared Content-Length")

    @property
    def timeouts(self) -> dict[str, float | None]:
        """The seconds for connect, read, write and pool, as far as they are said."""
        return self.extensions.get("timeout") or {}

    @property
    def body(self) -> bytes | None:
        """The body as it is sent, None where it is to be iterated."""
        content = self.content
        return self.framed(content, 0) + http1.LAST_CHUNK if content is not None and self.fields.chunked else content

    def traced(self) -> Any:
        """Return the request as an event shows it."""
        return core_request(self.library, self.request, self.target)

    def _checked(self, raw: RawFields) -> Fields:
        found = self._known.get(raw)
        if found is not None:
            return found
        try:
            found = _read(raw)
        except http1.LocalProtocolError as error:
            raise self.library.error("LocalProtocolError")(str(error)) from error
        if len(found.preset.lines) <= REMEMBERED:
            if len(self._known) >= PRESETS:
                self._known.clear()
            self._known[raw] = found
        return found

    def _content(self) -> bytes | None:
        stream = self.request.stream
        if type(stream) is not self.library.bytes:
            return None
        data: bytes
        (data,) = stream
        if data or self.fields.length:
            self.counted(data, 0)
            self.counted_end(len(data))
        return data


def front_of(call: Call) -> bytes:
    """Return scheme and host of a URL as a proxy that forwards is told them."""
    host, port = call.request.url.raw_host, call.request.url.port
    host = b"[%b]" % host if b":" in host else host
    return b"http://%b" % host if port is None else b"http://%b:%d" % (host, port)


def extensions_of(head: http1.Head, stream: object) -> dict[str, Any]:
    """Return the extensions of a response."""
    found = {"http_version": _VERSIONS[head.version], "network_stream": stream}
    if head.version < 20:  # HTTP/2 has none
        found["reason_phrase"] = head.reason.encode("latin-1")
    return found


def traced_head(head: http1.Head) -> tuple[object, ...]:
    """Return a response head as an event shows it."""
    if head.version == 20:
        return head.status, head.raw_fields()
    return _VERSIONS[head.version], head.status, head.reason.encode("latin-1"), head.raw_fields()


def is_tunnel(head: http1.Head, method: str) -> bool:
    """Say whether what follows is no HTTP any more, and the caller's (RFC 9110, sections 7.8 and 9.3.6)."""
    return head.status == 101 or (method == "CONNECT" and 200 <= head.status < 300)


def _read(raw: RawFields) -> Fields:
    """Return header fields as bytes; raises LocalProtocolError for what is wrong with them."""
    said: dict[bytes, bytes] = {}
    for name, value in raw:
        said[name.lower()] = value.strip().lower()
    if b"host" not in said:
        raise http1.LocalProtocolError("Missing mandatory Host: header")
    if raw[0][0].lower() != b"host":
        raw = tuple(sorted(raw, key=_is_not_host))  # RFC 9110, section 7.2: it goes first, if it can
    coding, length = said.get(b"transfer-encoding"), said.get(b"content-length")
    if coding is not None:
        if coding != b"chunked":
            raise http1.LocalProtocolError("Only Transfer-Encoding: chunked is supported")
        # RFC 9112, section 6.2: not both. The libraries add Content-Length to a Transfer-Encoding that was given.
        raw = tuple(field for field in raw if field[0].lower() != b"content-length")
        length = None
    if length is not None and not (length.isdigit() and len(length) <= LENGTH):
        raise http1.LocalProtocolError("bad Content-Length")
    options = {option.strip() for option in said.get(b"connection", b"").split(b",")}
    return Fields(
        raw,
        http1.Preset(raw),
        None if length is None else int(length),
        coding is not None,
        b"close" in options,
        b"upgrade" in options and b"upgrade" in said,
        flaw_of(raw),
    )


def flaw_of(fields: Iterable[http1.Field]) -> str:
    """Say in which field is what h11 refuses beside all else: white space around a value, FF or VT in it."""
    for name, value in fields:
        if isinstance(value, bytes) and not _is_value(value):
            return f"the value of {name!r} has white space around it, or FF, VT, CR, LF or NUL in it"
    return ""


def _is_not_host(field: tuple[bytes, bytes]) -> bool:
    return field[0].lower() != b"host"


def without(fields: list[tuple[bytes, bytes]], others: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return *fields* without those that are in *others*, too."""
    names = {name.lower() for name, _ in others}
    return [field for field in fields if field[0].lower() not in names]


def _unsupported(scheme: str) -> str:
    if not scheme:
        return "Request URL is missing an 'http://' or 'https://' protocol."
    return f"Request URL has an unsupported protocol '{scheme}://'."
