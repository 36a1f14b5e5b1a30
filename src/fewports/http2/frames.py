"""Frames as bytes, and how h2 is set up: what of the protocol needs no state.

Sections are those of RFC 9113.
"""

from __future__ import annotations

import struct

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from hpack.exceptions import HPACKError, OversizedHeaderListError

from .errors import Code
from .hpack import MAX_LIST, Writing

MAX_FRAME = 16384  # bytes of payload that we take: the default of section 6.5.2
LAST_ID = 2**31 - 1  # section 5.1.1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

Bytes = bytes | bytearray | memoryview

frame_head = struct.Struct(">HBBBL")  # section 4.1: 24 bits of length, type, flags, stream
one_number = struct.Struct(">L")
two_numbers = struct.Struct(">LL")

_CODES = frozenset(Code)


class _Engine(H2Connection):
    """h2 without its count of open streams, which takes longer the more there are: seats bound them."""

    @property
    def open_outbound_streams(self) -> int:
        return 0


def engine(writing: Writing, stream_window: int) -> H2Connection:
    """Make h2's end of a connection; its checks of fields are off, because ours see them first."""
    h2 = _Engine(
        H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
    )
    h2.encoder = writing
    h2.local_settings = Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_LIST,
        },
    )
    h2.initiate_connection()
    return h2


def goaway(code: Code) -> bytes:
    """Return a GOAWAY (section 6.8). No stream of the peer was looked at: it opens none."""
    return b"\0\0\x08\x07\0\0\0\0\0" + two_numbers.pack(0, code)


def ping(flags: int, token: Bytes) -> bytes:
    """Return a PING of eight bytes, or the answer to one (section 6.7)."""
    return b"\0\0\x08\x06%c\0\0\0\0" % flags + token


def window_update(number: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE for a stream, or 0 for the connection (section 6.9)."""
    return b"\0\0\x04\x08\0" + two_numbers.pack(number, size)


def reset(number: int, code: int) -> bytes:
    """Return a RST_STREAM (section 6.4)."""
    return b"\0\0\x04\x03\0" + two_numbers.pack(number, code)


def headers(number: int, block: bytes, end: bool, largest: int) -> bytes:
    """Return a header block as HEADERS (section 6.2), and CONTINUATION where it is larger than a frame may be."""
    size = len(block)
    flags = END_STREAM if end else 0
    if size <= largest:
        return frame_head.pack(size >> 8, size & 0xFF, HEADERS, flags | END_HEADERS, number) + block
    pieces = []
    kind = HEADERS
    for at in range(0, size, largest):
        part = block[at : at + largest]
        if at + largest >= size:
            flags |= END_HEADERS
        pieces.append(frame_head.pack(len(part) >> 8, len(part) & 0xFF, kind, flags, number) + part)
        kind, flags = CONTINUATION, 0
    return b"".join(pieces)


def settings_of(frame: Bytes) -> list[bytes]:
    """Return the settings of a frame, six bytes each, but those that mean nothing (section 6.5.2)."""
    return [bytes(frame[at : at + 6]) for at in range(9, len(frame), 6) if frame[at] == 0 and frame[at + 1] <= 8]


def with_settings(frame: Bytes, settings: list[bytes]) -> bytes:
    """Return a SETTINGS frame with these settings and no others."""
    payload = b"".join(settings)
    return len(payload).to_bytes(3, "big") + bytes(frame[3:9]) + payload


def code_of(error: Exception) -> Code:
    """Say which code an error of h2, hpack or ours stands for (section 7)."""
    cause = error if isinstance(error, HPACKError) else error.__cause__ or error.__context__
    if isinstance(cause, OversizedHeaderListError):
        return Code.ENHANCE_YOUR_CALM
    if isinstance(cause, HPACKError):
        return Code.COMPRESSION_ERROR  # section 4.3
    code = getattr(error, "error_code", ErrorCodes.PROTOCOL_ERROR)
    return Code(code) if code in _CODES else Code.PROTOCOL_ERROR
