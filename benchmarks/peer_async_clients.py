"""The clients of tasks that peers.py compares, each used as its documentation shows.

Each imports its library when it is opened. Those that also run on trio have a class for it. All may wait for a
connection as long as it takes.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from peer_clients import Place, Take


class AsyncClient(ABC):
    """What a round does with a client, in the loop that it was opened in."""

    needs: ClassVar[tuple[str, ...]] = ()  # the libraries to import
    names: ClassVar[tuple[str, ...]] = ()  # what must be in them
    reference: ClassVar[str] = ""  # what it is compared to, where that takes part; else the case says
    loop: ClassVar[str] = "asyncio"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._url = place.url
        self._stack = AsyncExitStack()
        self._context = ssl.create_default_context(cafile=place.ca) if place.ca else None

    async def open(self) -> None:
        self._made = await self._stack.enter_async_context(self._make(self._place))

    async def close(self) -> None:
        await self._stack.aclose()

    @abstractmethod
    async def get(self, path: str) -> bytes: ...

    async def stream(self, path: str, piece: int, take: Take) -> None:
        raise NotImplementedError("no case has it stream")

    @abstractmethod
    def _make(self, place: Place) -> Any: ...


class Aiohttp(AsyncClient):
    needs = ("aiohttp", "anyio")

    async def get(self, path: str) -> bytes:
        async with self._made.get(self._url + path) as response:
            data: bytes = await response.read()
            return data

    def _make(self, place: Place) -> Any:
        import aiohttp

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=place.threads, ssl=self._context or True))


class Httpx(AsyncClient):
    needs = ("httpx", "anyio")

    async def get(self, path: str) -> bytes:
        data: bytes = (await self._made.get(self._url + path)).content
        return data

    async def stream(self, path: str, piece: int, take: Take) -> None:
        async with self._made.stream("GET", self._url + path) as response:
            async for data in response.aiter_bytes(piece):
                take(data)

    def _make(self, place: Place) -> Any:
        import httpx

        return httpx.AsyncClient(**self._options(httpx))

    def _options(self, library: Any) -> dict[str, Any]:
        place = self._place
        return {
            "limits": library.Limits(max_connections=place.threads, max_keepalive_connections=place.threads),
            "timeout": library.Timeout(60, pool=None),  # its own 5 seconds pass while a crowd is launched
            "verify": self._context or True,
            "http2": place.http2,
        }


class Httpx2(Httpx):
    needs = ("httpx2", "anyio")

    def _make(self, place: Place) -> Any:
        import httpx2

        return httpx2.AsyncClient(**self._options(httpx2))


class Httpx2Trio(Httpx2):
    needs = ("httpx2", "trio")
    loop = "trio"


class Fewports(AsyncClient):
    needs = ("fewports", "anyio")
    names = ("fewports.AsyncPoolManager",)

    async def get(self, path: str) -> bytes:
        data: bytes = (await self._made.request("GET", self._url + path)).data
        return data

    def _make(self, place: Place) -> Any:
        import fewports

        options: dict[str, Any] = {"ca_certs": place.ca} if place.ca else {}
        if place.http2:
            options["http2"] = "auto"
        return fewports.AsyncPoolManager(maxsize=place.threads, block=True, **options)


class FewportsTrio(Fewports):
    needs = ("fewports", "anyio", "trio")
    reference = "httpx2.AsyncClient.trio"
    loop = "trio"


class FewportsBudget(Fewports):
    """Ours, with a budget of so many ports in place of the pool's own bound."""

    def _make(self, place: Place) -> Any:
        import fewports

        return fewports.AsyncPoolManager(budget=fewports.Budget(place.threads, wait=60))


class FewportsBudgetTrio(FewportsBudget):
    needs = ("fewports", "anyio", "trio")
    reference = "httpx2.AsyncClient.trio"
    loop = "trio"


class FewportsTransport(Httpx2):
    """httpx2, with our transport in place of its own."""

    needs = ("fewports", "httpx2", "anyio")
    names = ("fewports.httpx.AsyncTransport",)
    reference = "httpx2.AsyncClient"

    def _make(self, place: Place) -> Any:
        import httpx2

        import fewports.httpx

        options = self._options(httpx2)
        timeout = options.pop("timeout")
        return httpx2.AsyncClient(transport=fewports.httpx.AsyncTransport(**options), timeout=timeout)


class FewportsTransportTrio(FewportsTransport):
    needs = ("fewports", "httpx2", "anyio", "trio")
    reference = "httpx2.AsyncClient.trio"
    loop = "trio"


CLIENTS: dict[str, type[AsyncClient]] = {
    "aiohttp.ClientSession": Aiohttp,
    "httpx.AsyncClient": Httpx,
    "httpx2.AsyncClient": Httpx2,
    "httpx2.AsyncClient.trio": Httpx2Trio,
    "fewports.AsyncPoolManager": Fewports,
    "fewports.AsyncPoolManager.trio": FewportsTrio,
    "fewports.AsyncTransport": FewportsTransport,
    "fewports.AsyncTransport.trio": FewportsTransportTrio,
}
HTTP2_CLIENTS = {name: kind for name, kind in CLIENTS.items() if kind is not Aiohttp}  # it knows HTTP/1.1 only
CROWD = ("aiohttp.ClientSession", "httpx2.AsyncClient", "fewports.AsyncPoolManager", "fewports.AsyncPoolManager.trio")
CROWD_CLIENTS = {
    **{name: CLIENTS[name] for name in CROWD},
    "fewports.AsyncPoolManager.budget": FewportsBudget,
    "fewports.AsyncPoolManager.budget.trio": FewportsBudgetTrio,
}
