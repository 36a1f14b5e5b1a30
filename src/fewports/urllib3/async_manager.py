"""urllib3's PoolManager for asyncio and trio: the same arguments and errors, and requests are awaited.

The common case goes straight to the engine of aio; what its answer means, by urllib3's Retry, is said here.

Long, because a manager is one class, and the common case stands beside what it leaves to urllib3's rules.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urljoin
from warnings import warn

import anyio
from urllib3 import HTTPHeaderDict
from urllib3.connection import HTTPConnection, port_by_scheme
from urllib3.exceptions import (
    InsecureRequestWarning,
    LocationParseError,
    LocationValueError,
    MaxRetryError,
    ProtocolError,
    ProxyError,
    ProxySchemeUnknown,
    SSLError,
    URLSchemeUnknown,
)
from urllib3.exceptions import TimeoutError as HTTPTimeout
from urllib3.util import Retry, Timeout, connection, parse_url
from urllib3.util.request import set_file_position
from urllib3.util.timeout import _DEFAULT_TIMEOUT

from .. import aio
from ..address import Origin
from ..budget import Budget
from ..gated import SocketOption
from ..ledger.local import Ledger
from ..pool import AGE_LIMIT, IDLE_LIMIT
from ..source import Sources
from .async_pool import ENGINE, AsyncPool, Security, TlsOptions, named, of_proxy, proxy_fields
from .async_request import Asked, Manner, again, content, encoded, source
from .async_response import AsyncResponse
from .gate import Gate
from .manager import split_plain
from .pool import REDIRECTS
from .streams import WITHOUT_BODY
from .times import times_of

_COMMON = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))


class AsyncPoolManager:
    """urllib3's PoolManager for asyncio and trio, behind the gate.

    ``num_pools``, ``headers``, ``maxsize``, ``block``, ``timeout``, ``retries``, ``source_address``, ``socket_options``
    and those for TLS are urllib3's, and ``proxy``, ``proxy_headers`` and ``proxy_ssl_context`` those of its
    ProxyManager; *budget*, *sources*, *ledger*, *idle_limit*, *max_age* and *http2* as for ``fewports.PoolManager``.

    User and password in the URL of ``proxy`` are sent to it alone, where ``proxy_headers`` have no Proxy-Authorization.

    It serves the event loop that it is first used in; ``async with``, or aclose(), closes its connections.
    """

    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        maxsize: int = 10,
        block: bool = False,
        timeout: Any = _DEFAULT_TIMEOUT,
        retries: Retry | bool | int | None = None,
        proxy: str | None = None,
        proxy_headers: Mapping[str, str] | None = None,
        proxy_ssl_context: ssl.SSLContext | None = None,
        source_address: tuple[str, int] | None = None,
        socket_options: Sequence[SocketOption] | None = HTTPConnection.default_socket_options,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        http2: bool | str = "auto",
        **tls: Any,
    ) -> None:
        if unknown := tls.keys() - set(TlsOptions._fields):
            raise TypeError(f"AsyncPoolManager() got an unexpected keyword argument {min(unknown)!r}")
        self.gate = Gate(budget, sources, ledger, idle_limit, max_age, http2)
        self.headers = headers or {}
        self.timeout = timeout if isinstance(timeout, Timeout) else Timeout.from_float(timeout)
        usual = _times(self.timeout, None, None)
        self._usual = usual if usual.deadline is None else None
        self.retries = retries
        self.num_pools = num_pools
        self._limits = self.gate.limits(maxsize, block)
        self._source_address = source_address
        self._options = tuple(socket_options or ())
        self._security = Security(TlsOptions(**tls))
        self._proxy = None if proxy is None else _proxy(proxy)
        self._proxy_headers = proxy_fields(proxy, proxy_headers or {})
        self._proxy_security = Security(
            TlsOptions(proxy_ssl_context, ca_certs=tls.get("ca_certs") if proxy_ssl_context is None else None)
        )
        self._start_anew()

    def _start_anew(self) -> None:
        self._loop: aio.Loop | None = None
        self._pid = os.getpid()
        self._pools: OrderedDict[Origin, AsyncPool] = OrderedDict()
        self._near: dict[str, AsyncPool] = {}  # by the front of a URL
        self._forward: aio.OriginPool | None = None  # to the proxy, for all that it forwards

    async def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        fields: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        *,
        preload_content: bool = True,
        decode_content: bool = True,
        redirect: bool = True,
        retries: Retry | bool | int | None = None,
        timeout: Any = _DEFAULT_TIMEOUT,
        pool_timeout: float | None = None,
        write_timeout: float | None = None,
        **encoding: Any,
    ) -> AsyncResponse:
        """Make a request, with the arguments and exceptions of urllib3; the body may be an async iterable, too.

        *pool_timeout* bounds the time in line for a connection or a port; *write_timeout* each wait to send, in place
        of the connect time-out. Without *preload_content* the body is read from the response that is returned.
        """
        if headers is None:
            headers = self.headers
        if method not in _COMMON or fields is not None or json is not None or encoding:
            method, url, headers, body = encoded(method, url, body, fields, headers, json, encoding)
        policy = self.retries if retries is None else retries
        if not isinstance(policy, Retry):
            policy = Retry.from_int(policy, redirect=redirect)
        front, target = _split(url)
        pool = self._near.get(front)
        if pool is None or pool.prefix or pool.insecure or not (body is None or type(body) is bytes):
            position = set_file_position(body, None) if hasattr(body, "tell") else None
            manner = Manner(preload_content, decode_content, redirect, timeout, pool_timeout, write_timeout)
            return await self._follow(Asked(method, url, headers, source(body), policy, position), manner)
        if timeout is _DEFAULT_TIMEOUT and pool_timeout is None and write_timeout is None:
            times = self._usual or _times(self.timeout, None, None)
        else:
            times = _times(self.timeout if timeout is _DEFAULT_TIMEOUT else timeout, pool_timeout, write_timeout)
        if body is None and method not in WITHOUT_BODY:
            body = b""
        asked = aio.Request(method, target or "/", pool.fields(headers) if headers else pool.bare, body)
        try:
            exchange = await pool.engine.exchange(asked, times, whole=preload_content)
        except (*ENGINE, aio.LoopChanged) as error:
            outcome: Exception | AsyncResponse = error
        else:
            response = AsyncResponse(pool, exchange, method, url, decode_content)
            response.retries = policy
            if _final(response.status, policy, redirect):
                return response
            outcome = response
        manner = Manner(preload_content, decode_content, redirect, timeout, pool_timeout, write_timeout)
        return await self._follow(Asked(method, url, headers, body, policy), manner, outcome)

    async def aclose(self) -> None:
        """Close the connections: the idle ones now, those in use when they come back. A later request starts anew."""
        pools, forward, loop = self._pools, self._forward, self._loop
        self._start_anew()
        for pool in pools.values():
            pool.engine.close()
        if forward is not None:
            forward.close()
        if loop is not None and loop.here:
            await loop.rest()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncPoolManager {len(self._pools)} origins>"

    # Below: what is not the common case.

    async def _follow(
        self, asked: Asked, manner: Manner, outcome: Exception | AsyncResponse | None = None
    ) -> AsyncResponse:
        """Go on until there is a last word; *outcome* is what came of a first attempt, if one was made."""
        while True:
            try:
                pool, target = self._locate(asked.url)
            except SSLError as error:  # for files that cannot be read; urllib3 reads them for each connection
                fault = error if self._proxy is None or self._proxy.scheme == "http" else of_proxy(error)
                asked = await self._retry(named(_origin(asked.url)), parse_url(asked.url).request_uri, asked, fault)
                continue
            if outcome is None:
                outcome = await self._attempt(pool, target, asked, manner)
            if isinstance(outcome, aio.LoopChanged):
                if self._pid == os.getpid():
                    raise outcome
                self._start_anew()  # a forked child, whose loop is another
            elif isinstance(outcome, Exception):
                asked = await self._after_error(pool, target, asked, manner, outcome)
            else:
                following = await self._after_response(pool, target, asked, manner, outcome)
                if following is None:
                    return outcome
                asked = following
            outcome = None

    async def _attempt(
        self, pool: AsyncPool, target: str, asked: Asked, manner: Manner
    ) -> AsyncResponse | aio.LoopChanged | Exception:
        """Make one request; what goes wrong with it is returned."""
        fields = pool.fields(asked.headers)
        request = aio.Request(asked.method, target, fields, content(asked.body, asked.method))
        times = self._allowed(manner)
        if pool.insecure:
            message = f"Unverified HTTPS request is being made to host '{pool.host}'."
            warn(message, InsecureRequestWarning, stacklevel=4)
        try:
            exchange = await pool.engine.exchange(request, times, whole=manner.preload)
        except (*ENGINE, aio.LoopChanged) as error:
            return error
        response = AsyncResponse(pool, exchange, asked.method, asked.url, manner.decode)
        response.retries = asked.policy
        return response

    def _allowed(self, manner: Manner) -> aio.Times:
        return _times(self.timeout if manner.timeout is _DEFAULT_TIMEOUT else manner.timeout, manner.pool, manner.write)

    async def _after_error(self, pool: AsyncPool, target: str, asked: Asked, manner: Manner, error: Exception) -> Asked:
        """Say what to do next, by urllib3's rules; raise if it is nothing."""
        fault = pool.fault(error, target, self._allowed(manner).read)
        if not _retried(fault):
            raise fault from error
        fault.__cause__ = error
        return await self._retry(pool, target, asked, fault)

    async def _retry(self, pool: object, target: str, asked: Asked, fault: Exception) -> Asked:
        policy = asked.policy.increment(
            asked.method, target, error=fault, _pool=cast(Any, pool), _stacktrace=sys.exc_info()[2]
        )
        await _sleep(policy.get_backoff_time())
        return again(asked._replace(policy=policy))

    async def _after_response(
        self, pool: AsyncPool, target: str, asked: Asked, manner: Manner, response: AsyncResponse
    ) -> Asked | None:
        """Say what to do next, by urllib3's rules; None if *response* is the last word."""
        policy, method = asked.policy, asked.method
        seen = cast(Any, response)
        if policy.is_retry(method, response.status, bool(response.headers.get("Retry-After"))):
            try:
                policy = policy.increment(method, target, response=seen, _pool=cast(Any, pool))
            except MaxRetryError:
                if policy.raise_on_status:
                    await response.drain()
                    raise
                return None
            await response.drain()
            pause = policy.get_retry_after(seen) if policy.respect_retry_after_header else None
            await _sleep(pause or policy.get_backoff_time())
            return again(asked._replace(policy=policy))
        location = manner.redirect and response.get_redirect_location()
        if not location:
            return None
        url = urljoin(asked.url, cast(str, location))
        headers, body = asked.headers, asked.body
        if response.status == 303:
            # RFC 9110, section 15.4.4: and what describes the body goes with it.
            method, body = "GET", None
            headers = HTTPHeaderDict(headers)._prepare_for_method_change()
        if policy.remove_headers_on_redirect and not pool.serves(url):
            headers = HTTPHeaderDict(headers)
            for name in [name for name in headers if name.lower() in policy.remove_headers_on_redirect]:
                headers.pop(name, None)
        try:
            policy = policy.increment(method, asked.url, response=seen, _pool=cast(Any, pool))
        except MaxRetryError:
            if policy.raise_on_redirect:
                await response.drain()
                raise
            return None
        await response.drain()
        following = Asked(method, url, headers, body, policy, asked.position)
        return following if body is None else again(following)

    def _locate(self, url: str) -> tuple[AsyncPool, str]:
        """Return the pool for *url*, and what is asked for there."""
        origin = _origin(url)
        parts = parse_url(url)
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._make(origin)
            if len(self._pools) >= self.num_pools:
                _, oldest = self._pools.popitem(last=False)
                self._near = {front: known for front, known in self._near.items() if known is not oldest}
                if oldest.engine is not self._forward:
                    for other, reason in oldest.engine.home.empty(for_good=True):
                        other.end(reason)
            self._pools[origin] = pool
        else:
            self._pools.move_to_end(origin)
        if front := _split(url)[0]:
            self._near[front] = pool
        return pool, pool.prefix + parts.request_uri

    def _make(self, origin: Origin) -> AsyncPool:
        if self._loop is None:
            self._loop = aio.here()
        if self._proxy is None:
            security = self._security if origin.scheme == "https" else None
            return AsyncPool(origin, self._engine(origin, security, self.gate.http2), security=security)
        towards = self._proxy_security.towards(self._proxy.host) if self._proxy.scheme == "https" else None
        if origin.scheme == "http":
            if self._forward is None:
                self._forward = self._engine(self._proxy, self._proxy_security if towards else None)
            prefix = f"http://{_authority(origin)}"
            return AsyncPool(origin, self._forward, proxy_headers=self._proxy_headers, prefix=prefix, proxied=True)
        authority = f"{origin.host}:{origin.port}"
        tunnel = aio.Tunnel(authority, (("Host", authority), *self._proxy_headers.items()), towards)
        tls, http2 = self._security.towards(origin.host), self.gate.http2
        route = aio.Route(self._to(self._proxy), tls, tunnel, self._options, _family(), http2)
        return AsyncPool(origin, aio.OriginPool(self._loop, route, self._limits), proxied=True, security=self._security)

    def _engine(self, origin: Origin, security: Security | None, http2: bool | str = False) -> aio.OriginPool:
        assert self._loop is not None
        tls = security.towards(origin.host) if security else None
        route = aio.Route(self._to(origin), tls, None, self._options, _family(), http2)
        return aio.OriginPool(self._loop, route, self._limits)

    def _to(self, origin: Origin) -> Any:
        host = origin.host.strip("[]")
        try:
            host.encode("idna")
        except UnicodeError:
            raise LocationParseError(f"'{host}', label empty or too long") from None
        return self.gate.to(Origin(origin.scheme, host, origin.port), self._source_address)


