"""HTTP/2 for a client, for threads and event loops alike: bytes in, streams out. No sockets, no clock."""

from .connection import ASSUMED_STREAMS, MAX_STREAMS, STREAM_WINDOW, WINDOW, Connection
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
