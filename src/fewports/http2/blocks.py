"""Header blocks, put together from their frames (RFC 9113, sections 6.2 and 6.10)."""

from __future__ import annotations

from .errors import Code
from .frames import END_HEADERS, END_STREAM, HEADERS, PADDED, PRIORITIZED, Bytes
from .hpack import MAX_LIST

MAX_CONTINUATIONS = 64  # frames of one header block: h2's own limit


class BrokenRule(Exception):
    """A rule that ends the connection, with the code that says so."""

    def __init__(self, error_code: Code, what: str) -> None:
        self.error_code = error_code
        super().__init__(what)


class Blocks:
    """``open``: the stream whose block goes on, or 0. ``ends``: the block that was whole last ends its stream."""

    def __init__(self) -> None:
        self.open = 0
        self.ends = False
        self._data = bytearray()
        self._frames = 0

    def add(self, kind: int, flags: int, number: int, frame: Bytes) -> bytes | None:
        """Take in a HEADERS or CONTINUATION; return the whole block with its last part. Raises BrokenRule."""
        if kind == HEADERS:
            self.ends = bool(flags & END_STREAM)
            part = bytes(frame[9:]) if not flags & (PADDED | PRIORITIZED) else _bare(flags, frame)
            if flags & END_HEADERS:
                return part
            self.open, self._frames = number, 1
            self._data[:] = part
            return None
        if not self.open:
            raise BrokenRule(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._data += frame[9:]
        self._frames += 1
        if len(self._data) > MAX_LIST or self._frames > MAX_CONTINUATIONS:
            raise BrokenRule(Code.ENHANCE_YOUR_CALM, f"more than {MAX_LIST} bytes or {MAX_CONTINUATIONS} parts")
        if not flags & END_HEADERS:
            return None
        self.open = 0
        return bytes(self._data)


def _bare(flags: int, frame: Bytes) -> bytes:
    """Return the fragment of a HEADERS frame without padding and priority, which nobody heeds (section 5.3.2)."""
    start, stop = 9, len(frame)
    if flags & PADDED:
        if len(frame) < 10:
            raise BrokenRule(Code.FRAME_SIZE_ERROR, "padding without a length")
        start, stop = 10, stop - frame[9]
    if flags & PRIORITIZED:
        start += 5
    if start > stop:
        raise BrokenRule(Code.PROTOCOL_ERROR, "more padding than there is room for")
    return bytes(frame[start:stop])
