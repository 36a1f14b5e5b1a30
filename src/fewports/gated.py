"""Sockets that own a lease: opened in one place, and giving their port back when really closed.

A socket is closed by whoever has it (http.client when the last reader is done, ssl, the garbage
collector), and none of them could pass the time: this is why a clock is read here, below floor 5.
Which close is chosen decides whether the port is free now or in 60 s.
"""

from __future__ import annotations

import _socket
import os
import socket
import ssl
import struct
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple, Self

from .address import Flow, family_of, from_sockaddr, sockaddr
from .events import CloseReason, ConnectionClosed
from .kernel import diag, facts, options
from .kernel.diag import State
from .ledger.account import Lease

ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: no FIN and no TIME_WAIT; only where no data can be under way
DEPTH = 4  # wrappers around a socket: a proxy and a destination, each with TLS
# Idle and clean connections whose port costs nothing to free: no data can still be under way.
_SPARED = {CloseReason.GAVE_WAY, CloseReason.POOL_CLOSED}
# Looked up once: an enum's attributes and hashes are slow, and these are needed for each connection.
_DONE = CloseReason.DONE
_STREAM = socket.SOCK_STREAM
_OPEN, _RELEASED = Lease.OPEN, Lease.RELEASED
_MAKING_TLS = getattr(ssl.SSLSocket, "_create", ssl.SSLSocket.__init__).__code__  # gevent's has no _create()
# What gevent puts in the place of socket.socket is none of _socket's, and has one of those.
_native = issubclass(socket.socket, _socket.socket)
_base: Any = _socket.socket if _native else socket.socket
_end: Callable[[Any], None] = _base.close if _native else _base._real_close
_SYN_SENT, _ESTABLISHED, _CLOSE_WAIT = int(State.SYN_SENT), int(State.ESTABLISHED), int(State.CLOSE_WAIT)

# Held while a descriptor is made or closed, when nobody can name it, and by whoever forks: else the child could not
# find and close its copy, and the parent's close would not end the connection. Re-entrant, because a finalizer or a
# signal handler may fork. Who forks may wait for locks that we have: so nobody waits long for this one.
unnamed = threading.RLock()
PATIENCE = 0.1  # seconds for which a fork in another thread can delay us


class GatedSocket(socket.socket):
    """A TCP socket with a lease; made by open_socket()."""

    lease: Lease | None = None
    reason = CloseReason.DONE
    passing = False  # the descriptor is about to move to a socket of ours
    copied = False  # there is another descriptor
    ending: tuple[bool, int | None, bool] | None = None  # somebody else closes it, as entrust() has prepared

    def hold(self, lease: Lease) -> None:
        """Own *lease* from now on."""
        self.lease = lease
        lease.socket = weakref.ref(self)

    def detach(self) -> int:
        """Hand out the descriptor. The port counts until the kernel says that it is free."""
        descriptor = super().detach()
        ending, self.ending = self.ending, None
        if ending is not None and self.lease is not None:  # it is closed already
            lease, self.lease = self.lease, None
            _given_back(self, lease, *ending)
        else:
            _orphan(self)
        return descriptor

    def dup(self) -> Self:
        """Return a second descriptor of the connection: closing this one does not end it."""
        self.copied = True
        return super().dup()

    def _real_close(self) -> None:
        _close(self, _end)

    def __del__(self) -> None:
        if self.lease is not None or self.fileno() >= 0:
            _drop(self)


class GatedSSLSocket(ssl.SSLSocket):
    """The TLS socket over a GatedSocket; made by pass_on()."""

    lease: Lease | None = None
    reason = CloseReason.DONE
    passing = False
    copied = False

    def detach(self) -> int:
        """Hand out the descriptor. The port counts until the kernel says that it is free."""
        descriptor = super().detach()
        _orphan(self)
        return descriptor

    def _real_close(self) -> None:
        _close(self, ssl.SSLSocket._real_close)  # type: ignore[attr-defined]

    def __del__(self) -> None:
        if self.lease is not None or self.fileno() >= 0:
            _drop(self)


Gated = GatedSocket | GatedSSLSocket
SocketOption = tuple[int, int, int | bytes]
SocketName = tuple[str, int] | tuple[str, int, int, int]


class CallFailed(Exception):
    """A system call of an attempt failed. Which one it was tells the errors apart (facts, section 10)."""

    def __init__(self, call: str, error: OSError) -> None:
        self.call = call
        self.error = error
        super().__init__(call, error)


