"""AsyncPoolManager for tests that are written for threads: its loop has a thread of its own, and they wait for it."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import uvloop
from anyio.from_thread import BlockingPortal, start_blocking_portal

import fewports
from fewports.urllib3.async_response import AsyncResponse

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"loop_factory": uvloop.new_event_loop}),
    "trio": ("trio", {}),
}


@functools.cache
def portal(name: str) -> BlockingPortal:
    """Return the way into a loop that runs as long as this process."""
    backend, options = BACKENDS[name]
    manager: AbstractContextManager[BlockingPortal] = start_blocking_portal(backend, options)
    made = manager.__enter__()
    atexit.register(manager.__exit__, None, None, None)
    return made


class BridgedReply:
    """A response whose body is read in the loop."""

    def __init__(self, loop: BlockingPortal, response: AsyncResponse) -> None:
        self._loop = loop
        self._response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def read(self, amt: int | None = None) -> bytes:
        return self._loop.call(self._response.read, amt)

    @property
    def data(self) -> bytes:
        if self._response._body is None:
            self.read()
        return self._response.data

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def __iter__(self) -> Iterator[bytes]:
        return self.stream()

    def stream(self, amt: int = 65536) -> Iterator[bytes]:
        while piece := self.read(amt):
            yield piece

    def close(self) -> None:
        self._loop.call(self._response.release)

    release_conn = close

    def __enter__(self) -> BridgedReply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BridgedManager:
    """A manager in a loop."""

    def __init__(self, name: str, **options: Any) -> None:
        self._loop = portal(name)
        self._manager = fewports.AsyncPoolManager(**options)

    def request(self, method: str, url: str, **options: Any) -> BridgedReply:
        made = functools.partial(self._manager.request, method, url, **options)
        return BridgedReply(self._loop, self._loop.call(made))

    def clear(self) -> None:
        self._loop.call(self._manager.aclose)
