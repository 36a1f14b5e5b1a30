"""urllib3's connection on a leased port, with our codec between it and its socket.

What http.client knows of a request under way, this class knows under the same names: both are called
HTTPConnection, so that ``self.__state`` here is the one there.

Long, because a connection of urllib3 is one class: how it comes to its socket, and how it uses it.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - else the first request imports it, and a fork meanwhile copies the lock
import errno
import os
import re
import socket
import ssl
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http.client import (  # type: ignore[attr-defined]
    _CS_IDLE,
    _CS_REQ_SENT,
    CannotSendRequest,
    HTTPResponse,
    NotConnected,
    ResponseNotReady,
)
from math import inf
from time import monotonic
from typing import Any, cast

import urllib3
from urllib3.connection import _get_default_user_agent, _ResponseOptions
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import SKIP_HEADER, Timeout, connection

from .. import errors
from ..address import Destination, Origin
from ..events import CloseReason
from ..gated import GatedSocket, close_unfinished, gated, pass_on
from ..http1 import LocalProtocolError, Preset, may_repeat, request_head
from ..kernel import facts, options
from ..ledger.account import Lease
from ..pool import PoolClosed, kept_until
from ..sync.dial import dial, resolve
from ..sync.shared import SharedWire
from ..sync.timer import timer
from ..sync.wire import TOGETHER, Wire
from .framing import FRAMING, own_length, size_of
from .gate import BudgetExhausted, Gate, NoUsableSource, open_gate
from .patched import untouched
from .response import BadLength, BadResponse, Response, receive
from .sharing import Sharing
from .streams import WITHOUT_BODY
from .times import Times

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"))
PRESETS = 16  # different sets of header fields that a connection remembers as bytes
REMEMBERED = 2048  # bytes of such a set at most: there may be thousands of idle connections

# What says that the peer has ended the connection; a time-out does not.
ENDS = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

# A path and query in which urllib3 has nothing to encode, and http.client nothing to refuse.
TARGET = r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-F]{2})*+"
_is_plain_target = re.compile(TARGET).fullmatch

Fields = tuple[tuple[str, str], ...]


class HTTPConnection(Sharing, urllib3.connection.HTTPConnection):
    """urllib3's connection on a leased port.

    It may take over the socket of an idle connection that comes free while it waits for a port.
    """

    gate: Gate = open_gate
    lease: Lease | None = None
    shells: list[HTTPConnection] | None = None  # where its pool keeps those without a socket
    lost: deque[None] | None = None  # is told of its place, if a response has it, and is dropped unread
    idle_since: float = 0.0
    expires: float = inf
    aged: float = inf  # when it is too old; the server may have asked for less
    wait: float | None = None  # seconds in line for a port; None: as long as the budget says
    wire: Wire | None = None
    deadline: float | None = None  # for the response, where the time-out has a total
    when_dialled: Callable[[GatedSocket], object] | None = None  # told of the socket that stands, before TLS
    _dialled: GatedSocket | None = None
    _failure: Exception | None = None
    _sent = False  # something of the request that is under way
    receiving = False  # exchange() has sent it
    outcome: Response | Exception | None = None  # of a request that urllib3 is to go on with
    until: float | None = None  # the deadline of a request that is to be made again
    _unsent = False  # the rest of it
    _misfit = False  # the body was not what the caller's header fields said: the peer may read on, or wait for more
    _streamed = 0  # bytes of that body
    _presets: dict[Fields, Preset] | None = None
    _latest: tuple[tuple[str, str, Fields], tuple[bytes, bytes]] | None = None  # a request without body, and its bytes
    _plain = True  # no subclass has a hand in how requests are sent or responses received
    _http_vsn: int
    _http_vsn_str: str
    __state: str
    __response: Any

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._plain = all(getattr(cls, name) is getattr(HTTPConnection, name) for name in _OVERRIDABLE)

    def __del__(self) -> None:
        # The garbage collector calls, in the middle of anything: no lock may be taken.
        if self.lost is not None:
            self.lost.append(None)
            timer.kick()

    def connect(self) -> None:
        """Connect, or take over an idle connection of the pool that comes free first."""
        if type(self)._new_conn not in OURS:
            super().connect()  # a subclass that opens its own sockets: they are beyond the gate
            return
        try:
            outcome = self._dial()
            while not isinstance(outcome, GatedSocket) and not outcome.alive():
                self._discard(outcome)  # it ended before it was our turn
                outcome = self._dial()
        except Exception as error:
            self._opened(None, failed=True)
            self._failure = error
            super().connect()  # urllib3 cleans up after _new_conn(), which raises it
            raise AssertionError("connect() goes through _new_conn()") from error
        except BaseException:
            self._opened(None)
            raise
        if not isinstance(outcome, GatedSocket):
            self._opened(None)
            if isinstance(outcome, SharedWire):
                self.board(outcome)
            else:
                self._take_over(outcome)
                if self.shells is not None and self.home is not None and len(self.shells) < self.home.limits.kept:
                    self.shells.append(outcome)
            if self.home is not None:
                self.home.adopted()
            return
        self.wire = None
        self._dialled = outcome
        outcome.passing = True
        if outcome.lease is not None and outcome.lease.pressed and facts.features().linger2:
            options.skip_time_wait(outcome)  # if the handshake fails, it is ssl that closes it
        lease = outcome.lease
        try:
            if self.when_dialled is not None:
                self.when_dialled(outcome)
            self._finish_connect()
            outcome.passing = False
            pass_on(outcome, self.sock)
            self.lease = lease
            if self.home is not None:
                self.expires = self.aged = self.home.expiry(monotonic())
                self._share(self.home)
        except BaseException as error:
            outcome.passing = False
            close_unfinished(error)
            outcome.close()  # gives the lease back, if the descriptor has gone elsewhere and is closed
            self._opened(None, failed=isinstance(error, Exception))
            raise

    def close(self) -> None:
        """Close the socket; a response that is under way ends there."""
        self.lease = None
        if self._ticket is not None:
            self._drop_turn()
        self.deadline = self.outcome = self.until = None
        if self.alone:
            self._opened(None)
        rider, self.rider = self.rider, None
        if rider is not None:
            rider.leave()
        self._presets = self._latest = None
        self._unsent = self._misfit = False
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.closed = True
        super().close()

    def end(self, reason: CloseReason) -> None:
        """Close, and say why."""
        if sock := gated(self.sock):
            sock.reason = reason
        self.close()

    def give_way(self) -> None:
        self.end(CloseReason.GAVE_WAY)

    def settled(self) -> bool:
        """Say whether no response is under way, so that another request may follow."""
        wire = self.wire
        if self._misfit or self.__state != _CS_IDLE or (wire is not None and not wire.clean()):
            return False
        response = self.__response  # where http.client read it: for a subclass, or for debuglevel
        return response is None or response.isclosed()

    def leave_to_response(self) -> None:
        """Let the response that is under way have the socket; it is closed when that has been read, or dropped."""
        wire, sock = self.wire, self.sock
        if wire is not None and wire.reader.head is not None and not wire.reader.done:
            wire.parted = True
            self.wire = self.sock = self.lease = None
        elif self.__response is not None:
            self.sock = self.lease = None
            sock.close()
        self.close()

    def heed(self, now: float) -> None:
        """Keep the connection no longer than the server does, as it said with its last response."""
        limit = self.wire.reader.idle_limit if self.wire is not None else None
        self.expires = self.aged if limit is None else kept_until(self.aged, limit, now)

    def alive(self) -> bool:
        """Say whether the connection, which is idle, is still there: nothing came, not even its end."""
        wire = self.wire
        return not connection.is_connection_dropped(self) if wire is None else not wire.closed and wire.silent

    def unanswered(self, method: str, error: Exception) -> bool:
        """Say whether the request that failed may be sent again: it met the end of a connection that was kept.

        Either not a byte of it went out, or it has no more effect twice than once, and not a byte came back.
        """
        if self.rider is not None:
            return self.rider.unanswered(method, error)
        wire = self.wire
        if wire is None or not wire.used or not isinstance(error, ENDS):
            return False  # nothing says that the peer has ended it
        return may_repeat(wire.reader, method, sent=self._sent)

    def putrequest(self, *args: Any, **keywords: Any) -> None:
        """Begin a request, as http.client does; on a connection that is at an end: on a new one."""
        wire = self.wire
        if wire is not None and wire.sock is self.sock and not wire.reader.reusable:
            if not wire.reader.done:
                raise CannotSendRequest("the response before has not been read")
            self.close()
        self._sent = False
        if self.sock is not None:
            self._ready()
        super().putrequest(*args, **keywords)

    def endheaders(self, *args: Any, **keywords: Any) -> None:
        """End the head of a request, as http.client does."""
        super().endheaders(*args, **keywords)
        self._streamed = 0

    def send(self, data: Any) -> None:
        """Send *data*, as http.client does."""
        if self.sock is None:
            self._open()
            self._ready()
        wire = self._wired()
        wire.hurry()
        self._streamed += len(data) if type(data) is bytes else size_of(data)
        if self._sent or type(data) is not bytes or self.debuglevel > 0:
            try:
                super().send(data)
            except ssl.SSLEOFError as error:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error  # after which urllib3 reads
            self._sent = True
        else:
            self._send(wire, data, b"")

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
        preload_content: bool = True,
        decode_content: bool = True,
        enforce_content_length: bool = True,
    ) -> None:
        """Send a request, with the arguments and results of urllib3."""
        self._sent = False
        if self._misfit:
            self.close()
        if self.rider is None and self.sock is None and self.home is not None and self.home.may_share:
            self._open()
        if self.rider is not None:
            self._response_options = _ResponseOptions(
                method, url, preload_content, decode_content, enforce_content_length
            )
            self._sent = not (body is None or isinstance(body, (bytes, str)))
            timeout = _seconds(self.timeout)
            try:
                self.rider.request(method, url, body, headers or {}, self.blocksize, timeout, self.deadline)
            finally:
                self._sent = self._sent and self.rider.begun
            return
        self._unsent = True
        data = None
        plain = self._plain and not chunked and untouched()
        if plain and self.__state == _CS_IDLE and (self.sock is None or self.settled()):
            data = self.encode(method, url, body, headers or {})
        if data is None:
            own = own_length(headers or {}, chunked)
            super().request(
                method,
                url,
                body=body,
                headers=headers,
                chunked=chunked,
                preload_content=preload_content,
                decode_content=decode_content,
                enforce_content_length=enforce_content_length,
            )
            self._misfit = own is not None and own != self._streamed
        else:
            if self.sock is None:
                self._open()
            self._response_options = _ResponseOptions(
                method, url, preload_content, decode_content, enforce_content_length
            )
            self._method = method
            wire = self._wired()
            wire.patience(_seconds(self.timeout))
            wire.deadline = self.deadline
            wire.reader.begin(method, sending=True)
            self.__state = _CS_REQ_SENT
            self._send(wire, *data)
            wire.reader.sent()
        self._unsent = False

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """Receive a response, with the results of urllib3."""
        asked = self._response_options
        if self.rider is not None and asked is not None:
            self._response_options = None
            return self.rider.receive(asked, _seconds(self.timeout))
        own_way = self.debuglevel > 0 or self.response_class is not HTTPResponse or not untouched()
        if own_way or asked is None or self.sock is None:
            self.wire = None  # http.client reads, and sets the time-outs
            return super().getresponse()
        self._response_options = None
        if self.__state != _CS_REQ_SENT:
            raise ResponseNotReady(self.__state)
        wire = self._wired()
        wire.patience(_seconds(self.timeout))
        wire.deadline = self.deadline
        if wire.reader.done:
            wire.reader.begin(self._method, sending=self._unsent or self._misfit)
        try:
            response = receive(wire, asked, self._http_vsn_str)
        except (ConnectionError, BadResponse, BadLength) as error:
            if not self.unanswered(self._method, error):  # who asks that next has yet to see it
                self.close()
            raise
        self.__state = _CS_IDLE
        if not wire.reader.persists:
            self.sock = self.wire = None  # the response has it
            self.close()
        return response

    def exchange(self, data: Any, asked: Any, times: Times) -> Response:
        """Send the request *data* and receive its response, on a connection that stands.

        ``receiving`` says afterwards how far it came.
        """
        connect, read, deadline = times  # in one go: each look-up in a named tuple is a call
        if self.rider is not None:
            self.receiving = False
            self.rider.send(data, asked.request_method, connect, deadline)
            self.receiving = True
            self.timeout = read
            return self.rider.receive(asked, read)
        head, rest = data
        wire = self.wire
        if wire is None or wire.sock is not self.sock:
            wire = self._wired()
        wire.patience(connect)
        wire.deadline = deadline
        if deadline is not None:
            wire.hurry()
        self.receiving = False
        wire.reader.begin(asked.request_method)
        try:
            self._send(wire, head, rest)
        except ConnectionError:
            # It may have answered before it closed, as urllib3 says. But where nothing went out, that was no answer.
            if not self._sent:
                raise
        self.receiving = True
        self.timeout = read
        if read != connect or deadline is not None:
            wire.patience(read)
        response = receive(wire, asked, "HTTP/1.1")
        if not wire.reader.persists:
            self.sock = self.wire = None
            self.close()
        return response

    def encode(self, method: str, url: str, body: Any, headers: Mapping[str, str]) -> Any:
        """Return a request as bytes, in two parts if it is large; for HTTP/2 as fields and a body.

        None if there is anything uncommon in it: http.client sees to that.
        """
        if self.rider is not None:
            plain = method in _METHODS and _is_plain_target(url)
            return self.rider.encode(method, url, body, headers) if plain else None
        if self._http_vsn != 11 or self.debuglevel > 0 or self.response_class is not HTTPResponse:
            return None
        key = tuple(headers.items())
        latest, request = self._latest, (method, url, key)
        if latest is not None and body is None and latest[0] == request:
            return latest[1]
        if method not in _METHODS or not _is_plain_target(url):
            return None
        presets = self._presets
        if presets is None:
            presets = self._presets = {}
        try:
            preset = presets.get(key) or self._remember(presets, key)
        except TypeError:  # a value without hash
            return None
        if preset is None:
            return None
        if body is None:
            if method in WITHOUT_BODY:
                data = request_head(method, url, (), preset), b""
                if len(data[0]) <= REMEMBERED:
                    self._latest = request, data
                return data
            body = b""
        elif type(body) is str:
            body = body.encode()
        elif type(body) is not bytes:
            return None
        head = request_head(method, url, (), preset, len(body))
        return (head + body, b"") if len(body) <= TOGETHER else (head, body)

    def fileno(self) -> int:
        sock = self.sock  # read once: another thread may close
        return sock.fileno() if sock is not None else -1

    def _new_conn(self) -> socket.socket:
        sock, self._dialled = self._dialled, None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if sock is None:  # called by a subclass, which has no use for a whole connection
            home, self.home = self.home, None
            try:
                sock = cast(GatedSocket, self._dial())
            finally:
                self.home = home
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock

    @property
    def peer(self) -> Origin:
        """What to connect to: the host, or its proxy."""
        scheme = "https" if isinstance(self, urllib3.connection.HTTPSConnection) else "http"
        return Origin(scheme, self._dns_host, self.port)

    def _dial(self) -> GatedSocket | Kept:
        peer = self.peer
        try:
            if self.home is not None and self.home.merges and not self.alone:
                found = self._find_way(self.home)
                if found is not None:
                    return found
            destinations = _resolve(peer.host, peer.port)
            to = self.gate.to(peer, self.source_address)
            ticket, self._ticket = self._ticket, None
            return dial(
                to,
                destinations,
                timeout=_seconds(self.timeout),
                wait=self.wait,
                options=self.socket_options or (),
                pool=self.home,
                ticket=ticket,
            )
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            message = f"Connection to {self.host} timed out. (connect timeout={self.timeout})"
            raise ConnectTimeoutError(self, message) from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
        except errors.BudgetExhausted as error:
            raise BudgetExhausted(error, self) from error
        except errors.NoUsableSource as error:
            if self.source_address:  # urllib3's own argument, urllib3's own exception
                raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
            raise NoUsableSource(error.destination, error.reasons) from error
        except PoolClosed as error:
            raise ClosedPoolError(cast(Any, self), "Pool is closed.") from error

    def _take_over(self, other: HTTPConnection) -> None:
        """Go on with the socket of *other*, which came back to the pool while this one waited."""
        self.sock, other.sock = other.sock, None
        self.lease, other.lease = other.lease, None
        self.wire, other.wire = other.wire, None
        self.expires, self.aged = other.expires, other.aged
        self.is_verified = other.is_verified
        self.proxy_is_verified = other.proxy_is_verified
        self._has_connected_to_proxy = other._has_connected_to_proxy
        self._wired().patience(_seconds(self.timeout))

    def _wired(self) -> Wire:
        wire = self.wire
        if wire is None or wire.sock is not self.sock:
            wire = self.wire = Wire(self.sock)
        return wire

    def _ready(self) -> None:
        """Give the socket the time-outs of the request that begins; urllib3 may have set others."""
        wire = self._wired()
        wire.unknown()
        wire.patience(_seconds(self.timeout))
        wire.deadline = self.deadline

    def _send(self, wire: Wire, data: bytes, rest: bytes) -> None:
        sys.audit("http.client.send", self, data)
        self._sent = True
        if not wire.send(data):
            self._sent = False
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if rest:
            sys.audit("http.client.send", self, rest)
            wire.put(rest)

    def _open(self) -> None:
        if not self.auto_open:
            raise NotConnected
        self.connect()

    def _remember(self, presets: dict[Fields, Preset], fields: Fields) -> Preset | None:
        """Return Host, what urllib3 adds, and *fields* as bytes; None if any of it is uncommon."""
        host, port = self.host, self.port
        if self._tunnel_host is not None:
            host, port = self._tunnel_host, cast(int, self._tunnel_port)
        if not host.isascii():
            return None
        if ":" in host:
            host = f"[{host.partition('%')[0]}]"
        given = {"host": ("Host", host if port == self.default_port else f"{host}:{port}")}
        given["accept-encoding"] = ("Accept-Encoding", "identity")
        given["user-agent"] = ("User-Agent", _get_default_user_agent())
        for name, value in fields:
            if type(name) is not str or type(value) is not str or value == SKIP_HEADER or name.lower() in FRAMING:
                return None
            given.pop(name.lower(), None)
        try:
            preset = Preset([*given.values(), *fields])
        except LocalProtocolError:
            return None
        if len(preset.lines) <= REMEMBERED:
            if len(presets) >= PRESETS:
                presets.clear()
            presets[fields] = preset
        return preset


_OVERRIDABLE = (
    "connect",
    "encode",
    "endheaders",
    "exchange",
    "getresponse",
    "putheader",
    "putrequest",
    "request",
    "send",
)
OURS: set[Callable[..., socket.socket]] = {HTTPConnection._new_conn}  # and those that build on it


class HTTPSConnection(HTTPConnection, urllib3.connection.HTTPSConnection):
    """urllib3's TLS connection on a leased port."""


Kept = HTTPConnection | SharedWire


def _resolve(host: str, port: int) -> Iterator[Destination]:
    try:
        host.encode("idna")
    except UnicodeError:
        raise LocationParseError(f"'{host}', label empty or too long") from None
    yield from resolve(host.strip("[]"), port, connection.allowed_gai_family())


def _seconds(timeout: object) -> float | None:
    return Timeout.resolve_default_timeout(cast(Any, timeout))