class Bound(NamedTuple):
    """How the source is bound: *chosen* by the user, not by the kernel; to a *port*; *foreign* to the host."""

    chosen: bool = False
    port: int = 0
    foreign: bool = False


class Recipe(NamedTuple):
    """What a socket from one source needs: its family, its options, and the name to bind it to, if any."""

    family: socket.AddressFamily
    options: tuple[SocketOption, ...]
    name: SocketName | None


def recipe(source: str, bound: Bound, ports: facts.PortRange) -> Recipe:
    """Work out what a socket needs that is *bound* to *source*; raises CallFailed if its %scope names no interface."""
    try:
        features = facts.features()
        name = sockaddr(source, bound.port)
    except OSError as error:
        raise CallFailed("bind", error) from error
    family = family_of(source)
    wanted: list[SocketOption] = []
    if features.local_port_range and not bound.port:
        # Even the whole range is worth naming: without it connect() is 50 times slower past half
        # full, because the kernel looks at all even ports first (fact 8b).
        wanted.append(options.limited_ports(ports.low, ports.high))
    if bound.foreign:
        wanted.append(options.foreign_source(family))
    if features.no_port and not bound.port:
        # Else bind takes the port for all destinations at once (fact 2a).
        return Recipe(family, (*wanted, options.DEFERRED_PORT), name)
    return Recipe(family, tuple(wanted), name if bound.chosen or bound.port else None)


def open_socket(lease: Lease, needs: Recipe, wanted: Sequence[SocketOption]) -> GatedSocket:
    """Create, prepare and bind a socket for *lease*, which it owns from then on.

    Raises CallFailed; the lease is then still the caller's.
    """
    call = "socket"
    sock = None
    try:
        alone = unnamed.acquire(True, PATIENCE)
        try:
            sock = GatedSocket(needs.family, _STREAM)
            lease.socket = weakref.ref(sock)
        finally:
            if alone:
                unnamed.release()
        call = "setsockopt"
        for option in wanted:
            sock.setsockopt(*option)
            if option[1] in options.TO_DEVICE:
                diag.note_device(sock)
        for level, name, value in needs.options:
            sock.setsockopt(level, name, value)
        call = "bind"
        if needs.name is not None:
            sock.bind(needs.name)
        sock.lease = lease
    except OSError as error:
        _undo(sock, lease)
        raise CallFailed(call, error) from error
    except BaseException:
        _undo(sock, lease)
        raise
    return sock


def _undo(sock: GatedSocket | None, lease: Lease) -> None:
    if sock is not None:
        sock.lease = None
        sock.close()
    lease.socket = None


def pass_on(sock: GatedSocket, heir: object) -> None:
    """Move the lease of *sock*, whose descriptor has gone to *heir*, perhaps under wrappers.

    An heir of a class of the user's own is left as it is: its port counts until the kernel lets go of it.
    """
    lease = sock.lease
    if lease is None or sock.fileno() >= 0:
        return
    sock.lease = None
    for _ in range(DEPTH):
        if isinstance(heir, GatedSocket):
            heir.hold(lease)
            return
        if type(heir) is ssl.SSLSocket:
            # SSLContext makes its sockets itself. Its sslsocket_class is the user's to set, and read too
            # late for contexts that urllib3 makes; the class of the finished object can be changed.
            heir.__class__ = GatedSSLSocket
            heir.lease = lease  # type: ignore[attr-defined]
            lease.socket = weakref.ref(heir)  # type: ignore[arg-type]
            return
        heir = getattr(heir, "socket", None)
    lease.ledger.orphan(lease, watch=True)


def gated(sock: object) -> Gated | None:
    """Find the socket with the lease under wrappers such as urllib3's TLS within TLS."""
    for _ in range(DEPTH):
        if isinstance(sock, (GatedSocket, GatedSSLSocket)):
            return sock
        sock = getattr(sock, "socket", None)
    return None


def entrust(sock: GatedSocket) -> None:
    """Prepare the close that suits *sock*, whose descriptor somebody else closes next, and detaches after that."""
    lease = sock.lease
    if lease is not None and lease.state < _RELEASED:
        spare = (sock.reason is not _DONE and sock.reason in _SPARED) or lease.pressed
        sock.ending = lease.state == _OPEN, _state_before(sock, lease, spare), spare


