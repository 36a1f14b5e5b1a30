"""Frames out of bytes, in whatever pieces these come (RFC 9113, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

from .blocks import BrokenRule
from .errors import Code
from .frames import LAST_ID, MAX_FRAME, Bytes, frame_head

HEAD = 9  # bytes of a frame before its payload

Frame = tuple[int, int, int, Bytes]  # type, flags, stream, and all of it


class Splitter:
    """Keeps what is not complete; a frame that came whole is not copied."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._need = HEAD  # bytes of it, as far as is known

    def split(self, data: Bytes) -> Iterator[Frame]:
        """Give the frames that are whole now. Raises BrokenRule for one that is too large."""
        at = 0
        if self._kept:
            at = self._complete(data)
            if len(self._kept) < self._need:
                return
            frame = bytes(self._kept)
            self._kept.clear()
            self._need = HEAD
            _, _, kind, flags, stream = frame_head.unpack_from(frame)
            yield kind, flags, stream & LAST_ID, frame
        view = memoryview(data)
        end = len(data)
        while end - at >= HEAD:
            high, low, kind, flags, stream = frame_head.unpack_from(data, at)
            stop = at + HEAD + _checked(high << 8 | low)
            if stop > end:
                self._need = stop - at
                break
            yield kind, flags, stream & LAST_ID, view[at:stop]
            at = stop
        self._kept += data[at:]

    def _complete(self, data: Bytes) -> int:
        """Take what is missing of the frame that is not complete; return how much that was."""
        at = 0
        if self._need == HEAD:
            at = HEAD - len(self._kept)
            self._kept += data[:at]
            if len(self._kept) < HEAD:
                return len(data)
            high, low, _, _, _ = frame_head.unpack_from(self._kept)
            self._need = HEAD + _checked(high << 8 | low)
        stop = at + self._need - len(self._kept)
        self._kept += data[at:stop]
        return stop


def _checked(size: int) -> int:
    if size > MAX_FRAME:
        raise BrokenRule(Code.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
    return size
