"""The transport for tasks: requests of httpx and httpx2 over the engine of fewports.aio, on asyncio and trio."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from typing import Any

from .. import aio
from ..address import Origin as Place
from ..budget import Budget
from ..ledger.local import Ledger
from ..pool import AGE_LIMIT
from ..source import Sources
from ..urllib3 import HTTPConnection
from .async_exchange import Pool, Route, run
from .libraries import AsyncBaseTransport, Library
from .message import PORTS, Call, Known, Origin, front_of
from .options import ORIGINS, Options

SOCKS_PORT = 1080  # RFC 1928, section 3


class AsyncTransport(AsyncBaseTransport):
    """In place of httpx's and httpx2's AsyncHTTPTransport, with its arguments; on asyncio and trio.

    The keyword arguments of ours are those of Transport. It serves the event loop that it is first used in.
    Raises InvalidOption.
    """

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: Any = None,
        proxy: Any = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[Any] | None = None,
        *,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float | None = None,
        max_age: float = AGE_LIMIT,
    ) -> None:
        self._options = Options(
            verify,
            cert,
            trust_env,
            http1,
            http2,
            limits,
            proxy,
            uds,
            local_address,
            retries,
            socket_options,
            budget=budget,
            sources=sources,
            ledger=ledger,
            idle_limit=idle_limit,
            max_age=max_age,
        )
        self._known: Known = {}
        self._routes: dict[Origin, Route] = {}
        self._loop: aio.Loop | None = None
        self._pid = os.getpid()

    async def handle_async_request(self, request: Any) -> Any:
        """Send *request*; return the library's Response, whose stream has the body as it came.

        Raises the library's exceptions, BudgetExhausted and NoUsableSource among them; and LoopChanged.
        """
        if self._pid != os.getpid():  # a forked child, whose loop is another
            self._routes, self._loop, self._pid = {}, None, os.getpid()
        call = Call(request, self._known)
        route = self._routes.get(call.origin) or self._find_route(call)
        return await run(route, call, self._options.retries, self._options.keeps)

    async def aclose(self) -> None:
        """Close the idle connections now, and those in use when they come back; a new request dials again."""
        routes, loop = list(self._routes.values()), self._loop
        self._routes.clear()
        self._loop = None
        for route in routes:
            route.pool.close()
        if loop is not None and loop.here:
            await loop.rest()

    def _find_route(self, call: Call) -> Route:
        if self._loop is None:
            self._loop = aio.here()
        origin, proxy, options = call.origin, self._options.proxy, self._options
        if len(self._routes) >= ORIGINS:
            self._routes.pop(next(iter(self._routes))).pool.close()
        tls = self._tls(call.library, origin.sni or origin.host) if origin.scheme == "https" else None
        if proxy is None:
            route = Route(self._pool(Place(origin.scheme, origin.host, origin.port), tls))
        else:
            url = proxy.url
            place = Place(url.scheme, url.raw_host.decode("ascii"), url.port or PORTS.get(url.scheme, SOCKS_PORT))
            towards = None
            if url.scheme == "https":
                towards = aio.Tls(options.proxy_context(call.library), place.host)
            if url.scheme not in PORTS:
                user, password = proxy.raw_auth or (None, b"")
                route = Route(self._pool(place, tls, aio.Socks(origin.host, origin.port, user, password)))
            elif tls is None:
                found = next((route.pool for route in self._routes.values() if route.front), None)
                route = Route(
                    found or self._pool(place, towards, forwards=True), front_of(call), options.proxy_fields()
                )
            else:
                fields = tuple(options.tunnel_fields(origin).items())
                tunnel = aio.Tunnel(f"{origin.host}:{origin.port}", fields, towards)
                route = Route(self._pool(place, tls, tunnel))
        self._routes[origin] = route
        return route

    def _tls(self, library: Library, name: str) -> aio.Tls:
        return aio.Tls(self._options.ssl_context(library), name.rstrip("."))

    def _pool(
        self, place: Place, tls: aio.Tls | None, tunnel: aio.Tunnel | aio.Socks | None = None, *, forwards: bool = False
    ) -> Pool:
        options = self._options
        source = None if options.local_address is None else (options.local_address, 0)
        wanted = (*(options.socket_options or ()), *HTTPConnection.default_socket_options)
        http2 = False if forwards else options.gate.http2
        route = aio.Route(options.gate.to(place, source), tls, tunnel, wanted, http2=http2)
        assert self._loop is not None
        return Pool(self._loop, route, options.gate.limits(options.kept, False))
