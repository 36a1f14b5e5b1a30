"""The transport for threads: requests of httpx and httpx2 over the pools and connections of fewports.urllib3."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, cast

from ..budget import Budget
from ..ledger.local import Ledger
from ..pool import AGE_LIMIT
from ..source import Sources
from ..urllib3 import HTTPConnection, HTTPConnectionPool, PoolManager, ProxyManager
from ..urllib3.pool import end_all
from .exchange import Exchange, Route
from .libraries import BaseTransport, Library
from .message import PORTS, Call, Known, Origin, front_of
from .options import ORIGINS, Options


class Transport(BaseTransport):
    """In place of httpx's and httpx2's HTTPTransport, with its arguments.

    *budget* bounds the ports that this transport holds per destination, within the budget of *ledger* (by default the
    process's own); *sources* are the addresses to connect from; a connection is kept for *idle_limit* seconds without
    use (by default the keepalive_expiry of *limits*, if those are given) and for *max_age* seconds in all.
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
        self._managers: dict[str, PoolManager] = {}

    def handle_request(self, request: Any) -> Any:
        """Send *request*; return the library's Response, whose stream has the body as it came.

        Raises the library's exceptions, BudgetExhausted and NoUsableSource among them.
        """
        call = Call(request, self._known)
        route = self._routes.get(call.origin) or self._find_route(call)
        return Exchange(route, call, self._options.keeps).run(self._options.retries)

    def close(self) -> None:
        """Close the idle connections now, and those in use when they come back; a new request dials again."""
        managers = list(self._managers.values())
        self._managers.clear()
        self._routes.clear()
        for manager in managers:
            for pool in [manager.pools.get(key) for key in manager.pools.keys()]:  # noqa: SIM118 - no iterator
                if isinstance(pool, HTTPConnectionPool):
                    end_all(pool.home.empty(for_good=True))
            manager.clear()

    def _find_route(self, call: Call) -> Route:
        origin, proxy = call.origin, self._options.proxy
        options: dict[str, Any] = {}
        if origin.scheme == "https":
            options["ssl_context"] = self._options.ssl_context(call.library)
            if origin.sni:
                options["server_hostname"] = origin.sni
        forwarded = proxy is not None and origin.scheme == "http" and proxy.url.scheme in PORTS
        if forwarded and proxy.url.scheme == "https":
            options["ssl_context"] = self._options.proxy_context(call.library)
        manager = self._managers.get(origin.library)
        if manager is None:
            manager = self._managers.setdefault(origin.library, self._new_manager(call.library))
        pool = cast(HTTPConnectionPool, manager.connection_from_host(origin.host, origin.port, origin.scheme, options))
        route = Route(pool)
        if forwarded:
            route = Route(pool, front=front_of(call), fields=self._options.proxy_fields())
        elif pool.proxy is not None and proxy.url.scheme in PORTS:
            pool.proxy_headers = self._options.tunnel_fields(origin)
            route = Route(pool, tunnelled=True)
        if len(self._routes) >= ORIGINS:
            self._routes.clear()  # the manager finds them again
        self._routes[origin] = route
        return route

    def _new_manager(self, library: Library) -> PoolManager:
        options, proxy = self._options, self._options.proxy
        keywords: dict[str, Any] = {"gate": options.gate, "maxsize": options.kept, "num_pools": ORIGINS}
        if options.local_address is not None:
            keywords["source_address"] = (options.local_address, 0)
        if options.socket_options is not None:
            keywords["socket_options"] = (*options.socket_options, *HTTPConnection.default_socket_options)
        if proxy is None:
            return PoolManager(**keywords)
        url = f"{proxy.url.scheme}://{proxy.url.netloc.decode('ascii')}"
        if proxy.url.scheme in PORTS:
            context = options.proxy_context(library) if proxy.url.scheme == "https" else None
            return ProxyManager(url, proxy_ssl_context=context, **keywords)
        try:
            from ..socks import SOCKSProxyManager
        except ImportError as error:
            raise ImportError("a SOCKS proxy needs PySocks: pip install fewports[socks]") from error
        user, password = proxy.auth or (None, None)
        # A name is looked up by the proxy, as the libraries have it with either scheme.
        url = url.replace("socks5://", "socks5h://")
        return SOCKSProxyManager(url, username=user, password=password, **keywords)
