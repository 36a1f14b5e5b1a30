"""What who waits for a stream waits for, how long a peer may be silent, and what may be sent again. Pure."""

from __future__ import annotations

from collections.abc import Callable

from .errors import Unprocessed
from .stream import Stream

PREFETCH = 1024 * 1024  # bytes of a body that is wanted whole before its reader is woken to take them
QUIET = 20.0  # seconds without a byte, while somebody waits, after which the peer is asked whether it is there
ANSWER = 20.0  # seconds for its answer
SUSPENSE = 0.5  # seconds for it before a request is sent where the one before got no byte in its time
# How long, and for how many bytes, a connection stays for a peer that broke a rule, so that it learns which. To close
# with bytes unread, or to come, is a reset: that may destroy the GOAWAY on its way (RFC 9112, section 9.6).
LINGER = 0.1  # seconds
LINGER_BYTES = 4 * 1024 * 1024
REPEATS = 6  # of a request that no server looked at: as often as Go's client; HTTP/1.1 has one

Ready = Callable[[Stream], bool]


def ended(stream: Stream) -> bool:
    return stream.ended or stream.closed


def has_head(stream: Stream) -> bool:
    return stream.head is not None or stream.closed


def is_whole(stream: Stream) -> bool:
    return stream.ended or stream.closed or stream.buffered >= PREFETCH


def has_body(stream: Stream) -> bool:
    return stream.buffered > 0 or stream.ended or stream.closed


def has_room(stream: Stream) -> bool:
    return stream.room > 0 or stream.closed or stream.ended


def may_repeat(stream: Stream | None, error: BaseException, *, idempotent: bool) -> bool:
    """Say whether the request that failed may be sent again.

    The peer did nothing with it, or, as over HTTP/1.1 (RFC 9110, section 9.2.2): it has no more effect twice than once,
    and met the end of a connection that was kept before anything of its response came. Whatever else came there, for
    other requests or of a window, says nothing of this one.
    """
    if stream is None:
        return True
    if stream.head is not None or stream.interim:
        return False  # it did look at it, whatever it says after that
    return isinstance(error, Unprocessed) or stream.repeatable or (idempotent and stream.unheard)
