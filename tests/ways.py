"""One case, several ways to run it: threads, asyncio, uvloop and trio. A case is a coroutine function, and so is all
that it calls here; on threads none of them ever suspends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any

import trio
import uvloop
from kinds import Kind

import fewports
from fewports.urllib3 import proxy_from_url
from fewports.urllib3.async_response import AsyncResponse

WAYS = ("threads", "asyncio", "trio", "uvloop")
FULL = os.environ.get("FEWPORTS_FULL") == "1"
Work = Callable[[], Coroutine[Any, Any, Any]]


class Reply:
    """A response, sync or async, with all that may wait awaited."""

    def __init__(self, response: Any) -> None:
        self.raw = response
        self._sync = not isinstance(response, AsyncResponse)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    async def read(self, amt: int | None = None) -> bytes:
        return bytes(self.raw.read(amt) if self._sync else await self.raw.read(amt))

    async def stream(self, amt: int) -> list[bytes]:
        if self._sync:
            return list(self.raw.stream(amt))
        return [piece async for piece in self.raw.stream(amt)]

    async def release(self) -> None:
        if self._sync:
            if not self.raw.closed:
                self.raw.close()
            self.raw.release_conn()
        else:
            await self.raw.release()


class Http:
    """A manager, sync or async."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager

    async def request(self, method: str, url: str, *arguments: Any, **options: Any) -> Reply:
        found = self.manager.request(method, url, *arguments, **options)
        return Reply(await found if isinstance(found, Awaitable) else found)

    async def get(self, url: str, **options: Any) -> Reply:
        return await self.request("GET", url, **options)


class Way:
    """How cases run: *name* is threads, asyncio, uvloop or trio."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, case: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Run *case* to its end."""
        if self.name == "threads":
            return _driven(case(*arguments))
        if self.name == "trio":
            return trio.run(case, *arguments)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if self.name == "uvloop" else None) as runner:
            return runner.run(case(*arguments))

    @contextlib.asynccontextmanager
    async def manager(self, proxy: str | None = None, **options: Any) -> AsyncIterator[Http]:
        """Give a manager with a ledger of its own, unless one is given; what it leaves open is an error."""
        options.setdefault("ledger", fewports.Ledger())
        if self.name == "threads":
            made = fewports.PoolManager(**options) if proxy is None else proxy_from_url(proxy, **options)
            with made:
                yield Http(made)
        else:
            async with fewports.AsyncPoolManager(proxy=proxy, **options) as made_async:
                yield Http(made_async)

    async def all(self, works: Iterable[Work]) -> list[Any]:
        """Run all at once; return their results, exceptions among them."""
        results: list[Any] = []

        async def kept(number: int, work: Work) -> None:
            try:
                results[number] = await work()
            except Exception as error:
                results[number] = error

        jobs = list(works)
        results.extend([None] * len(jobs))
        if self.name == "threads":
            threads = [
                threading.Thread(target=lambda number=number, work=work: _driven(kept(number, work)))  # type: ignore[misc]
                for number, work in enumerate(jobs)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        elif self.name == "trio":
            async with trio.open_nursery() as nursery:
                for number, work in enumerate(jobs):
                    nursery.start_soon(kept, number, work)
        else:
            await asyncio.gather(*(kept(number, work) for number, work in enumerate(jobs)))
        return results

    async def sleep(self, seconds: float) -> None:
        if self.name == "threads":
            time.sleep(seconds)
        elif self.name == "trio":
            await trio.sleep(seconds)
        else:
            await asyncio.sleep(seconds)

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> bool:
        """Wait until *condition* holds, *seconds* at most; say whether it does."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            await self.sleep(0.005)
        return True


def ways_and_kinds(case: str, kinds: Iterable[Kind]) -> list[tuple[str, Kind]]:
    """Pair each way with each kind of server that a case is for; on uvloop, asyncio's to us, over TLS if that is one.

    If not all is to run, with one kind of HTTP/1.1 and one of HTTP/2. Whether that is plain or over TLS takes turns
    from way to way, so that each case has both.
    """
    pairs = []
    for number, name in enumerate(WAYS, zlib.crc32(case.encode())):
        for http2 in (False, True):
            some = [kind for kind in kinds if kind.http2 == http2]
            if name == "uvloop":
                some = some[-1:]
            elif not FULL and some:
                some = [some[number % len(some)]]
            pairs += [(name, kind) for kind in some]
    return pairs


def trusting(kind: Kind, **options: Any) -> dict[str, Any]:
    """Return what a manager needs for that kind of server, without retries."""
    return {**kind.options, "retries": False, **options}


def told(error: BaseException) -> list[str]:
    """Name an exception and what it wraps."""
    names = []
    found: Any = error
    while found is not None:
        names.append(type(found).__name__)
        found = getattr(found, "reason", None) or getattr(found, "original_error", None)
        if not isinstance(found, BaseException):
            break
    return names


def _driven(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits for anything but the thread."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("it waited for an event loop")
