"""What a transport was configured with: the arguments of HTTPTransport, and ours, as what the engine takes."""

from __future__ import annotations

import base64
import copy
import ssl
from collections.abc import Iterable
from typing import Any, cast

from urllib3 import HTTPHeaderDict

from ..budget import Budget
from ..errors import InvalidOption
from ..ledger.local import Ledger
from ..pool import IDLE_LIMIT
from ..source import Sources
from ..urllib3 import Gate
from .libraries import LIBRARIES, Library
from .message import Origin, without

CONNECTIONS = 100  # at once, where no limits are given: DEFAULT_LIMITS of both libraries
KEPT = 20  # without use, likewise; more are kept for a few seconds
ORIGINS = 1000  # with a pool each
MOST_KEPT = 1000  # of one origin, for None
PATIENCE = 1e9  # seconds: max_connections by itself sets no bound to the time in line; the pool timeout does


class Options:
    """The arguments of a transport, checked.

    Raises InvalidOption for what cannot be had behind the gate, and what the libraries do for a bad *verify*, *cert*
    or *proxy*.
    """

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool,
        cert: Any,
        trust_env: bool,
        http1: bool,
        http2: bool,
        limits: Any,
        proxy: Any,
        uds: str | None,
        local_address: str | None,
        retries: int,
        socket_options: Iterable[Any] | None,
        *,
        budget: int | str | Budget | None,
        sources: Iterable[str] | str | Sources | None,
        ledger: Ledger | None,
        idle_limit: float | None,
        max_age: float,
    ) -> None:
        if uds is not None:
            raise InvalidOption("uds= takes no port: for that, mount the library's own transport")
        if not http1 and not http2:
            raise InvalidOption("http1=False leaves nothing to speak: give http2=True, too")
        self.retries = retries
        self.local_address = local_address
        self.socket_options = None if socket_options is None else tuple(socket_options)
        self.keeps = limits is None or (limits.max_keepalive_connections != 0 and limits.keepalive_expiry != 0)
        kept = KEPT if limits is None else limits.max_keepalive_connections
        self.kept = MOST_KEPT if kept is None else max(1, min(kept, MOST_KEPT))
        if idle_limit is None:
            idle_limit = IDLE_LIMIT if limits is None else _expiry(limits, max_age)
        connections = CONNECTIONS if limits is None else limits.max_connections
        protocol = ("auto" if http1 else True) if http2 else False
        self.gate = Gate(_bounded(budget, connections), sources, ledger, idle_limit, max_age, protocol)
        self.proxy = _proxy(proxy)
        self._tls = (verify, cert, trust_env)
        self._contexts: dict[str, ssl.SSLContext] = {}
        # With verify=True each library trusts other certificates; all else is the same for both.
        self._same_tls = verify is not True
        if self._same_tls:
            self.ssl_context(LIBRARIES[0])

    def ssl_context(self, library: Library) -> ssl.SSLContext:
        """Return the context for what *library* asks for; making one takes 25 ms, so it is made when first needed."""
        name = "" if self._same_tls else library.name
        found = self._contexts.get(name)
        if found is None:
            verify, cert, trust_env = self._tls
            made: ssl.SSLContext = library.module.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
            found = self._contexts.setdefault(name, made)
        return found

    def proxy_context(self, library: Library) -> ssl.SSLContext:
        """Return the context for the connection to a proxy that speaks TLS."""
        return cast(ssl.SSLContext, self.proxy.ssl_context or library.module.create_ssl_context())

    def proxy_fields(self) -> list[tuple[bytes, bytes]]:
        """Return the header fields that are for the proxy."""
        fields: list[tuple[bytes, bytes]] = list(self.proxy.headers.raw)
        if self.proxy.raw_auth is not None:
            token = base64.b64encode(b":".join(self.proxy.raw_auth))
            fields.insert(0, (b"Proxy-Authorization", b"Basic " + token))
        return fields

    def tunnel_fields(self, origin: Origin) -> HTTPHeaderDict:
        """Return the header fields of a CONNECT for *origin*."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        fields = self.proxy_fields()
        default = [(b"Host", f"{host}:{origin.port}".encode()), (b"Accept", b"*/*")]
        found = HTTPHeaderDict()
        for name, value in (*without(default, fields), *fields):
            found.add(name.decode("latin-1"), value.decode("latin-1"))
        return found


def _bounded(budget: int | str | Budget | None, connections: int | None) -> Budget | None:
    """Return *budget* with a bound on the connections over all destinations."""
    if connections is None:
        return None if budget is None else Budget.of(budget)
    if budget is None:
        return Budget("100%", connections=connections, wait=PATIENCE)
    own = copy.copy(Budget.of(budget))
    own.connections = connections if own.connections is None else min(connections, own.connections)
    return own


def _expiry(limits: Any, max_age: float) -> float:
    """Return the seconds for which an idle connection is kept."""
    expiry = limits.keepalive_expiry
    return max_age if expiry is None else float(expiry) or 1.0  # 0 keeps none


def _proxy(proxy: Any) -> Any:
    """Return the library's own Proxy, made of a URL if need be."""
    if proxy is None or hasattr(proxy, "raw_auth"):
        return proxy
    library = next((library for library in LIBRARIES if isinstance(proxy, library.module.URL)), LIBRARIES[0])
    return library.module.Proxy(url=proxy)
