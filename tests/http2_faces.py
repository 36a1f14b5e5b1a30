"""What the tests of HTTP/2 through the faces stand on: a client that must leave nothing, and servers of each kind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from bridged import BridgedManager, portal
from faces import counts, until
from support.programs import Nghttpd, Nginx
from support.sampler import client_rows
from support.scripted import Scripted
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import H2Server, Listening

import fewports
from fewports.events import ConnectionOpened
from fewports.testing import Captured

SHORT = 0.3  # seconds: a time-out that is meant to pass
PATIENT = 10.0  # seconds: one that is not
NO_RETRY: dict[str, Any] = {"retries": False}

Where = Listening | Scripted
Script = Callable[[H2Peer], None]


way = "threads"  # or the loop in which clients run; see the fixture


@pytest.fixture(params=["threads", "asyncio", "uvloop", "trio"])
def each_way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on threads and on each loop."""
    global way
    way = request.param
    if way != "threads":
        portal(way)  # its thread is none that a client leaves
    yield way
    way = "threads"


def manager(**options: Any) -> Any:
    """Return a manager for the way that the test runs."""
    return fewports.PoolManager(**options) if way == "threads" else BridgedManager(way, **options)


class Client:
    """A manager with a ledger of its own, and where its requests go."""

    def __init__(self, server: Where, **options: Any) -> None:
        self.server = server
        self.book: fewports.Ledger = options.pop("ledger", None) or fewports.Ledger()
        self.events = Captured()
        self.book.subscribe(self.events)
        self.url = server.url
        tls = self.url.startswith("https")
        options.setdefault("http2", "auto" if tls else True)
        options.setdefault("timeout", urllib3.Timeout(connect=PATIENT, read=PATIENT))
        if tls:
            options.setdefault("ca_certs", server.ca_path)  # type: ignore[union-attr]
        self.http = manager(ledger=self.book, **options)

    def get(self, path: str = "/hello", **options: Any) -> Any:
        return self.request("GET", path, **options)

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Make a request, without urllib3's retries unless *retries* are given."""
        return self.http.request(method, self.url + path, **{**NO_RETRY, **options})

    @property
    def opened(self) -> int:
        """How many connections were opened so far."""
        return len(self.events.of(ConnectionOpened))

    @property
    def counts(self) -> tuple[int, int, int]:
        return counts(self.book)


@contextlib.contextmanager
def client(server: Where, **options: Any) -> Iterator[Client]:
    """Give a client; after the block no thread, no lease, no place in line and no socket of it is left."""
    before = set(threading.enumerate())
    made = Client(server, **options)
    try:
        yield made
    finally:
        made.http.clear()

    assert until(lambda: made.counts[:2] == (0, 0)), made.book.usage()
    assert all(usage.waiting == 0 for usage in made.book.usage())
    assert until(lambda: not open_rows(server.port)), open_rows(server.port)
    assert until(lambda: not left_threads(before, server)), left_threads(before, server)


def open_rows(port: int) -> list[str]:
    """Return the states of the client's sockets towards *port* that somebody has still open."""
    return [row.state for row in client_rows(port) if row.state in ("ESTABLISHED", "CLOSE_WAIT", "SYN_SENT")]


def left_threads(before: set[threading.Thread], server: Where) -> list[str]:
    own = getattr(server, "_threads", ())  # a scripted server has one for each connection
    return [
        thread.name
        for thread in threading.enumerate()
        if thread not in before and thread not in own and thread.name != "fewports-timer"
    ]


@contextlib.contextmanager
def talking(*scripts: Script, tls: bool = False, alpn: str | None = "h2", **options: Any) -> Iterator[Client]:
    """Give a client of a scripted server, whose connections are served by *scripts*; it must leave nothing."""
    with ScriptedH2(*scripts, tls=tls, alpn=alpn) as server, client(server, **options) as made:
        yield made


def serving(peer: H2Peer) -> None:
    """Answer every request with its path."""
    peer.greet()
    peer.serve()


SERVERS: dict[str, Callable[..., Listening]] = {"nginx": Nginx, "nghttpd": Nghttpd, "h2": H2Server}


def running(name: str, *, tls: bool, app: str | None = None, **options: Any) -> Any:
    """Return a server of that kind that speaks HTTP/2, not started; *app* is what nginx passes requests on to."""
    if name == "nginx":
        return Nginx(tls=tls, http2=True, app=app, **options)
    return SERVERS[name](tls=tls, **options)
