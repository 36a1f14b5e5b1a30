"""What a connection runs between: values that parse and print. No name is resolved here."""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}  # RFC 9110, sections 4.2.1 and 4.2.2


class Origin(NamedTuple):
    """URL scheme, host and port (RFC 6454), the host in lower case and without brackets."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Take the origin out of *url*; raise ValueError if it has no scheme, host or known port."""
        parts = urlsplit(url)
        port = DEFAULT_PORTS.get(parts.scheme) if parts.port is None else parts.port
        if not parts.scheme or not parts.hostname or not port:
            raise ValueError(f"no origin in {url!r}: expected scheme://host[:port]")
        return cls(parts.scheme, parts.hostname, port)

    def __str__(self) -> str:
        return f"{self.scheme}://{_host_port(self.host, self.port)}"


class Destination(NamedTuple):
    """IP address (an IPv6 one may carry %scope) and port, after name resolution."""

    address: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read ``203.0.113.9:443`` or ``[2001:db8::1]:443``; raise ValueError for anything else."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise ValueError(f"no destination: {text!r}; expected address:port")
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if bracketed != (address.version == 6):
            raise ValueError(f"no destination: {text!r}; an IPv6 address stands in brackets")
        return cls(str(address), int(port))

    @property
    def family(self) -> socket.AddressFamily:
        return family_of(self.address)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.address)

    def __str__(self) -> str:
        return _host_port(self.address, self.port)


class PortSpace(NamedTuple):
    """Source address and destination: the triple whose local ports run out."""

    source: str
    destination: Destination

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination}"


class Flow(NamedTuple):
    """An open 4-tuple."""

    source: str
    port: int
    destination: Destination

    @property
    def space(self) -> PortSpace:
        return PortSpace(self.source, self.destination)

    def __str__(self) -> str:
        return f"{_host_port(self.source, self.port)} -> {self.destination}"


def family_of(address: str) -> socket.AddressFamily:
    """Tell AF_INET6 from AF_INET by the form of an address literal."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def is_loopback(address: str) -> bool:
    """Say whether *address* is in 127/8 or ::1, where Linux reuses TIME_WAIT early."""
    return address.startswith("127.") or address == "::1"


def sockaddr(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return what bind() and connect() take for an address literal, its %scope included.

    Raises OSError if the scope names no interface.
    """
    if ":" not in address:
        return address, port
    host, _, scope = address.partition("%")
    index = 0
    if scope:
        index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    return host, port, 0, index


def from_sockaddr(name: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str, int]:
    """Return the address, with %scope as a number where there is one, and the port of a socket name."""
    host = name[0].partition("%")[0]
    if len(name) == 4 and name[3]:
        host = f"{host}%{name[3]}"
    return host, name[1]


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