def close_unfinished(error: BaseException) -> None:
    """Close the TLS socket in whose making *error* was raised: it has the descriptor, and nobody else can reach it.

    SSLSocket closes it itself after an OSError or a ValueError of its handshake; not after a KeyboardInterrupt there,
    and not if the peer's reset comes before the handshake (Python 3.12 and older).
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is _MAKING_TLS and "self" in frame.f_locals:
            frame.f_locals["self"].close()


def let_go(sock: Gated) -> None:
    """Close the descriptor in a forked child; the connection goes on in the parent."""
    sock.lease = None
    descriptor = _base.detach(sock)
    if descriptor >= 0:
        os.close(descriptor)


def _close(sock: Gated, close: Callable[[Any], None]) -> None:
    lease, sock.lease = sock.lease, None
    if lease is None or lease.state >= _RELEASED or sys.is_finalizing():
        _shut(sock, close)
        return
    stood = lease.state == _OPEN
    reason = sock.reason
    spare = (reason is not _DONE and reason in _SPARED) or lease.pressed
    state = _state_before(sock, lease, spare)
    try:
        alone = unnamed.acquire(True, PATIENCE)  # as in _shut(): a call less for each connection
        try:
            close(sock)
        finally:
            if alone:
                unnamed.release()
    finally:
        _given_back(sock, lease, stood, state, spare)


def _given_back(sock: Gated, lease: Lease, stood: bool, state: int | None, spare: bool) -> None:
    """Give back the port of a socket that was just closed."""
    # Closed in SYN_SENT the port is free (fact 6j). With TIME_WAIT to come, and ports plenty, the
    # kernel is asked when it matters; else now.
    ledger, flow, closed = lease.ledger, lease.flow, None
    if stood and flow is not None and ledger.heard:
        closed = _closed(flow, state, spare, sock.reason)
    if sock.copied:
        ledger.orphan(lease, watch=True)
    elif ledger.busy():
        # Perhaps with us: a response that the garbage collector finds closes its socket in the middle of anything.
        ledger.orphan(lease, time_wait=flow is not None, closed=closed)
    else:
        ledger.release(lease, monotonic(), time_wait=flow is not None, ask=spare or state != _ESTABLISHED)
        if closed:
            ledger.emit(closed)


def _orphan(sock: Gated) -> None:
    """Let the kernel say when the connection is over, whose descriptor goes to somebody whom we do not know."""
    if sock.lease is not None and not sock.passing:
        lease, sock.lease = sock.lease, None
        lease.ledger.orphan(lease, watch=True)


def _shut(sock: Gated, close: Callable[[Any], None]) -> None:
    alone = unnamed.acquire(True, PATIENCE)
    try:
        close(sock)
    finally:
        if alone:
            unnamed.release()


def _drop(sock: Gated) -> None:
    """Close what was left to the garbage collector; no lock may be taken here."""
    number = _base.fileno(sock)
    text = repr(sock) if number >= 0 else ""
    lease = getattr(sock, "lease", None)
    if lease is None or lease.state >= Lease.RELEASED or sys.is_finalizing():
        _end(sock)
    else:
        sock.lease = None
        spare = lease.pressed
        state = _state_before(sock, lease, spare)
        _shut(sock, _end)
        flow = lease.flow
        closed = _closed(flow, state, spare, CloseReason.DROPPED) if flow else None
        lease.ledger.orphan(lease, time_wait=flow is not None, closed=closed)
    if number >= 0:
        warnings.warn(f"unclosed {text}", ResourceWarning, source=sock, stacklevel=2)


def _closed(flow: Flow, state: int | None, spare: bool, reason: CloseReason) -> ConnectionClosed:
    if state == _CLOSE_WAIT:
        return ConnectionClosed(flow, CloseReason.PEER_CLOSED, False)
    return ConnectionClosed(flow, reason, not (spare and state == _ESTABLISHED and facts.features().linger2))


def _state_before(sock: Gated, lease: Lease, spare: bool) -> int | None:
    """Find the state of the connection, and prepare the close that suits it."""
    try:
        state = options.tcp_state(sock)
        if state == _SYN_SENT:
            # The peer may answer before close(): then it gets a reset, as for an answer that comes after that.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        elif lease.flow is None:
            # It stood, or stood already, although nobody had noted that: its port may stay.
            address, port = from_sockaddr(sock.getsockname())
            lease.flow = Flow(address, port, lease.space.destination) if port else None
        if spare and state == _ESTABLISHED and facts.features().linger2:
            options.skip_time_wait(sock)
    except OSError:
        return None  # closed underneath us: the ledger asks the kernel
    return state
