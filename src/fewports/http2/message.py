"""What HTTP/1.1 and HTTP/2 say with the same words: a request's fields from its header fields, and heads for both."""

from __future__ import annotations

from collections.abc import Iterable
from http.client import responses

from ..http1 import Field, Head
from .errors import LocalProtocolError
from .fields import Block

# Section 8.2.2 of RFC 9113: they speak of one connection. Host is :authority here.
_LEFT_OUT = frozenset(
    ("connection", "host", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings")
)


HEADS = 128  # heads that are remembered


def header_fields(fields: Iterable[Field]) -> tuple[Field, ...]:
    """Return the header fields of a request without those that HTTP/2 has other ways for.

    A Host of the caller's own stands where HTTP/2 has it, as the first (section 8.3.1 of RFC 9113).
    """
    kept: list[Field] = []
    authority: Field | None = None
    for name, value in fields:
        lowered = (name if isinstance(name, str) else name.decode("latin-1")).lower()
        if lowered == "host" and authority is None:
            authority = (":authority", value)
        elif lowered not in _LEFT_OUT and (lowered != "te" or _is_trailers(value)):
            kept.append((lowered, value))
    return tuple(kept) if authority is None else (authority, *kept)


def request_fields(
    method: str, scheme: str, target: str, fields: tuple[Field, ...], length: int | None
) -> tuple[Field, ...]:
    """Return a whole request head of what header_fields() made; *length* is that of a body which they do not tell."""
    head = ((":method", method), (":scheme", scheme), (":path", target), *fields)
    if length is None:
        return head
    for name, value in fields:
        if name == "content-length":
            said = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            if said.strip(" \t") != str(length):
                raise LocalProtocolError(f"the body has {length} bytes, and Content-Length says {said}")
            return head
    return (*head, ("content-length", str(length)))


def response_head(block: Block) -> Head:
    """Return a final response's head as HTTP/1.1 has it, as version 20 and with the usual words for the status."""
    status = block.status or 0
    lines = "".join(f"{name}: {value}\r\n" for name, value in block.fields)
    return Head(20, status, responses.get(status, ""), f"HTTP/2 {status}\r\n{lines}\r\n".encode("latin-1"))


class Known:
    """What the head of a response says; equal blocks share one."""

    __slots__ = ("block", "bodyless", "encoded", "head")

    def __init__(self, block: Block) -> None:
        self.block = block  # kept, so that its id() stays its own
        self.head = response_head(block)
        self.encoded = any(name == "content-encoding" for name, _ in block.fields)
        self.bodyless = block.status in (204, 304)

    def length(self, method: str) -> int | None:
        """Return how long the body is, None where that is not said."""
        return 0 if self.bodyless or method == "HEAD" else self.block.length


class Heads:
    """The heads that came on one connection, each read once."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}

    def of(self, block: Block) -> Known:
        """Return what *block* says."""
        known = self._known.get(id(block))
        if known is None:
            if len(self._known) >= HEADS:
                self._known.clear()
            known = self._known[id(block)] = Known(block)
        return known


def _is_trailers(value: str | bytes | int) -> bool:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip().lower() == "trailers"
