"""Servers of ours for tests: context managers in the test process, the servers in processes of their own.

All of them end with the test process, and their ports lie outside of the ephemeral range. "https" certificates are
signed by one CA of the test process; *ca_path* is its file.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import trustme

from support.child import Child

NAMES = ("localhost", "localhost.", "service.test", "*.service.test")


class Authority(NamedTuple):
    """The CA of this process, and the certificate (chain, key) of all its servers."""

    ca_path: str
    chain: str
    key: str


@functools.cache
def authority(*addresses: str) -> Authority:
    """Make a CA and a certificate for localhost, service.test, its subdomains and the given addresses."""
    place = Path(_directory())
    ca = _ca()
    leaf = ca.issue_cert(*NAMES, *addresses)
    name = str(len(list(place.iterdir())))
    ca_path, chain, key = place / "ca.pem", place / f"{name}-chain.pem", place / f"{name}-key.pem"
    ca.cert_pem.write_to_path(str(ca_path))
    leaf.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    return Authority(str(ca_path), str(chain), str(key))


@functools.cache
def _ca() -> trustme.CA:
    return trustme.CA()


@functools.cache
def _directory() -> str:
    # The object stays in the cache of _kept() until the interpreter ends, and removes the directory then.
    return _kept().name


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fewports-ca-")


class Listening:
    """Where a server is. The first address is the one of *host*, *port* and *url*."""

    scheme = "http"
    addresses: list[tuple[str, int]]
    ca_path: str | None = None

    @property
    def host(self) -> str:
        return self.addresses[0][0]

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    @property
    def url(self) -> str:
        """The URL without a path: http://127.0.0.1:12345."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        return [
            f"{self.scheme}://[{address}]:{port}" if ":" in address else f"{self.scheme}://{address}:{port}"
            for address, port in self.addresses
        ]


class Served(Listening):
    """A server of ours in a child process."""

    def __init__(self, main: str, settings: dict[str, Any]) -> None:
        self._main, self._settings = main, settings
        self._child: Child | None = None

    def __enter__(self) -> Self:
        self._child = Child(self._main, self._settings)
        self.addresses = [(address, port) for address, port in self._child.ready["addresses"]]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child
        self._child.close()

    @property
    def pid(self) -> int:
        assert self._child
        return self._child.pid

    def stats(self) -> dict[str, Any]:
        """Ask for the counts, without opening a connection."""
        assert self._child
        return self._child.stats()


class HttpServer(Served):
    """The HTTP/1.1 server of http_server.py; its paths are listed there.

    It listens on *ports* ports, each on all *addresses*. *close_after_response*: it closes first, after each
    response, with "Connection: close" unless not *announce_close*. *kill_probability*: that part of the requests ends
    in a reset, *kill* "before" the response, "after" it, or "either"; *seed* makes it repeatable.
    *keepalive_timeout*: it closes what was idle for so many seconds.
    stats(): accepted, open, most_open, requests, killed, sources (connections accepted from each client address).
    """

    def __init__(
        self,
        *addresses: str,
        ports: int = 1,
        tls: bool = False,
        close_after_response: bool = False,
        announce_close: bool = True,
        kill_probability: float = 0.0,
        kill: str = "either",
        keepalive_timeout: float | None = None,
        seed: int = 0,
    ) -> None:
        addresses = addresses or ("127.0.0.1",)
        keys = authority(*addresses) if tls else None
        super().__init__(
            "http_server:Server",
            {
                "addresses": addresses,
                "ports": ports,
                "tls": keys and (keys.chain, keys.key),
                "close_after_response": close_after_response,
                "announce_close": announce_close,
                "kill_probability": kill_probability,
                "kill": kill,
                "keepalive_timeout": keepalive_timeout,
                "seed": seed,
            },
        )
        if keys:
            self.scheme, self.ca_path = "https", keys.ca_path


class H2Server(Served):
    """The HTTP/2 server of h2_server.py; its paths are listed there and in http_server.py.

    It listens on *ports* ports, allows *streams* at once on each connection, with windows of *window* bytes for each,
    and announces the end of a connection that has had *requests*. *close_after_response*: it closes first, once all
    is answered, with GOAWAY unless not *announce_close*; *keepalive_timeout*: so, when idle for so many seconds after
    a response.
    stats(): accepted, open, requests, running and most_running (being answered, at once; most_at_once: by port of the
    server), most_streams (on one connection), processed and received (by x-id: how often, and how many bytes of body
    each time), resets and goodbyes (codes that clients sent), clients (ports of connections, in order), flaws (what
    h2 did not like).
    """

    def __init__(
        self,
        *addresses: str,
        ports: int = 1,
        tls: bool = False,
        streams: int = 128,
        window: int = 1 << 20,
        requests: int | None = None,
        close_after_response: bool = False,
        announce_close: bool = True,
        keepalive_timeout: float | None = None,
    ) -> None:
        addresses = addresses or ("127.0.0.1",)
        keys = authority(*addresses) if tls else None
        super().__init__(
            "h2_server:Server",
            {
                "addresses": addresses,
                "ports": ports,
                "tls": keys and (keys.chain, keys.key),
                "streams": streams,
                "window": window,
                "requests": requests,
                "close_after_response": close_after_response,
                "announce_close": announce_close,
                "keepalive_timeout": keepalive_timeout,
            },
        )
        if keys:
            self.scheme, self.ca_path = "https", keys.ca_path


class SocksProxy(Served):
    """A SOCKS5 proxy; with *credentials* (user, password) it takes nobody else.

    stats(): accepted, open, refused (wrong credentials), tunnels (list of host:port).
    """

    scheme = "socks5"

    def __init__(self, address: str = "127.0.0.1", *, credentials: tuple[str, str] | None = None) -> None:
        super().__init__("proxies:Socks", {"address": address, "tls": None, "credentials": credentials})


class HttpProxy(Served):
    """A proxy that forwards and tunnels (CONNECT); *tls* is towards the client.

    stats(): accepted, open, refused (wrong credentials), forwarded (requests), tunnels (list of host:port).
    """

    def __init__(
        self, address: str = "127.0.0.1", *, tls: bool = False, credentials: tuple[str, str] | None = None
    ) -> None:
        keys = authority(address) if tls else None
        pair = keys and (keys.chain, keys.key)
        super().__init__("proxies:Http", {"address": address, "tls": pair, "credentials": credentials})
        if keys:
            self.scheme, self.ca_path = "https", keys.ca_path
