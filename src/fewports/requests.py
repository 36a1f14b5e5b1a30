"""requests on fewports: an Adapter in place of HTTPAdapter, a Session with it, and mount() for yours.

What requests works out again for each request is remembered here, or not done where it comes to nothing: the key of a
pool, empty cookie jars, redirects that are none. Where somebody replaced one of requests' methods, it is called.
"""

from __future__ import annotations

import http.client
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, cast

import requests
import requests.adapters
import requests.sessions
import urllib3
from requests.adapters import DEFAULT_POOLBLOCK, DEFAULT_POOLSIZE, DEFAULT_RETRIES, HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.exceptions import ChunkedEncodingError, InvalidSchema, SSLError
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.models import PreparedRequest, Response
from requests.utils import get_auth_from_url, get_encoding_from_headers
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.exceptions import SSLError as Urllib3SSLError
from urllib3.util import Retry, Timeout

from . import errors
from ._own import is_own, own
from ._prepared import KEPT, Preparing, keep, place
from .budget import Budget
from .ledger.local import Ledger
from .pool import AGE_LIMIT, IDLE_LIMIT
from .source import Sources
from .urllib3 import Gate, PoolManager, proxy_from_url
from .urllib3.response import Body
from .urllib3.response import Response as StraightResponse

__all__ = ["Adapter", "BudgetExhausted", "NoUsableSource", "Session", "mount"]

_adapters, _sessions, _extract_cookies = cast(
    "tuple[Any, ...]", (requests.adapters, requests.sessions, requests.cookies.extract_cookies_to_jar)
)  # the stubs leave out much of what is used here

_SEND = own("requests", HTTPAdapter, "send")
_ADD_HEADERS = own("requests", HTTPAdapter, "add_headers")
_GET_CONNECTION = own("requests", HTTPAdapter, "get_connection_with_tls_context")
_KEY_ATTRIBUTES = own("requests", HTTPAdapter, "build_connection_pool_key_attributes")
_REQUEST_URL = own("requests", HTTPAdapter, "request_url")
_BUILD_RESPONSE = own("requests", HTTPAdapter, "build_response")
_CONTENT = own("requests", Response, "content")
_ITER_CONTENT = own("requests", Response, "iter_content")
_STREAM = own("urllib3", urllib3.HTTPResponse, "stream")
_READS = frozenset(("read", "stream"))
_CONNECTION_FROM_HOST = PoolManager.connection_from_host
_SESSION_SEND = own("requests", requests.Session, "send")
_RESOLVE_REDIRECTS = own("requests", requests.Session, "resolve_redirects")


class BudgetExhausted(errors.BudgetExhausted, RequestsConnectionError):
    """No port within the budget; a requests.ConnectionError, too."""

    def __init__(self, error: errors.BudgetExhausted, request: requests.PreparedRequest | None = None) -> None:
        RequestsConnectionError.__init__(self, request=request)
        errors.BudgetExhausted.__init__(self, error.usage, next_due=error.next_due, waited=error.waited)

    def __reduce__(self) -> tuple[object, ...]:
        plain = errors.BudgetExhausted(self.usage, next_due=self.next_due, waited=self.waited)
        return type(self), (plain,)


class NoUsableSource(errors.NoUsableSource, RequestsConnectionError):
    """No source address reaches the destination; a requests.ConnectionError, too."""

    def __init__(self, error: errors.NoUsableSource, request: requests.PreparedRequest | None = None) -> None:
        RequestsConnectionError.__init__(self, request=request)
        errors.NoUsableSource.__init__(self, error.destination, error.reasons)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (errors.NoUsableSource(self.destination, self.reasons),)


