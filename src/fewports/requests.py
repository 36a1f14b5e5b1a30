"""requests on fewports: an Adapter in place of HTTPAdapter, a Session with it, and mount() for yours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import requests
from requests.adapters import DEFAULT_POOLBLOCK, DEFAULT_POOLSIZE, DEFAULT_RETRIES, HTTPAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import InvalidSchema
from requests.utils import get_auth_from_url
from urllib3.util import Retry

from . import errors
from .budget import Budget
from .ledger.local import Ledger
from .pool import AGE_LIMIT, IDLE_LIMIT
from .source import Sources
from .urllib3 import Gate, PoolManager, proxy_from_url

__all__ = ["Adapter", "BudgetExhausted", "NoUsableSource", "Session", "mount"]


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
    *idle_limit* seconds without use and for *max_age* seconds in all. Raises InvalidOption.
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
    ) -> None:
        self._set_gate((budget, sources, ledger, idle_limit, max_age))
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
        try:
            return super().send(request, *args, **keywords)
        except errors.BudgetExhausted as error:
            raise BudgetExhausted(error, request) from error
        except errors.NoUsableSource as error:
            raise NoUsableSource(error, request) from error

    def _set_gate(self, options: tuple[Any, ...]) -> None:
        self._options = options
        self.gate = Gate(*options)


class Session(requests.Session):
    """requests' Session with an Adapter, whose keyword arguments it takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        mount(self, **options)

    def close(self) -> None:
        """Close all adapters, each once although it is mounted twice."""
        for adapter in {id(adapter): adapter for adapter in self.adapters.values()}.values():
            adapter.close()


def mount(session: requests.Session, **options: Any) -> Adapter:
    """Have *session* send all its requests through one new Adapter with *options*; return it."""
    adapter = Adapter(**options)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return adapter
