"""urllib3's managers: a pool for each origin, all behind one gate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import urllib3
from urllib3.connection import port_by_scheme
from urllib3.util import parse_url

from ..budget import Budget
from ..ledger.local import Ledger
from ..pool import AGE_LIMIT, IDLE_LIMIT
from ..source import Sources
from .connection import TARGET
from .gate import Gate
from .pool import REDIRECTS, Answer, HTTPConnectionPool, HTTPSConnectionPool, end_all

ORIGINS = 1000  # that a manager remembers; what is not remembered is looked up as urllib3 does

# An origin, and a target that urllib3 would send as it is: without dot segments, fragment, or what it encodes.
split_plain = re.compile(rf"(https?://[A-Za-z0-9.:\[\]\-]+)(?:(?!.*/\.)({TARGET}))?").fullmatch


# What the way from a URL to its pool goes through; a subclass that has a hand in it gets urllib3's own way.
_STEPS = frozenset(
    (
        *("connection_from_host", "connection_from_context", "connection_from_pool_key"),
        *("request_encode_url", "_merge_pool_kwargs", "_proxy_requires_url_absolute_form"),
    )
)
_UNSAID = object()


class Known(NamedTuple):
    """The key of a pool, and the arguments of the manager that it was made from."""

    key: Any
    options: dict[str, Any]


class Recent(NamedTuple):
    """The pool that was asked for last: there is nothing to look up, and nothing to reorder."""

    origin: str
    options: dict[str, Any]
    pool: HTTPConnectionPool
    pools: Any  # the manager's, that it is one of


class PoolManager(urllib3.PoolManager):
    """urllib3's PoolManager, behind the gate.

    Beside urllib3's arguments: *budget* bounds the ports that this manager holds per destination, within
    the budget of *ledger* (by default the process's own); *sources* are the addresses to connect from;
    a connection is kept for *idle_limit* seconds without use and for *max_age* seconds in all.
    """

    _direct = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._direct = all(getattr(cls, name) is getattr(PoolManager, name) for name in _STEPS)

    def __init__(
        self,
        num_pools: int = 10,
        headers: Any = None,
        *,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        http2: bool | str = "auto",
        gate: Gate | None = None,
        **connection_pool_kw: Any,
    ) -> None:
        self.gate = gate or Gate(budget, sources, ledger, idle_limit, max_age, http2)
        super().__init__(num_pools, headers, **connection_pool_kw)
        self._known: dict[str, Known] = {}  # by origin
        self._recent: Recent | None = None
        self._split: tuple[str, str | None, str] = ("", None, "/")  # the URL asked for last; its origin and target
        self.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        fields: Any = None,
        headers: Any = None,
        json: Any = None,
        **urlopen_kw: Any,
    ) -> Any:
        """Make a request, with the arguments, results and exceptions of urllib3."""
        if fields is None and json is None and body is None and method in self._encode_url_methods and self._direct:
            headers = self.headers if headers is None else headers
            if urlopen_kw:
                return self.urlopen(method, url, headers=headers, **urlopen_kw)
            return self.urlopen(method, url, headers=headers)  # to pass on even no keywords costs as much as a call
        return super().request(method, url, body, fields, headers, json, **urlopen_kw)

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, *, headers: Any = _UNSAID, **kw: Any
    ) -> Any:
        """Make a request, with the arguments, results and exceptions of urllib3."""
        if headers is _UNSAID:
            headers = self.headers
        if kw and type(given := kw.get("pool_timeout")) is Answer:  # urllib3 follows a redirect
            kw["pool_timeout"] = given.pool_timeout
        pool = None
        if self._direct and _STEPS.isdisjoint(self.__dict__):
            known, origin, target = self._split
            if url != known:
                found = split_plain(url)
                origin, target = (found[1], found[2] or "/") if found else (None, "/")
                self._split = url, origin, target
            pool = None if origin is None else self._pool_of(origin)
        if pool is None or type(pool).urlopen is not HTTPConnectionPool.urlopen:
            return super().urlopen(method, url, redirect, headers=headers, **kw)
        if kw:
            told = {**kw, "redirect": False, "assert_same_host": False}
            response = pool.urlopen(method, target, headers=headers, **told)
        else:
            response = pool.urlopen(method, target, headers=headers, redirect=False, assert_same_host=False)
        if not redirect or response.status not in REDIRECTS:
            return response
        # Where it goes from here is urllib3's to say; from the pool that it finds it gets this response.
        kw["pool_timeout"] = Answer(response, kw.get("pool_timeout"))
        return super().urlopen(method, url, redirect, headers=headers, **kw)

    def _pool_of(self, origin: str) -> HTTPConnectionPool | None:
        """Return the pool of *origin*, the front of a URL; None where it is not one of ours, or the port is bad."""
        options = self.connection_pool_kw
        recent = self._recent
        if recent is not None:
            before, told, pool, pools = recent
            # One whose own pool is None was closed: with the manager, or because it had to go for another.
            if before == origin and told == options and pools is self.pools and pool.pool is not None:
                return pool
        known = self._known.get(origin)
        if known is not None and known.options == options:
            kept = self.pools.get(known.key)
            if kept is not None:
                pool = cast(HTTPConnectionPool, kept)
                self._recent = Recent(origin, known.options, pool, self.pools)
                return pool
        try:
            scheme, _, host, port, *_ = parse_url(origin)
        except urllib3.exceptions.LocationParseError:
            return None
        if not host or "strict" in options:
            return None
        port = port_by_scheme[str(scheme)] if port is None else port
        context = {**options, "scheme": scheme, "host": host, "port": port}
        key = self.key_fn_by_scheme[str(scheme)](context)
        found = self.connection_from_pool_key(key, context)
        if not isinstance(found, HTTPConnectionPool):
            return None
        if len(self._known) >= ORIGINS:
            self._known.clear()
        # What is mutable is copied: it may be another tomorrow.
        copy = {name: value.copy() if isinstance(value, (dict, list)) else value for name, value in options.items()}
        self._known[origin] = Known(key, copy)
        return found

    def clear(self) -> None:
        """Close all idle connections now, also those of pools that somebody still refers to, and forget the pools."""
        self._recent = None
        pools = [self.pools.get(key) for key in self.pools.keys()]  # noqa: SIM118 - it cannot be iterated
        for pool in pools:
            if isinstance(pool, HTTPConnectionPool):
                end_all(pool.home.empty())
        super().clear()

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        self._recent = None  # it may have to go for the new one
        # The gate is no part of the key by which pools are found: it is the manager's, the same for all.
        if issubclass(self.pool_classes_by_scheme[scheme], HTTPConnectionPool):
            request_context = dict(self.connection_pool_kw if request_context is None else request_context)
            request_context["gate"] = self.gate
        return super()._new_pool(scheme, host, port, request_context)


class ProxyManager(urllib3.ProxyManager, PoolManager):
    """urllib3's ProxyManager, behind the gate; see PoolManager."""


def proxy_from_url(url: str, **kw: Any) -> ProxyManager:
    """Return a manager that sends all through the proxy at *url*."""
    return ProxyManager(proxy_url=url, **kw)
