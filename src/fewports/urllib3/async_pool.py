"""One origin as AsyncPoolManager sees it: what urllib3 would send there, and what urllib3 calls what goes wrong."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import unquote_to_bytes

from urllib3.connection import _get_default_user_agent, _match_hostname, port_by_scheme
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    EmptyPoolError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import SKIP_HEADER, parse_url
from urllib3.util.ssl_ import (
    assert_fingerprint,
    create_urllib3_context,
    is_ipaddress,
    resolve_cert_reqs,
    resolve_ssl_version,
)

from .. import aio, errors, http1
from ..address import Origin
from ..alert import alert_in
from ..pool import PoolClosed
from .async_response import broken
from .gate import BudgetExhausted, NoUsableSource
from .response import BadLength, BadResponse

SETS = 64  # sets of header fields that an origin remembers

# What the engine raises, and what is said of it by AsyncPool.fault().
ENGINE = (aio.ExchangeError, http1.RemoteProtocolError, errors.BudgetExhausted, errors.NoUsableSource, PoolClosed)


class TlsOptions(NamedTuple):
    """urllib3's keyword arguments for TLS."""

    ssl_context: ssl.SSLContext | None = None
    cert_reqs: int | str | None = None
    ca_certs: str | None = None
    ca_cert_dir: str | None = None
    ca_cert_data: str | bytes | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: str | None = None
    assert_hostname: str | bool | None = None
    assert_fingerprint: str | None = None
    server_hostname: str | None = None
    ssl_version: int | str | None = None
    ssl_minimum_version: int | None = None
    ssl_maximum_version: int | None = None


class Security:
    """Contexts and checks for connections to any host, made when the first is needed."""

    def __init__(self, options: TlsOptions) -> None:
        self.options = options
        self._context: ssl.SSLContext | None = None

    def towards(self, host: str) -> aio.Tls:
        """Say how to speak TLS with *host*; raises urllib3's SSLError for files that cannot be read."""
        context = self._context
        if context is None:
            context = self._context = self._make()
        name = (self.options.server_hostname or host).rstrip(".")
        bare = name.strip("[]").partition("%")[0]
        if is_ipaddress(bare):
            name = bare
        return aio.Tls(context, name, lambda session: self._check(session, name))

    @property
    def verified(self) -> bool:
        """Say whether the peer has to prove who it is."""
        context = self._context
        return context is None or context.verify_mode == ssl.CERT_REQUIRED or bool(self.options.assert_fingerprint)

    def _make(self) -> ssl.SSLContext:
        options = self.options
        context = options.ssl_context
        wanted = options.cert_reqs
        if context is None:
            context = create_urllib3_context(
                ssl_version=resolve_ssl_version(options.ssl_version),
                cert_reqs=resolve_cert_reqs(wanted),
                ssl_minimum_version=options.ssl_minimum_version,
                ssl_maximum_version=options.ssl_maximum_version,
            )
        elif wanted is None:
            wanted = context.verify_mode
        if options.assert_fingerprint or options.assert_hostname or options.assert_hostname is False:
            context.check_hostname = False
        mode = resolve_cert_reqs(wanted)
        if mode == ssl.CERT_NONE:
            context.check_hostname = False
        context.verify_mode = mode
        try:
            if options.ca_certs or options.ca_cert_dir or options.ca_cert_data:
                context.load_verify_locations(options.ca_certs, options.ca_cert_dir, options.ca_cert_data)
            elif options.ssl_context is None:
                context.load_default_certs()
            if options.cert_file:
                context.load_cert_chain(options.cert_file, options.key_file, options.key_password)
        except OSError as error:
            raise SSLError(error) from error
        return context

    def _check(self, session: ssl.SSLObject, name: str) -> None:
        options, context = self.options, session.context
        if options.assert_fingerprint:
            assert_fingerprint(session.getpeercert(binary_form=True), options.assert_fingerprint)
        elif (
            context.verify_mode != ssl.CERT_NONE and not context.check_hostname and options.assert_hostname is not False
        ):
            asserted = options.assert_hostname if isinstance(options.assert_hostname, str) else name
            _match_hostname(cast(Any, session.getpeercert()), asserted)


