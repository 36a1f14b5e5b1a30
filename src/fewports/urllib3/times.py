"""How long a request may take, as urllib3's Timeout says it."""

from __future__ import annotations

from functools import lru_cache
from socket import getdefaulttimeout
from time import monotonic
from typing import NamedTuple

from urllib3.util import Timeout
from urllib3.util.timeout import _DEFAULT_TIMEOUT


class Times(NamedTuple):
    """How long a request may take: a call on the socket, in seconds, and all of it, as a time of monotonic()."""

    connect: float | None
    read: float | None
    deadline: float | None


def times_of(timeout: Timeout) -> Times:
    """Return what *timeout* means for a request that begins now."""
    connect, read, total = timeout._connect, timeout._read, timeout.total
    if total is None or total is _DEFAULT_TIMEOUT:
        default = getdefaulttimeout()
        connect = default if connect is _DEFAULT_TIMEOUT else connect
        return _without_end(connect, default if read is _DEFAULT_TIMEOUT else read)
    connect, read = (
        total if seconds is None or seconds is _DEFAULT_TIMEOUT else min(total, seconds) for seconds in (connect, read)
    )
    return Times(connect, read, monotonic() + total)


@lru_cache(16)
def _without_end(connect: float | None, read: float | None) -> Times:
    """Return the times of a request that has no deadline: those of the next are the same."""
    return Times(connect, read, None)
