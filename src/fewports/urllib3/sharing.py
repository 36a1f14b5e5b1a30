"""How urllib3's connection comes to a shared one: by a seat that is free, by waiting for one, or by what it opened.

A pool that does not know yet whether its peer speaks HTTP/2, or knows that it does, has one connection opened at a
time; the others wait for what comes of it.
"""

from __future__ import annotations

import socket
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, cast

import urllib3
from urllib3.exceptions import ConnectTimeoutError, ProtocolError
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version

from .. import http2
from ..events import CloseReason
from ..gated import gated
from ..http1 import RemoteProtocolError
from ..ledger.account import Lease, Waiter
from ..pool import Pool, PoolClosed
from ..sharing import ALONE, Place, Search
from ..standing import Turn
from ..sync.dial import Alarm
from ..sync.nested import unblocked
from ..sync.shared import SharedWire
from ..sync.timer import timer
from .gate import Gate
from .patched import untouched
from .response import BadResponse
from .streams import H2, HTTP_11, Offer, Rider

if TYPE_CHECKING:
    from .connection import Kept


class Sharing:
    """A connection that may find a seat on a shared one, in place of a socket, or become one."""

    gate: Gate
    _plain: bool
    sock: Any
    lease: Lease | None
    deadline: float | None
    expires: float
    timeout: Any
    wait: float | None
    host: str
    port: int
    default_port: ClassVar[int]
    is_verified: bool
    proxy_is_verified: bool | None
    _has_connected_to_proxy: bool
    _tunnel_host: str | None
    _tunnel_port: int | None
    home: Pool[Kept] | None = None
    rider: Rider | None = None  # its seat on a shared connection, in place of a socket
    _ticket: int | Turn | None = None  # its place in line, or what came of it
    alone = False  # others wait for what comes of its connect()
    shared = spent = False  # it is of one user at a time, and can connect again
    capacity = 1

    def disown(self) -> None:
        """Do nothing in a forked child: the socket is gone."""

    def tidy(self) -> None:
        """Do nothing: it is of one user, who reads what comes."""

    def _drop_turn(self) -> None:
        """Give back a lease that was not used to connect."""
        ticket, self._ticket = self._ticket, None
        if isinstance(ticket, Turn):
            self.gate.ledger.give_up(ticket.lease, monotonic())

    @property
    def is_closed(self) -> bool:
        return self.sock is None and self.rider is None

    def _find_way(self, home: Pool[Kept]) -> Kept | None:
        """Return a connection that carries this one too; None: open one, and others wait for it if ``alone``.

        Raises TimeoutError.
        """
        self._drop_turn()
        now = monotonic()
        found, endings = home.retake(now)
        for other, reason in endings:
            other.end(reason)
        if found is None:
            search = Search(_seconds(self.timeout), self._budget_wait(), now)
            while found is None:
                found = cast("Kept | Place | None", self._wait_for_way(home, search.pause(now, bool(home.riding()))))
                now = monotonic()
                over = self.deadline is not None and now >= self.deadline
                if over or search.late(now, bool(home.riding())):
                    if found is None or isinstance(found, Place):  # what is begun now would never be there
                        self._undo(home, found)
                        raise TimeoutError("timed out")
                elif found is None and search.turned(now):
                    found = home.insist(search.turns)
                    if found is None and self.wait is not None:
                        raise TimeoutError("timed out")
            timeout, self.wait = search.left(now, bool(home.riding()))
            if timeout is not None:
                self.timeout = timeout
        self.alone = found is ALONE
        return None if isinstance(found, Place) else found

    def _wait_for_way(self, home: Pool[Kept], seconds: float) -> object:
        alarm = Alarm()
        waiter = Waiter(alarm.wake)
        if isinstance(self._ticket, int):
            waiter.ticket = self._ticket
        self._ticket = waiter.ticket
        try:
            for other, reason in home.join(waiter, monotonic(), place=False, opens=True):
                other.end(reason)
            if not waiter.decided:
                left = inf if self.deadline is None else max(0.0, self.deadline - monotonic())
                alarm.wait(min(seconds, left))
            if home.closed:
                raise PoolClosed("the pool is closed: make a new one")
        except BaseException:
            self._undo(home, waiter.leave())
            raise
        finally:
            home.leave(waiter)
        return waiter.leave()

    def _undo(self, home: Pool[Kept], outcome: object) -> None:
        """Give back what was delivered too late."""
        if outcome is ALONE:
            home.not_opened(failed=False)
        elif outcome is not None and not isinstance(outcome, Place):
            for other, reason in home.give_back(cast("Kept", outcome), monotonic()):
                other.end(reason)

    def _budget_wait(self) -> float:
        wait = min(self.gate.ledger.budget.wait, self.gate.budget.wait if self.gate.budget else inf)
        return wait if self.wait is None else min(wait, self.wait)

    def _finish_connect(self) -> None:
        """Have urllib3 make what goes over the socket: tunnel and TLS, with an offer of HTTP/2."""
        mine = self.__dict__.get("ssl_context")
        offer = self._offer()
        if offer is None:
            super().connect()  # type: ignore[misc]
            return
        try:
            self.__dict__["ssl_context"] = offer
            super().connect()  # type: ignore[misc]
        finally:
            self.__dict__["ssl_context"] = mine

    def _offer(self) -> Offer | None:
        if self.home is None or not self.home.may_share or not isinstance(self, urllib3.connection.HTTPSConnection):
            return None
        if not untouched():
            return None  # who put something in the place of what http.client sends with would not see our requests
        context = self.ssl_context
        if context is None:
            # As urllib3 makes one for each connection.
            context = create_urllib3_context(
                ssl_version=resolve_ssl_version(self.ssl_version),
                ssl_minimum_version=self.ssl_minimum_version,
                ssl_maximum_version=self.ssl_maximum_version,
                cert_reqs=resolve_cert_reqs(self.cert_reqs),
            )
            if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data):
                context.load_default_certs()
        return Offer(context, [H2] if self.gate.http2 is True else [H2, HTTP_11])

    def _share(self, home: Pool[Kept]) -> None:
        """Make a shared connection of this one, if HTTP/2 is what its peer speaks; have a seat on it."""
        if not self._speaks_h2():
            if self.gate.http2 is True and home.may_share:
                raise ProtocolError("The server does not offer HTTP/2, and http2=True takes nothing else.")
            self._opened(None, plain=True)
            return
        if (bare := gated(self.sock)) is not None:
            # urllib3 leaves Nagle's algorithm on towards proxies: small frames would wait for delayed ACKs, 40 ms each.
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carrier = SharedWire(cast(Any, unblocked(self.sock)), home)
        carrier.lease, carrier.expires = self.lease, self.expires
        carrier.origin = self._origin()
        carrier.flags = (self.is_verified, self.proxy_is_verified, self._has_connected_to_proxy)
        try:
            carrier.greet(_seconds(self.timeout), self.deadline)
        except TimeoutError as error:
            message = f"Connection to {self.host} timed out. (connect timeout={self.timeout})"
            raise ConnectTimeoutError(cast(Any, self), message) from error
        except http2.ProtocolError as error:
            raise BadResponse(cast(RemoteProtocolError, error)) from error
        self.sock = self.lease = None
        self.rider = Rider(carrier)
        if self.alone:
            self.alone = False
            home.opened(carrier, monotonic())
        else:
            home.introduce(carrier, monotonic())
        timer.watch_pool(home)

    def _speaks_h2(self) -> bool:
        protocol = getattr(self.sock, "selected_alpn_protocol", None)
        if protocol is not None:
            # Whatever was offered: a context that pools share may have offered it for another. But a subclass that
            # has a hand in requests, as urllib3's own HTTP2Connection, sees to that itself.
            return bool(protocol() == H2) and self._plain
        return self.gate.http2 is True and self.home is not None and self.home.may_share

    def _origin(self) -> tuple[str, str]:
        """Return what :scheme and :authority are."""
        host, port = self.host, self.port
        if self._tunnel_host is not None:
            host, port = self._tunnel_host, self._tunnel_port or port
        if ":" in host:
            host = f"[{host.partition('%')[0]}]"
        scheme = "https" if isinstance(self, urllib3.connection.HTTPSConnection) else "http"
        return scheme, host if port == self.default_port else f"{host}:{port}"

    def _opened(self, carrier: SharedWire | None, *, failed: bool = False, plain: bool = False) -> None:
        """Tell who waits for it that connect() is over."""
        if self.alone and self.home is not None:
            self.alone = False
            if plain:
                self.home.opened(None, monotonic())
            else:
                self.home.not_opened(failed=failed)

    def board(self, carrier: SharedWire) -> None:
        """Use a seat on *carrier* from now on."""
        self.rider = Rider(carrier)
        self.is_verified, self.proxy_is_verified, self._has_connected_to_proxy = carrier.flags

    def _discard(self, outcome: Kept) -> None:
        """Give back a connection that turned out to be at its end; a shared one closes with its last seat."""
        if not isinstance(outcome, SharedWire):
            outcome.end(CloseReason.PEER_CLOSED)
            if self.home is not None:
                self.home.drop_place()
        elif self.home is not None:
            self._undo(self.home, outcome)


def _seconds(timeout: object) -> float | None:
    return Timeout.resolve_default_timeout(cast(Any, timeout))