def _split(url: str) -> tuple[str, str | None]:
    """Return the origin and the target of a plain URL."""
    found = split_plain(url)
    return (found[1], found[2]) if found else ("", None)


def _times(timeout: Any, pool: float | None, write: float | None) -> aio.Times:
    if not isinstance(timeout, Timeout):
        timeout = Timeout.from_float(timeout)
    connect, read, deadline = times_of(timeout)
    return aio.Times(connect, read, connect if write is None else write, pool, deadline)


def _final(status: int, policy: Retry, redirect: bool) -> bool:
    """Say whether a response with *status* is the last word, whatever its fields say."""
    if type(policy) is not Retry or policy.status_forcelist or status in policy.RETRY_AFTER_STATUS_CODES:
        return False
    return not (redirect and status in REDIRECTS)


def _retried(error: Exception) -> bool:
    """Say whether urllib3 asks its Retry about *error*, and does not raise it at once."""
    return isinstance(error, (HTTPTimeout, ProtocolError, SSLError, ProxyError))


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await anyio.sleep(seconds)


def _origin(url: str) -> Origin:
    """Return the origin of *url*; raises LocationValueError."""
    parts = parse_url(url)
    if parts.scheme is None:
        raise LocationValueError(f"{url!r} has no scheme: begin with http:// or https://")
    if parts.scheme not in ("http", "https"):
        raise URLSchemeUnknown(parts.scheme)
    if not parts.host:
        raise LocationValueError("No host specified.")
    return Origin(parts.scheme, parts.host, parts.port or port_by_scheme[parts.scheme])


def _proxy(url: str) -> Origin:
    parts = parse_url(url)
    if parts.scheme not in ("http", "https"):
        raise ProxySchemeUnknown(parts.scheme)
    return _origin(url)


def _authority(origin: Origin) -> str:
    return origin.host if origin.port == port_by_scheme[origin.scheme] else f"{origin.host}:{origin.port}"


def _family() -> Any:
    return connection.allowed_gai_family()
