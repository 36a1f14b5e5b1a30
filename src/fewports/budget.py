"""How many ports may be held, by whom, and what happens then. Pure: it counts nothing itself.

A number bounds a destination (or a host, or a network) over all source addresses. A percentage is
of the kernel's port range, so it bounds each source address apart: more sources, more ports.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple

from .address import Destination
from .errors import InvalidOption

DEFAULT_LIMIT = "80%"
DEFAULT_WAIT = 30.0  # seconds: what a person behind a request waits at most
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
_NAMED_SCOPE = re.compile(r"%(?!\d+(\]|/|$))")  # destinations have the number: that is what sockets say

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Limit(NamedTuple):
    """A number of ports, or a share of the range for each source address."""

    ports: int | None
    share: float | None

    @classmethod
    def parse(cls, value: int | str) -> Limit:
        """Read ``500`` or ``"60%"``; raise InvalidOption for zero, for less, and for other words."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise InvalidOption(f"a budget is a number of ports or a percentage such as '60%', not {value!r}")
        if isinstance(value, int):
            if value < 1:
                raise InvalidOption(f"a budget of {value} ports would refuse every connection; give at least 1")
            return cls(value, None)
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value, re.ASCII)
        if not match:
            raise InvalidOption(f"unknown budget {value!r}: give a number of ports, or a percentage such as '60%'")
        percent = float(match[1])
        if not 0 < percent <= 100:
            raise InvalidOption(f"a budget of {value} is not between 0 and 100 % of the port range")
        return cls(None, percent / 100)

    def of(self, capacity: int) -> int:
        """Return the number of ports, where the range has *capacity* of them; never less than 1."""
        if self.ports is not None:
            return self.ports
        assert self.share is not None
        return max(1, int(capacity * self.share + 1e-9))

    def __str__(self) -> str:
        return str(self.ports) if self.share is None else f"{self.share * 100:g}%"


class Group(NamedTuple):
    """The destinations that share an account, and its limit."""

    name: str
    limit: Limit


class Budget:
    """Bound the ports held per destination.

    *limit* is a number of ports or a percentage. *rules* override it: the keys are a host name (all
    its addresses together), an ``address:port``, an address, or a network; the most exact one counts:
    address and port, then host name, then the longest network. *when_full* is ``"wait"`` (in line, for
    *wait* seconds, default 30) or ``"refuse"``. *dialing* bounds the connections being dialled
    at once to each destination, *connections* those that are open over all destinations (a port in
    TIME_WAIT is none). Raises InvalidOption for what could never work.
    """

    def __init__(
        self,
        limit: int | str = DEFAULT_LIMIT,
        *,
        rules: Mapping[str, int | str] | None = None,
        when_full: str = "wait",
        wait: float | None = None,
        dialing: int | None = None,
        connections: int | None = None,
    ) -> None:
        self.limit = Limit.parse(limit)
        if when_full not in ("wait", "refuse"):
            raise InvalidOption(f"when_full={when_full!r} is unknown: give 'wait' or 'refuse'")
        if when_full == "refuse" and wait is not None:
            raise InvalidOption("wait= never applies with when_full='refuse'; leave one of them out")
        number = isinstance(wait, (int, float)) and not isinstance(wait, bool)
        if wait is not None and not (number and isfinite(wait) and wait > 0):
            raise InvalidOption(f"wait={wait!r} is not a time in seconds; to wait not at all, say when_full='refuse'")
        for name, value in (("dialing", dialing), ("connections", connections)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidOption(f"{name}={value!r} would let nobody connect; give at least 1, or None for no bound")
        self.refuses = when_full == "refuse"
        self.wait = 0.0 if self.refuses else DEFAULT_WAIT if wait is None else float(wait)
        self.dialing = dialing
        self.connections = connections
        self._exact: dict[Destination, Group] = {}
        self._hosts: dict[str, Group] = {}
        self._networks: dict[Network, Group] = {}
        for key, limited in (rules or {}).items():
            self._add(key, Limit.parse(limited))
        self._by_length = sorted(self._networks, key=lambda network: -network.prefixlen)

    @classmethod
    def of(cls, value: int | str | Budget | None) -> Budget:
        """Take what a face was given as ``budget=``."""
        if isinstance(value, Budget):
            return value
        return cls() if value is None else cls(value)

    @property
    def uniform(self) -> bool:
        """Say whether there are no rules: each destination has the same limit."""
        return not (self._exact or self._hosts or self._networks)

    def group(self, destination: Destination, host: str = "") -> Group:
        """Return the account for a connection to *destination*, looked up under the name *host*."""
        if found := self._exact.get(destination):
            return found
        if self._hosts and (found := self._hosts.get(normal_host(host))):
            return found
        if self._by_length:
            address = ipaddress.ip_address(destination.address)
            for network in self._by_length:
                if address in network:
                    return self._networks[network]
        return Group(str(destination), self.limit)

    def _add(self, key: str, limit: Limit) -> None:
        if not isinstance(key, str) or not key:
            raise InvalidOption(f"a rule is for a host name, an address:port or a network, not {key!r}")
        if _NAMED_SCOPE.search(key):
            raise InvalidOption(f"the rule {key!r} can never apply: give the interface's number, as in 'fe80::1%2'")
        known: bool
        if destination := _destination(key):
            known = destination in self._exact
            self._exact[destination] = Group(str(destination), limit)
        elif network := _network(key):
            known = network in self._networks
            self._networks[network] = Group(_name(network), limit)
        else:
            host = normal_host(key)
            if not _HOST.fullmatch(host) or host.replace(".", "").isdigit():
                raise InvalidOption(
                    f"the rule {key!r} can never apply: give a host name without scheme and port, "
                    "an address:port such as '203.0.113.9:443', or a network such as '10.0.0.0/8'"
                )
            known = host in self._hosts
            self._hosts[host] = Group(host, limit)
        if known:
            raise InvalidOption(f"the rule {key!r} can never apply: another one says the same")

    def __repr__(self) -> str:
        rules = len(self._exact) + len(self._hosts) + len(self._networks)
        full = "refuse" if self.refuses else f"wait {self.wait:g} s"
        return f"<Budget {self.limit}, {rules} rules, {full}>"


def normal_host(host: str) -> str:
    """Return *host* as rules and accounts compare it: lower case, IDNA form, no final dot."""
    host = host.rstrip(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def _destination(key: str) -> Destination | None:
    try:
        destination = Destination.parse(key)
    except ValueError:
        return None
    _connectable(key, ipaddress.ip_network(destination.address))
    return destination


def _network(key: str) -> Network | None:
    if "://" in key:
        return None
    if "/" not in key:
        try:
            network = ipaddress.ip_network(ipaddress.ip_address(key.strip("[]")))
        except ValueError:
            return None
    else:
        try:
            network = ipaddress.ip_network(key)
        except ValueError as error:
            raise InvalidOption(f"the rule {key!r} is no network: {error}") from error
    _connectable(key, network)
    return network


def _connectable(key: str, network: Network) -> None:
    # 0.0.0.0 and :: connect to this host, as 127.0.0.1 and ::1, so no connection is ever to them.
    lone = network.prefixlen == network.max_prefixlen
    if network.is_multicast or (lone and network.network_address.is_unspecified):
        raise InvalidOption(f"the rule {key!r} can never apply: no TCP connection goes to {network.network_address}")


def _name(network: Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
