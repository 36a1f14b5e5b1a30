"""How an origin is reached, and which protocols it is offered."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import NamedTuple

from ..dial import To
from ..gated import SocketOption
from ..http1 import Field
from .seam import Tls
from .socks import Socks

H2, HTTP_11 = "h2", "http/1.1"
OFFERS: dict[bool | str, tuple[str, ...]] = {"auto": (H2, HTTP_11), True: (H2,), False: (HTTP_11,)}


class Tunnel(NamedTuple):
    """How a proxy is asked for a connection to *authority* (host:port), with CONNECT and *fields*."""

    authority: str
    fields: tuple[Field, ...]
    tls: Tls | None = None  # towards the proxy, which is what is dialled


class Route(NamedTuple):
    """How the origin is reached: *to* dials it, or the proxy; *tls* is with whom the requests are for.

    *http2*: "auto" is where the peer chooses it by ALPN, True is HTTP/2 or nothing, without TLS by prior knowledge.
    """

    to: To
    tls: Tls | None = None
    tunnel: Tunnel | Socks | None = None
    options: Sequence[SocketOption] = ()
    family: socket.AddressFamily | int = socket.AF_UNSPEC
    http2: bool | str = False

    @property
    def may_share(self) -> bool:
        """Say whether connections may turn out to be HTTP/2, which many use at once."""
        return self.http2 is True or (self.http2 == "auto" and self.tls is not None)
