"""What HTTP/1.1 and HTTP/2 say with the same words: a request's fields from its header fields, and heads for both."""

from __future__ import annotations

from collections.abc import Iterable
from http.client import responses

from ..http1 import Field, Head
from .fields import Block

# Section 8.2.2 of RFC 9113: they speak of one connection. Host is :authority here.
_LEFT_OUT = frozenset(
    ("connection", "host", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings")
)


def header_fields(fields: Iterable[tuple[str, str]]) -> tuple[Field, ...]:
    """Return the header fields of a request without those that HTTP/2 has other ways for."""
    kept: list[Field] = []
    for name, value in fields:
        lowered = name.lower()
        if lowered not in _LEFT_OUT and (lowered != "te" or value.strip().lower() == "trailers"):
            kept.append((lowered, value))
    return tuple(kept)


def response_head(block: Block) -> Head:
    """Return a final response's head as HTTP/1.1 has it, as version 20 and with the usual words for the status."""
    status = block.status or 0
    lines = "".join(f"{name}: {value}\r\n" for name, value in block.fields)
    return Head(20, status, responses.get(status, ""), f"HTTP/2 {status}\r\n{lines}\r\n".encode("latin-1"))


def encoded(block: Block) -> bool:
    """Say whether there is a Content-Encoding."""
    return any(name == "content-encoding" for name, _ in block.fields)