class Adapter(HTTPAdapter):
    """In place of requests' HTTPAdapter, with its arguments.

    *budget* bounds the ports that this adapter holds per destination, within the budget of *ledger* (by
    default the process's own); *sources* are the addresses to connect from; a connection is kept for
    *idle_limit* seconds without use and for *max_age* seconds in all. *http2* is as for PoolManager. Raises
    InvalidOption.
    """

    __attrs__: list[str] = [*HTTPAdapter.__attrs__, "_options"]  # noqa: RUF012 - as requests declares it

    def __init__(
        self,
        pool_connections: int = DEFAULT_POOLSIZE,
        pool_maxsize: int = DEFAULT_POOLSIZE,
        max_retries: int | Retry = DEFAULT_RETRIES,
        pool_block: bool = DEFAULT_POOLBLOCK,
        *,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        http2: bool | str = "auto",
    ) -> None:
        self._set_gate((budget, sources, ledger, idle_limit, max_age, http2))
        super().__init__(pool_connections, pool_maxsize, max_retries, pool_block)

    def __getstate__(self) -> dict[str, Any]:
        if self.gate.own_ledger is not None:
            raise errors.InvalidOption(
                "an adapter with a ledger of its own cannot be pickled: a ledger is one process's"
            )
        return cast("dict[str, Any]", super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_gate(state["_options"])
        super().__setstate__(state)  # type: ignore[misc]

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = DEFAULT_POOLBLOCK, **pool_kwargs: Any
    ) -> None:
        self._pool_connections = connections
        self._pool_maxsize = maxsize
        self._pool_block = block
        self.poolmanager = PoolManager(
            num_pools=connections, maxsize=maxsize, block=block, gate=self.gate, **pool_kwargs
        )

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> PoolManager:
        if proxy in self.proxy_manager:
            return cast(PoolManager, self.proxy_manager[proxy])
        keywords = {
            "num_pools": self._pool_connections,
            "maxsize": self._pool_maxsize,
            "block": self._pool_block,
            "gate": self.gate,
            **proxy_kwargs,
        }
        if proxy.lower().startswith("socks"):
            try:
                from .socks import SOCKSProxyManager
            except ImportError as error:
                raise InvalidSchema("Missing dependencies for SOCKS support: pip install fewports[socks]") from error
            username, password = get_auth_from_url(proxy)
            made: PoolManager = SOCKSProxyManager(proxy, username=username, password=password, **keywords)
        else:
            made = proxy_from_url(proxy, proxy_headers=self.proxy_headers(proxy), **keywords)
        self.proxy_manager[proxy] = made
        return made

    def send(self, request: requests.PreparedRequest, *args: Any, **keywords: Any) -> requests.Response:
        timeout = keywords.get("timeout")
        if (
            not args
            and (timeout is None or type(timeout) in (int, float))
            and is_own(super().send, _SEND)
            and is_own(self.add_headers, _ADD_HEADERS)  # it is shown the time-out
            and _adapters.TimeoutSauce is Timeout
        ):
            with suppress(ValueError):  # requests says so in its turn
                keywords["timeout"] = _timeout(timeout)
        try:
            response = super().send(request, *args, **keywords)
        except errors.BudgetExhausted as error:
            raise BudgetExhausted(error, request) from error
        except errors.NoUsableSource as error:
            raise NoUsableSource(error, request) from error
        if keywords.get("stream") is False and isinstance(response.raw, StraightResponse):
            response.raw.hurry()  # a session reads the body at once
        return response

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """Find the pool by the key that it had last time: making one costs more than the rest."""
        manager = cast(PoolManager, self.poolmanager)
        name = self._name(request, verify) if cert is None and _direct(request, proxies) else None
        if name is None:
            return super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        settings = _settings(manager)
        known = self._keys.get(name)
        if known is not None and known.manager is manager and known.settings == settings:
            return manager.connection_from_pool_key(known.key, dict(known.context))
        found = super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        host, options = cast(Any, self).build_connection_pool_key_attributes(request, verify, cert)
        key, context = cast(Any, _KeyMaker(manager)).connection_from_host(**host, pool_kwargs=options)
        if manager.pools.get(key) is found:
            keep(self._keys, name, _Key(manager, settings, key, context))
        return found

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        found = place(request) if is_own(super().request_url, _REQUEST_URL) and _direct(request, proxies) else None
        return found[4] if found else super().request_url(request, proxies)

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        if (
            not isinstance(resp, urllib3.HTTPResponse)
            or type(resp.headers) is not HTTPHeaderDict
            or type(req.url) is not str
            or _adapters.Response is not Response
            or not is_own(super().build_response, _BUILD_RESPONSE)
        ):
            return super().build_response(req, resp)
        response: Any = Response()
        response.status_code = resp.status
        fields = OrderedDict([(name.lower(), (name, value)) for name, value in resp.headers.itermerged()])
        response.headers._store = fields
        response.encoding = _encoding(fields["content-type"][1]) if "content-type" in fields else None
        response.raw = resp
        response.reason = resp.reason
        response.url = req.url
        if not _without_cookies(resp):
            _extract_cookies(response.cookies, req, resp)
        response.request = req
        response.connection = self
        return cast(requests.Response, response)

    def _name(self, request: requests.PreparedRequest, verify: Any) -> tuple[object, ...] | None:
        """Return what decides the key of a pool beside the manager; None where requests has to be asked."""
        found = place(request)
        if (
            found is None
            or not (verify is True or verify is False or type(verify) is str)
            or type(self.poolmanager) is not PoolManager
            or not is_own(self.poolmanager.connection_from_host, _CONNECTION_FROM_HOST)
            or not is_own(super().get_connection_with_tls_context, _GET_CONNECTION)
            or not is_own(getattr(self, "build_connection_pool_key_attributes", None), _KEY_ATTRIBUTES)
        ):
            return None
        # Bundles and directories of certificates are not the same in a key, and a path may turn from one to the other.
        return *found.groups()[:3], verify, type(verify) is str and os.path.isdir(verify)

    def _set_gate(self, options: tuple[Any, ...]) -> None:
        self._options = options
        self.gate = Gate(*options)
        self._keys: dict[tuple[object, ...], _Key] = {}


