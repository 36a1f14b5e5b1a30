"""What a client is to do, and what became of it. The client does it in a process of its own."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from .child import end_with_parent


@dataclass(frozen=True, slots=True)
class Work:
    """*bursts* times *requests*, by *threads* at once, over the destinations in turn.

    A burst lasts *every* seconds, or as long as it takes. After *limit* seconds no request is begun any
    more. *sources* are the addresses to connect from, in turn; none leaves that to the kernel. *budget* is
    for clients that have one.
    """

    requests: int
    threads: int
    bursts: int = 1
    every: float = 0.0
    destinations: int = 1
    sources: tuple[str, ...] = ()
    budget: int | None = None
    limit: float = 60.0


# Gets a URL, and raises if that fails.
Get = Callable[[str], None]
# Makes one for as long as a block lasts.
Client = Callable[[Work], AbstractContextManager[Get]]


class Tally:
    """What became of the requests. Times are those of the last answer: to fail is quick."""

    def __init__(self) -> None:
        self.done = self.failed = 0
        self.error: str | None = None
        self.began = self.last = time.monotonic()
        self.cpu = self._cpu = time.process_time()
        self.bursts: list[tuple[float, int, int]] = []  # when each began, what it did and failed
        self._lock = threading.Lock()

    def answered(self) -> None:
        with self._lock:
            self.done += 1
            self.last, self.cpu = time.monotonic(), time.process_time()

    def lost(self, error: Exception) -> None:
        with self._lock:
            self.failed += 1
            if self.error is None:
                self.error = reason(error)

    def told(self) -> dict[str, Any]:
        """Return what the parent is told; ``began`` and the times of the bursts are monotonic."""
        return {
            "done": self.done,
            "failed": self.failed,
            "error": self.error,
            "began": self.began,
            "seconds": self.last - self.began,
            "cpu": self.cpu - self._cpu,
            "bursts": self.bursts,
        }


def do(get: Get, urls: Sequence[str], work: Work) -> Tally:
    """Do all of *work* and return what became of it."""
    turn = threading.Barrier(work.threads + 1)
    pending: deque[str] = deque()
    tally = Tally()
    deadline = tally.began + work.limit

    def worker() -> None:
        for _ in range(work.bursts):
            turn.wait()
            _drain(pending, get, tally, deadline)
            turn.wait()

    for _ in range(work.threads):
        threading.Thread(target=worker, daemon=True).start()
    for burst in range(work.bursts):
        began, done, failed = time.monotonic(), tally.done, tally.failed
        pending.extend(urls[number % len(urls)] for number in range(work.requests))
        turn.wait()
        turn.wait()
        tally.bursts.append((began, tally.done - done, tally.failed - failed))
        pending.clear()
        time.sleep(max(0.0, tally.began + (burst + 1) * work.every - time.monotonic()))
    return tally


def be_client(client: str, urls: Sequence[str], work: dict[str, Any]) -> dict[str, Any]:
    """Be the process of the *client*, which is module:function: do the work, return the tally."""
    end_with_parent()
    os.environ["NO_PROXY"] = "*"  # requests would send it all to the user's proxy
    module, _, name = client.partition(":")
    make: Client = getattr(importlib.import_module(module), name)
    job = Work(**{**work, "sources": tuple(work["sources"])})
    with make(job) as get:
        tally = do(get, urls, job)
    return tally.told()


def settings(work: Work) -> dict[str, Any]:
    """Return *work* as be_client() takes it."""
    return asdict(work)


def reason(error: BaseException) -> str:
    """Return what the system said, under all the wrapping of the libraries, or what they say."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            break
        if isinstance(seen, OSError) and seen.errno is not None:
            return f"[Errno {seen.errno}] {seen.strerror}"
        seen = seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {error}"


def _drain(pending: deque[str], get: Get, tally: Tally, deadline: float) -> None:
    for url in _take(pending):
        if time.monotonic() > deadline:
            return
        try:
            get(url)
        except Exception as error:
            tally.lost(error)
        else:
            tally.answered()


def _take(pending: deque[str]) -> Iterator[str]:
    while True:
        try:
            yield pending.popleft()
        except IndexError:  # another thread took the last one
            return
