"""A thread that waits for its stream: what for, and for how long."""

from __future__ import annotations

import threading
from math import inf
from time import monotonic
from typing import cast

from ..http2 import Stream
from ..http2.waiting import Ready


class _Nothing:
    """Stands for a stream where somebody waits for the connection itself."""

    got = 0


GREETING = cast(Stream, _Nothing())


class Waiting:
    """A thread that waits for something to happen to its stream."""

    __slots__ = ("_alarm", "ready", "stream")

    def __init__(self, stream: Stream, ready: Ready) -> None:
        self.stream = stream
        self.ready = ready
        self._alarm: threading.Lock | None = None  # who reads for all needs none

    def queue(self) -> None:
        """Be about to sleep: before anybody can wake us."""
        self._alarm = threading.Lock()
        self._alarm.acquire()

    def sleep(self, seconds: float) -> bool:
        """Sleep until wake(), for *seconds* at most; say whether that came."""
        assert self._alarm is not None
        return self._alarm.acquire(timeout=seconds)

    def wake(self) -> None:
        assert self._alarm is not None
        self._alarm.release()


class Patience:
    """How long a thread still waits: for *timeout* seconds since something happened, and to *deadline* at most."""

    __slots__ = ("_deadline", "_seen", "_stream", "_timeout", "_until")

    def __init__(self, stream: Stream, timeout: float | None, deadline: float | None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._deadline = inf if deadline is None else deadline
        self._seen = stream.got
        self._until = self._deadline
        if timeout is not None:
            self._until = min(monotonic() + timeout, self._deadline)

    def left(self) -> float:
        """Return the seconds that are left, threading.TIMEOUT_MAX at most; raise TimeoutError if none are."""
        if self._until == inf:
            return threading.TIMEOUT_MAX
        left = self._until - monotonic()
        if left <= 0:
            self.look()
            left = self._until - monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
        return left

    def look(self) -> None:
        """Start again if something of the body has come."""
        if self._timeout is not None and self._stream.got != self._seen:
            self._seen = self._stream.got
            self._until = min(monotonic() + self._timeout, self._deadline)


def always(stream: Stream) -> bool:
    return True
