"""HTTP/2 for a client, for threads and event loops alike: bytes in, streams out. No sockets, no clock.

h2 is imported with the first connection: ``Connection`` and its constants are looked up when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    Code,
    ConnectionFailed,
    LocalProtocolError,
    Malformed,
    ProtocolError,
    RemoteProtocolError,
    StreamReset,
    Unprocessed,
)
from .fields import Block
from .stream import Seat, Stream

if TYPE_CHECKING:
    from .connection import ASSUMED_STREAMS, MAX_STREAMS, STREAM_WINDOW, WINDOW, Connection

__all__ = [
    "ASSUMED_STREAMS",
    "MAX_STREAMS",
    "STREAM_WINDOW",
    "WINDOW",
    "Block",
    "Code",
    "Connection",
    "ConnectionFailed",
    "LocalProtocolError",
    "Malformed",
    "ProtocolError",
    "RemoteProtocolError",
    "Seat",
    "Stream",
    "StreamReset",
    "Unprocessed",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".connection", __name__), name)
