"""One thread that does what is due although nobody asks: expire idle connections, serve the line.

It runs while a pool has connections that nobody uses, a ledger keeps somebody waiting, or a connection is to close, and
ends by itself after that. State: the pools, ledgers and connections that are watched.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any, Protocol

from ..events import CloseReason
from ..ledger.local import Ledger
from ..pool import Pool, Pooled

log = logging.getLogger("fewports")
CHECK = 1.0  # seconds between two looks at whether peers have closed idle connections
AT_LEAST, AT_MOST = 0.001, 60.0  # seconds between two rounds


class Idle(Pooled, Protocol):
    """An idle connection, as the timer ends it."""

    def fileno(self) -> int: ...

    def alive(self) -> bool: ...

    def tidy(self) -> None: ...

    def end(self, reason: CloseReason) -> None: ...


class Parting(Protocol):
    """A connection that closes in a moment."""

    def part(self, now: float) -> float | None:
        """Close, or say when to look again."""
        ...


class Timer:
    """Watch pools and ledgers, and connections that close in a moment."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start clean in a forked child, which has no copy of the thread."""
        self._lock = threading.Lock()
        # Its put() may be called from a finalizer, whatever locks the interrupted thread holds.
        self._kicks: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._pools: set[Pool[Any]] = set()
        self._ledgers: set[Ledger] = set()
        self._parting: set[Parting] = set()
        self._thread: threading.Thread | None = None

    def watch_pool(self, pool: Pool[Any]) -> None:
        """Expire the connections of *pool* until it has none left."""
        if (pool in self._pools and self._thread is not None) or not pool.keeps:
            return  # seen without the lock: the thread looks again after it has taken a pool out
        with self._lock:
            self._pools.add(pool)
            self._run()

    def watch_line(self, pool: Pool[Any]) -> None:
        """Serve who waits for a place in *pool*, when one is lost, until nobody does."""
        if pool in self._pools and self._thread is not None:
            return  # as in watch_pool()
        with self._lock:
            self._pools.add(pool)
            self._run()
        self.kick()  # one may have been lost since the pool was asked

    def watch_ledger(self, ledger: Ledger) -> bool:
        """Serve the line of *ledger* until nobody waits; False if there is no thread that could: see to it yourself.

        The thread itself could not, while a subscriber that it has told something waits.
        """
        if ledger in self._ledgers and self._thread not in (None, threading.current_thread()):
            return True  # as in watch_pool(); and whoever joined has nudged, if something is due earlier by that
        ledger.nudge = self.kick
        with self._lock:
            self._ledgers.add(ledger)
            self._run()
        self.kick()
        return self._thread not in (None, threading.current_thread())

    def watch_parting(self, connection: Parting) -> bool:
        """Close *connection* when it is time; False if there is no thread that could."""
        with self._lock:
            self._parting.add(connection)
            self._run()
            if self._thread is None:
                self._parting.discard(connection)
                return False
        self.kick()
        return True

    def kick(self) -> None:
        """Have the next round begin now. Takes no lock."""
        if self._thread is not None:
            self._kicks.put(None)

    def _run(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._loop, name="fewports-timer", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be had now: the next call tries again
                thread.start()
                self._thread = thread

    def _loop(self) -> None:
        with self._lock:
            # A KeyboardInterrupt may have broken off start(), and another thread may have been started since.
            if self._thread not in (None, threading.current_thread()):
                return
            self._thread = threading.current_thread()
        lingers = False
        while True:
            pause: float | None = CHECK
            with _logged():
                pause = self._round(monotonic())
            if pause is None:
                with self._lock:
                    if lingers and not self._pools and not self._ledgers and not self._parting:
                        self._thread = None
                        return
                pause = CHECK
                lingers = True  # one request after the other: the connection is in use at most looks, and soon idle
            else:
                lingers = False
            try:
                self._kicks.get(timeout=min(AT_MOST, max(AT_LEAST, pause)))
                while True:
                    self._kicks.get_nowait()
            except queue.Empty:
                pass

    def _round(self, now: float) -> float | None:
        """Do what is due; return the seconds until the next round, or None if there is nothing to watch."""
        times: list[float] = []
        for ledger in list(self._ledgers):
            with _logged():
                ledger.advance(now)
            due = ledger.due()
            if due is None:
                with self._lock:
                    self._ledgers.discard(ledger)
                due = ledger.due()  # who joined before it was taken out has seen it watched
                if due is None:
                    continue
                with self._lock:
                    self._ledgers.add(ledger)
            times.append(due)
        for pool in list(self._pools):
            pool.regain(now)
            for connection in pool.riding():
                with _logged():
                    connection.tidy()
            endings = pool.close() if pool.abandoned else (*pool.expire(now), *_left_by_peer(pool, now))
            for connection, reason in endings:
                with _logged():
                    connection.end(reason)
            due = pool.due()
            if due is None:
                with self._lock:
                    self._pools.discard(pool)
                due = pool.due()
                if due is None:
                    continue
                with self._lock:
                    self._pools.add(pool)
            times.append(min(due, now + CHECK))
        for parting in list(self._parting):
            again: float | None = None
            with _logged():
                again = parting.part(now)
            if again is None:
                self._parting.discard(parting)
            else:
                times.append(again)
        return min(times) - monotonic() if times else None


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Let one connection, or one ledger, not end the thread for all others."""
    try:
        yield
    except Exception:
        log.exception("the timer goes on after an error")


def _left_by_peer(pool: Pool[Any], now: float) -> list[tuple[Idle, CloseReason]]:
    """Take out the connections that their peers have closed: their ports are free at once."""
    left: list[tuple[Idle, CloseReason]] = []
    for connection in _readable(pool.quiet()):
        if not pool.remove(connection):
            continue
        # What we saw may have been the response to a request that is over by now: only the second look,
        # at a connection that nobody else has, tells.
        if _readable([connection]) and not (connection.shared and connection.alive()):
            left.append((connection, CloseReason.PEER_CLOSED))
        else:
            left.extend(pool.restore(connection, now))
    return left


def _readable(connections: list[Any]) -> list[Any]:
    by_number = {connection.fileno(): connection for connection in connections}
    by_number.pop(-1, None)
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(0)]


timer = Timer()
