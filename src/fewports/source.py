"""Which source address for this destination. Pure: it binds nothing and asks nobody.

A source that failed is set aside and tried again later. State: whose turn it is, and who is set aside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b

from .address import Destination, Origin, family_of
from .errors import InvalidOption

SET_ASIDE = 30.0  # seconds; a lost address that returns is in use again within half a minute
NETWORK_CANDIDATES = 16  # addresses of a network that are weighed for one connection
TURNS = 10_000  # destinations for which it is remembered whose turn it is
_POLICIES = ("fewest", "round_robin", "pinned")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Held = Callable[[str], int]


class Sources:
    """Choose among local IP addresses.

    *addresses* is a list of addresses; a network such as ``"2001:db8:5::/64"``, whose addresses need
    not be configured (it must be routed to this host: ``ip route add local NETWORK dev lo``); ``"auto"``,
    the host's own addresses that can reach the destination; or ``"system"``, the one that the kernel
    would choose. *choose* is ``"fewest"`` (ports held), ``"round_robin"`` or ``"pinned"``: always the
    same source for the same *key*, which is a function of the Origin (default: its host).
    Raises InvalidOption.
    """

    def __init__(
        self,
        addresses: Iterable[str] | str = "system",
        *,
        choose: str = "fewest",
        key: Callable[[Origin], Hashable] | None = None,
    ) -> None:
        if choose not in _POLICIES:
            raise InvalidOption(f"choose={choose!r} is unknown: give one of {', '.join(_POLICIES)}")
        if key is not None and choose != "pinned":
            raise InvalidOption("key= is for choose='pinned' alone")
        self.choose = choose
        self.word: str | None = None
        self.network: Network | None = None
        self.addresses: tuple[str, ...] = ()
        if isinstance(addresses, str):
            self._read(addresses)
        else:
            self.addresses = _unique(addresses)
        self._key = key
        self._turns: dict[Destination, int] = {}  # may lose a step between threads: it only spreads
        self._aside: dict[tuple[str, Destination | None], tuple[float, str]] = {}

    @classmethod
    def of(cls, value: Iterable[str] | str | Sources | None) -> Sources:
        """Take what a face was given as ``sources=``."""
        if isinstance(value, Sources):
            return value
        return cls() if value is None else cls(value)

    @property
    def foreign(self) -> bool:
        """Say whether sources may be bound that are no addresses of an interface (IP_FREEBIND)."""
        return self.network is not None

    def candidates(
        self, destination: Destination, origin: Origin, held: Held, now: float, local: Sequence[str] = ()
    ) -> list[str]:
        """Return the usable sources for *destination*, the best first.

        *held* tells the ports that a source holds towards it; *local* are the addresses to choose from
        where they were given as a word.
        """
        pool = self._pool(destination, origin, local)
        if self._aside:
            pool = [source for source in pool if not self.reason(source, destination, now)]
        if len(pool) < 2:
            return pool
        if self.choose == "pinned":
            if self.network is not None:
                return pool[:1]
            pin = self._pin(origin)
            return [min(pool, key=lambda source: _weight(pin, source))]
        if self.network is None:
            turn = self._turn(destination) % len(pool)
            pool = pool[turn:] + pool[:turn]
        if self.choose == "fewest":
            pool.sort(key=held)
        return pool

    def set_aside(self, source: str, destination: Destination | None, reason: str, now: float) -> bool:
        """Keep *source* from being chosen (for *destination*, or at all) for SET_ASIDE seconds.

        Returns whether it was in use until now.
        """
        former = self._aside.get((source, destination))
        fresh = former is None or former[0] <= now
        if len(self._aside) > 1000:  # a network has addresses without end
            for key, (until, _) in list(self._aside.items()):
                if until <= now:
                    self._aside.pop(key, None)
        self._aside[source, destination] = now + SET_ASIDE, reason
        return fresh

    def reason(self, source: str, destination: Destination, now: float) -> str:
        """Say why *source* is set aside; empty if it is not."""
        for key in ((source, None), (source, destination)):
            if (entry := self._aside.get(key)) and entry[0] > now:
                return entry[1]
        return ""

    def reasons(self, destination: Destination, now: float, local: Sequence[str] = ()) -> dict[str, str]:
        """Say for each source why it cannot be used for *destination*."""
        why = {}
        for source in self.addresses or local or ([str(self.network)] if self.network else []):
            if family_of(source) != destination.family:
                why[source] = "it is of the other IP version"
            else:
                why[source] = self.reason(source, destination, now) or "it failed just now"
        if self.network is not None:
            why |= {source: entry[1] for (source, _), entry in list(self._aside.items())[:8] if entry[0] > now}
        return why or {self.word or "sources": "the host has no address that reaches it"}

    def _read(self, text: str) -> None:
        if text in ("auto", "system"):
            self.word = text
            return
        if "/" not in text:
            raise InvalidOption(
                f"sources={text!r} is unknown: give a list of addresses, a network such as '10.7.0.0/24', or 'auto'"
            )
        try:
            self.network = ipaddress.ip_network(text)
        except ValueError as error:
            raise InvalidOption(f"sources={text!r} is no network: {error}") from error
        if self.network.is_multicast or (self.network.num_addresses == 1 and self.network[0].is_unspecified):
            raise InvalidOption(f"sources={text!r} can never be bound: no connection comes from it")

    def _turn(self, destination: Destination) -> int:
        # Each destination has turns of its own: with one for all, two that are asked for in turns would
        # get the same one of two sources each time.
        if len(self._turns) >= TURNS:
            self._turns.clear()
        turn = self._turns.get(destination, 0)
        self._turns[destination] = turn + 1
        return turn

    def _pin(self, origin: Origin) -> str:
        return repr(self._key(origin) if self._key else origin.host)

    def _pool(self, destination: Destination, origin: Origin, local: Sequence[str]) -> list[str]:
        family = destination.family
        if self.network is None:
            return [source for source in self.addresses or local if family_of(source) == family]
        if (self.network.version == 6) != (":" in destination.address):
            return []
        # The first and the last address of a network are anycast and broadcast (RFC 4291, 2.6.1; RFC 919).
        size = self.network.num_addresses
        first, usable = (1, size - 2) if size > 2 else (0, size)
        if self.choose == "pinned":
            start = int.from_bytes(_weight(self._pin(origin), str(self.network)), "big")
        else:
            start = self._turn(destination) * (NETWORK_CANDIDATES if self.choose == "fewest" else 1)
        number = min(NETWORK_CANDIDATES, usable)
        return [str(self.network[first + (start + step) % usable]) for step in range(number)]

    def __repr__(self) -> str:
        what = self.word or self.network or f"{len(self.addresses)} addresses"
        return f"<Sources {what}, {self.choose}, {len(self._aside)} set aside>"


def _unique(addresses: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(addresses, Iterable):
        raise InvalidOption(f"sources={addresses!r} is unknown: give a list of addresses, a network, or 'auto'")
    found: dict[str, None] = {}
    for text in addresses:
        try:
            address = ipaddress.ip_address(str(text))  # a number would be taken for an address
        except ValueError as error:
            raise InvalidOption(f"the source {text!r} is no IP address") from error
        if address.is_unspecified or address.is_multicast:
            raise InvalidOption(f"the source {text!r} can never be bound: no connection comes from it")
        if str(address) in found:
            raise InvalidOption(f"the source {text!r} is given twice")
        found[str(address)] = None
    if not found:
        raise InvalidOption("sources= is empty: give at least one address, or leave it out")
    return tuple(found)


def _weight(key: str, source: str) -> bytes:
    # Rendezvous hashing: if a source is set aside, only the keys that were pinned to it move.
    return blake2b(f"{key} {source}".encode(), digest_size=8).digest()
