"""HTTP/1.1 as bytes, for threads and event loops alike: a request head out, a response in. No sockets, no clock."""

from .errors import LocalProtocolError, ProtocolError, RemoteProtocolError, Truncated
from .request import LAST_CHUNK, Field, Preset, chunk_head, request_head
from .response import (
    BAD_CHUNK_SIZE,
    BAD_LENGTH,
    IDEMPOTENT,
    MAX_CHUNK_LINE,
    MAX_EXTENSIONS,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_INTERIM,
    MAX_LENGTH,
    MAX_LINE,
    MAX_TRAILER,
    UNBOUNDED,
    Head,
    Reader,
    may_repeat,
)

__all__ = [
    "BAD_CHUNK_SIZE",
    "BAD_LENGTH",
    "IDEMPOTENT",
    "LAST_CHUNK",
    "MAX_CHUNK_LINE",
    "MAX_EXTENSIONS",
    "MAX_FIELDS",
    "MAX_HEAD",
    "MAX_INTERIM",
    "MAX_LENGTH",
    "MAX_LINE",
    "MAX_TRAILER",
    "UNBOUNDED",
    "Field",
    "Head",
    "LocalProtocolError",
    "Preset",
    "ProtocolError",
    "Reader",
    "RemoteProtocolError",
    "Truncated",
    "chunk_head",
    "may_repeat",
    "request_head",
]
