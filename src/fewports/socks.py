"""urllib3's SOCKS proxies behind the gate: what takes a port is the connection to the proxy. Needs PySocks."""

from __future__ import annotations

import socket
from typing import Any

import socks
import urllib3.contrib.socks as stock
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from .address import Origin
from .gated import GatedSocket
from .urllib3 import HTTPConnection, HTTPConnectionPool, HTTPSConnection, HTTPSConnectionPool, PoolManager
from .urllib3.connection import OURS

__all__ = ["SOCKSProxyManager"]


class _Standing(GatedSocket):
    """A connected socket, as PySocks is to find it under its own class."""

    def connect(self, address: Any) -> None:
        """Do nothing: the connection to the proxy stands."""


class SOCKSSocket(socks.socksocket, _Standing):
    """The client's side of the SOCKS handshake."""


class SOCKSConnection(HTTPConnection):
    """A connection through a SOCKS proxy."""

    def __init__(self, _socks_options: dict[str, Any], *args: Any, **keywords: Any) -> None:
        self._socks_options = _socks_options
        super().__init__(*args, **keywords)

    @property
    def peer(self) -> Origin:
        options = self._socks_options
        return Origin("socks", options["proxy_host"], int(options["proxy_port"] or 1080))  # RFC 1928, section 3

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        options = self._socks_options
        family, kind, proto, timeout = sock.family, sock.type, sock.proto, sock.gettimeout()
        through = SOCKSSocket(family, kind, proto, fileno=sock.detach())
        try:
            through.settimeout(timeout)
            through.set_proxy(
                options["socks_version"],
                options["proxy_host"],
                self.peer.port,
                options["rdns"],
                options["username"],
                options["password"],
            )
            through.connect((self.host.strip("[]"), self.port))
        except BaseException as error:
            through.close()
            cause = getattr(error, "socket_err", None) or error
            if isinstance(cause, TimeoutError):
                message = f"Connection to {self.host} timed out. (connect timeout={self.timeout})"
                raise ConnectTimeoutError(self, message) from error
            if isinstance(cause, OSError):  # PySocks' own errors are OSErrors, too
                raise NewConnectionError(self, f"Failed to establish a new connection: {cause}") from error
            raise
        return through


OURS.add(SOCKSConnection._new_conn)


class SOCKSHTTPSConnection(SOCKSConnection, HTTPSConnection):
    """A TLS connection through a SOCKS proxy."""


class SOCKSHTTPConnectionPool(HTTPConnectionPool):
    """Connections to one host through a SOCKS proxy."""

    ConnectionCls = SOCKSConnection


class SOCKSHTTPSConnectionPool(HTTPSConnectionPool):
    """TLS connections to one host through a SOCKS proxy."""

    ConnectionCls = SOCKSHTTPSConnection


class SOCKSProxyManager(stock.SOCKSProxyManager, PoolManager):
    """urllib3's SOCKSProxyManager, behind the gate; see PoolManager."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.pool_classes_by_scheme = {"http": SOCKSHTTPConnectionPool, "https": SOCKSHTTPSConnectionPool}
