"""What goes wrong with HTTP/2. LocalProtocolError and RemoteProtocolError are those of HTTP/1.1."""

from __future__ import annotations

from enum import IntEnum

from ..http1.errors import LocalProtocolError, ProtocolError, RemoteProtocolError

__all__ = [
    "Code",
    "ConnectionFailed",
    "LocalProtocolError",
    "Malformed",
    "ProtocolError",
    "RemoteProtocolError",
    "StreamReset",
    "Unprocessed",
]


class Code(IntEnum):
    """Error codes (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def code_name(code: int) -> str:
    """Name a code; unknown ones mean nothing special (section 7)."""
    return Code(code).name if code in Code.__members__.values() else f"code {code}"


class ConnectionFailed(RemoteProtocolError):
    """The whole connection has ended: ``code`` is what we told the peer, or None if it was the peer who closed."""

    def __init__(self, what: str, where: str, code: Code | None) -> None:
        super().__init__(what, where)
        self.code = code
        self.args = what, where, code  # for pickle


class Malformed(RemoteProtocolError):
    """One response breaks a rule (section 8.1.1); the other streams of its connection go on."""


class StreamReset(RemoteProtocolError):
    """The peer ended one stream before its end: ``code`` says why."""

    def __init__(self, where: str, code: int) -> None:
        super().__init__(f"the peer reset the stream ({code_name(code)})", where)
        self.code = code
        self.args = where, code  # for pickle


class Unprocessed(ProtocolError):
    """The peer did nothing with the request, or it was not even sent: repeat it on another connection.

    Raised by Seat.open(), and the ``error`` of streams above the last one that a GOAWAY names.
    """