class Session(Preparing):
    """requests' Session with an Adapter, whose keyword arguments it takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        mount(self, **options)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if (
            type(request) is not PreparedRequest
            or request.hooks != {"response": []}
            or not kwargs.keys() >= {"stream", "verify", "cert", "proxies"}
            or not is_own(super().send, _SESSION_SEND)
        ):
            return super().send(request, **kwargs)
        follow = kwargs.pop("allow_redirects", True)
        adapter = self.get_adapter(url=cast(str, request.url))
        start = _sessions.preferred_clock()
        response = adapter.send(request, **kwargs)
        response.elapsed = timedelta(seconds=_sessions.preferred_clock() - start)
        if response.history or type(self.cookies) is not RequestsCookieJar or not _without_cookies(response.raw):
            for step in response.history:
                _extract_cookies(self.cookies, step.request, step.raw)
            _extract_cookies(self.cookies, request, response.raw)
        if not is_own(self.resolve_redirects, _RESOLVE_REDIRECTS) or self.get_redirect_target(response):
            response = self._redirected(response, request, follow, kwargs)
        if not kwargs["stream"]:
            _read(response)
        return response

    def close(self) -> None:
        """Close all adapters, each once although it is mounted twice."""
        for adapter in {id(adapter): adapter for adapter in self.adapters.values()}.values():
            adapter.close()

    def _redirected(
        self, response: requests.Response, request: requests.PreparedRequest, follow: bool, options: dict[str, Any]
    ) -> requests.Response:
        """Follow the redirects, or leave the next request with the response."""
        if not follow:
            steps: Any = self.resolve_redirects(response, request, yield_requests=True, **options)
            with suppress(StopIteration):
                cast(Any, response)._next = next(steps)
            return response
        history = [response, *self.resolve_redirects(response, request, **options)]
        if len(history) == 1:
            return response
        last: requests.Response = history.pop()
        last.history = history
        return last


def mount(session: requests.Session, **options: Any) -> Adapter:
    """Have *session* send all its requests through one new Adapter with *options*; return it."""
    adapter = Adapter(**options)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return adapter


class _Key(NamedTuple):
    """What a manager finds a pool by, and what that was made from beside the request."""

    manager: PoolManager
    settings: tuple[object, ...]
    key: Any
    context: dict[str, Any]


class _KeyMaker(urllib3.PoolManager):
    """Stands in for a manager, to learn the key by which it would look for a pool."""

    def __init__(self, manager: PoolManager) -> None:
        self.__dict__ = manager.__dict__  # whatever a key is made from

    def connection_from_pool_key(self, pool_key: Any, request_context: dict[str, Any]) -> Any:
        return pool_key, request_context


def _read(response: Any) -> None:
    """Read the body, in one piece if it is sent as it is: requests joins pieces of 10 KiB, which takes it twice."""
    raw, kept = response.raw, vars(response)
    if (
        type(raw) is not StraightResponse
        or type(raw.__dict__.get("_fp")) is not Body
        or raw._encoded
        or raw._decoder_initialized
        or raw.chunked
        or not raw.__dict__.keys().isdisjoint(_READS)
        or not is_own(urllib3.HTTPResponse.stream, _STREAM)
        or type(response) is not Response
        or kept["_content"] is not False
        or kept["_content_consumed"]
        or not is_own(Response.content, _CONTENT)
        or not is_own(Response.iter_content, _ITER_CONTENT)
    ):
        response.content  # noqa: B018 - reads it
        return
    try:
        kept["_content"] = raw.read()
    except ProtocolError as error:
        raise ChunkedEncodingError(error) from error
    except ReadTimeoutError as error:
        raise RequestsConnectionError(error) from error
    except Urllib3SSLError as error:
        raise SSLError(error) from error
    kept["_content_consumed"] = True


def _settings(manager: PoolManager) -> tuple[object, ...]:
    """Return what the keys of a manager depend on, as it is now: people change connection_pool_kw, and lists in it."""
    keywords = manager.connection_pool_kw.items()
    copies = {name: value.copy() if type(value) in (dict, list) else value for name, value in keywords}
    return copies, manager.key_fn_by_scheme.copy()


def _direct(request: requests.PreparedRequest, proxies: Any) -> bool:
    """Say whether none of *proxies* is for the request."""
    return not proxies or not _adapters.select_proxy(request.url, proxies)


def _without_cookies(raw: Any) -> bool:
    """Say whether *raw* sets no cookies, which is sure only of what came over a connection."""
    original = getattr(raw, "_original_response", None)
    if original is None:
        return True
    if not isinstance(raw, urllib3.HTTPResponse) or not (
        isinstance(original, http.client.HTTPResponse) or type(original).__module__.startswith("fewports.")
    ):
        return False
    return "set-cookie" not in raw.headers and "set-cookie2" not in raw.headers


@lru_cache(KEPT)
def _encoding(content_type: str) -> str | None:
    return get_encoding_from_headers({"content-type": content_type})


@lru_cache(KEPT, typed=True)
def _timeout(seconds: float | None) -> Timeout:
    return Timeout(connect=seconds, read=seconds)