def proxy_fields(proxy: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """Return the header fields for *proxy*: those *given*, with the credentials of its URL."""
    user, colon, password = ((proxy and parse_url(proxy).auth) or "").partition(":")
    if not (user or colon) or any(name.lower() == "proxy-authorization" for name in given):
        return dict(given)
    known = b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()  # RFC 7617, section 2
    return {**given, "Proxy-Authorization": f"Basic {known}"}


class AsyncPool:
    """What is sent to one origin, over an engine that may be that of a proxy, shared with other origins."""

    def __init__(
        self,
        origin: Origin,
        engine: aio.OriginPool,
        *,
        proxy_headers: Mapping[str, str] | None = None,
        prefix: str = "",
        proxied: bool = False,
        security: Security | None = None,
    ) -> None:
        self.scheme, self.host, self.port = origin
        self.engine = engine
        self.prefix = prefix  # of each target, where a proxy forwards
        self.proxied = proxied
        self.insecure = security is not None and not security.verified
        self._proxy_headers = proxy_headers  # that go with each request
        self._sets: dict[object, aio.Fields] = {}
        default = {"http": 80, "https": 443}[self.scheme]
        self.authority = self.host if self.port == default else f"{self.host}:{self.port}"
        self.bare = self._made(())  # what is sent with no headers given

    def fields(self, headers: Mapping[str, str]) -> aio.Fields:
        """Return what is sent with *headers*: with Host, and what urllib3 adds."""
        key = tuple(headers.items())
        found = self._sets.get(key)
        if found is not None:
            return found
        fields = self._made(key)
        if len(self._sets) >= SETS:
            self._sets.clear()
        self._sets[key] = fields
        return fields

    def _made(self, given: tuple[tuple[str, str], ...]) -> aio.Fields:
        ours = {
            "host": ("Host", self.authority),
            "accept-encoding": ("Accept-Encoding", "identity"),
            "user-agent": ("User-Agent", _get_default_user_agent()),
        }
        if self._proxy_headers is not None:
            ours["accept"] = ("Accept", "*/*")
            names = {name.lower() for name, _ in given}
            given = (*given, *(field for field in self._proxy_headers.items() if field[0].lower() not in names))
        kept = []
        for name, value in given:
            plain = name.decode("latin-1") if isinstance(name, bytes) else name
            ours.pop(plain.lower(), None)
            if value != SKIP_HEADER:
                kept.append((name, value))
        return (*ours.values(), *kept)

    def serves(self, url: str) -> bool:
        """Say whether *url* is of this origin. Whether it can be asked for at all is for who asks."""
        parts = parse_url(url)
        port = parts.port or port_by_scheme.get(parts.scheme or "")
        return (parts.scheme, parts.host, port) == (self.scheme, self.host, self.port)

    def fault(self, error: Exception, url: str, read: float | None) -> Exception:
        """Return the error of urllib3, or of ours, that stands for one of the engine."""
        pool = cast(Any, self)
        if isinstance(error, errors.BudgetExhausted):
            return BudgetExhausted(error, self)
        if isinstance(error, errors.NoUsableSource):
            return NoUsableSource(error.destination, error.reasons)
        if isinstance(error, aio.PlaceTimedOut):
            message = "Pool is empty and a new connection can't be opened due to blocking mode."
            return EmptyPoolError(pool, message)
        if isinstance(error, PoolClosed):
            return ClosedPoolError(pool, "Pool is closed.")
        if isinstance(error, aio.TunnelRefused):
            return of_proxy(OSError(str(error)))
        if isinstance(error, http1.RemoteProtocolError):
            return _bad(error, pool, url)
        return self._unconnected(error) or self._broken(error, url, read)

    def _unconnected(self, error: Exception) -> Exception | None:
        pool, cause = cast(Any, self), error.__cause__
        found: Exception
        if isinstance(error, aio.NotResolved):
            found = NameResolutionError(self.engine.origin.host, pool, cast(socket.gaierror, cause))
        elif isinstance(error, aio.NotConnected):
            found = NewConnectionError(pool, f"Failed to establish a new connection: {cause}")
        elif isinstance(error, aio.TimedOut) and error.stage is aio.Stage.CONNECT:
            found = ConnectTimeoutError(self, f"Connection to {self.host} timed out.")
        elif isinstance(error, aio.TlsFailed):
            found = SSLError(cause)
        elif isinstance(error, aio.NotOffered):
            return ProtocolError(str(error))
        else:
            return None
        return of_proxy(found) if self.proxied and not isinstance(error, aio.TlsFailed) else found

    def _broken(self, error: Exception, url: str, read: float | None) -> Exception:
        pool = cast(Any, self)
        if isinstance(error, aio.TimedOut) and error.stage is not aio.Stage.WRITE:
            return ReadTimeoutError(pool, url, f"Read timed out. (read timeout={read})")
        cause = error.__cause__
        if isinstance(error, aio.TimedOut):
            cause = TimeoutError("timed out")
        elif (alert := alert_in(cause)) is not None:
            return SSLError(alert)
        elif not isinstance(cause, OSError):
            cause = http.client.RemoteDisconnected("Remote end closed connection without response")
        return ProtocolError("Connection aborted.", cause)

    def __str__(self) -> str:
        return named(Origin(self.scheme, self.host, self.port))

    __repr__ = __str__


def named(origin: Origin) -> str:
    """Name a pool as urllib3's messages do."""
    kind = "HTTPSConnectionPool" if origin.scheme == "https" else "HTTPConnectionPool"
    return f"{kind}(host={origin.host!r}, port={origin.port})"


def of_proxy(error: Exception) -> ProxyError:
    """Return what urllib3 makes of an *error* on the way to a proxy."""
    return ProxyError("Unable to connect to proxy", error)


def _bad(error: http1.RemoteProtocolError, pool: object, url: str) -> Exception:
    if error.what.startswith(http1.BAD_LENGTH):
        return BadLength(error.what, error.where, error.data)
    if isinstance(error, http1.Truncated) and not re.match("front|the head", error.where):
        return broken(error, pool, url)
    return ProtocolError("Connection aborted.", BadResponse(error))
