"""Ways out of an exchange on a connection that threads share: none keeps a sibling, a rival or a reader waiting."""

from __future__ import annotations

import http.client
import threading
import time
import zlib
from typing import Any

import pytest
import urllib3
from faces import Aside, until
from http2_faces import SHORT, Client, client, each_way, serving, talking
from http2_peer import OK, data, goaway, head, settings
from support.programs import Nginx
from support.scripted_h2 import H2Peer
from support.servers import H2Server
from urllib3.exceptions import ClosedPoolError, HTTPError

import fewports

__all__ = ["each_way"]
on_each_way = pytest.mark.usefixtures("each_way")


def failing(made: Client, path: str, **options: Any) -> None:
    with pytest.raises(HTTPError):
        made.get(path, **options)


@on_each_way
def test_an_answer_to_an_upload_that_nobody_reads_on() -> None:
    """A server that has answered, and opens no window, is not waited for: its answer counts (RFC 9113, section 8.1)."""

    def script(peer: H2Peer) -> None:
        peer.generous = False
        peer.greet(window=1000)
        stream = peer.request().stream
        peer.send(head(stream, (":status", "413")), data(stream, b"no", end=True))
        peer.quiet(SHORT)
        peer.serve()

    with talking(script, serving) as made:
        before = time.process_time()
        response = made.request("POST", "/", body=bytes(100_000), timeout=urllib3.Timeout(connect=2, read=2))

        assert (response.status, response.data) == (413, b"no")
        assert time.process_time() - before < 1


@on_each_way
@pytest.mark.parametrize("sent", [settings(streams=100) + goaway(0), settings(streams=0)])
def test_a_server_that_takes_no_request_as_it_greets(sent: bytes) -> None:
    """A request that could not even be sent on the first connection goes out on another one."""

    def closed(peer: H2Peer) -> None:
        peer.send(sent)
        peer.quiet(SHORT)

    with talking(closed, serving) as made:
        assert made.request("POST", "/", body=b"x").data == b"/"
        assert made.opened == 2


@pytest.mark.parametrize("reads", ["for all", "not itself"])
def test_a_shutdown_from_another_thread_wakes_the_reader(reads: str) -> None:
    """response.shutdown() ends a read at once, whether its thread reads for all or another does."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        while True:
            asked = peer.request()
            if asked.path == "/held":
                peer.send(head(asked.stream), data(asked.stream, b"x"))
            elif asked.path == "/hello":
                peer.answer(asked.stream)

    with talking(script) as made:
        made.get("/hello")
        other = None
        if reads == "not itself":
            other = Aside(lambda: failing(made, "/never", timeout=1.5))
            time.sleep(0.1)
        response = made.get("/held", preload_content=False)
        reader = Aside(lambda: response.read(100))
        time.sleep(0.1)
        began = time.monotonic()
        response.shutdown()
        with pytest.raises((HTTPError, ValueError)):
            reader.result(5)

        assert time.monotonic() - began < 1
        if other is not None:
            other.result(5)
        response.close()


def test_a_busy_connection_gives_way() -> None:
    """Who waits for the port of a connection that others keep busy gets it as soon as their requests have ended."""
    book = fewports.Ledger(fewports.Budget(1, wait=5))
    with H2Server(tls=True) as server:
        one = fewports.PoolManager(ledger=book, ca_certs=server.ca_path)
        other = fewports.PoolManager(ledger=book, ca_certs=server.ca_path)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                assert one.request("GET", server.url + "/hello", retries=False).status == 200

        asides = [Aside(work) for _ in range(4)]
        time.sleep(0.2)
        began = time.monotonic()
        response = other.request("GET", server.url + "/hello", retries=False)
        took = time.monotonic() - began
        stop.set()
        for aside in asides:
            aside.result()
        one.clear()
        other.clear()

        assert response.status == 200
        assert took < 2.5
    assert until(lambda: book.usage() == [])


def test_a_closed_pool_gives_no_seat() -> None:
    """A pool that was closed refuses requests, although a response is still under way on its connection."""
    with H2Server() as server:
        pool = fewports.urllib3.HTTPConnectionPool(server.host, server.port, http2=True, retries=False, timeout=3)
        response = pool.urlopen("GET", "/drip?n=5&s=0.02", preload_content=False)
        pool.close()
        with pytest.raises(ClosedPoolError):
            pool.urlopen("GET", "/hello")

        assert response.read()
        response.release_conn()


def test_a_server_that_never_speaks_costs_its_time_once() -> None:
    """Who waits for what another opens waits for no longer than the connect time-out."""

    def silent(peer: H2Peer) -> None:
        peer.quiet(3 * SHORT)

    with talking(*[silent] * 12, timeout=urllib3.Timeout(connect=2 * SHORT, read=1)) as made:
        began = time.monotonic()
        asides = [Aside(lambda: failing(made, "/hello")) for _ in range(6)]
        for aside in asides:
            aside.result()

        assert time.monotonic() - began < 5 * SHORT


def test_who_wraps_http_client_sees_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody has wrapped what http.client sends with, HTTP/2 is not offered: the wrapper is called."""
    seen: list[str] = []
    stock = http.client.HTTPConnection.putrequest

    def putrequest(self: http.client.HTTPConnection, method: str, url: str, *args: object, **more: object) -> None:
        seen.append(url)
        stock(self, method, url, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(http.client.HTTPConnection, "putrequest", putrequest)
    with Nginx(tls=True, http2=True) as server, client(server) as made:
        assert made.get("/hello").version == 11
    assert seen == ["/hello"]


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("amount", [1024, None])
def test_a_piece_of_no_known_length_is_given_when_it_comes(amount: int | None, coded: bool) -> None:
    """stream() gives what is there of a response without Content-Length, as of chunks: an event waits for no other."""
    coder = zlib.compressobj(wbits=31)
    events = [b"data: 1\n\n", b"data: 2\n\n"]
    sent = [coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH) for event in events] if coded else events
    fields = [*OK, ("content-encoding", "gzip")] if coded else OK

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream, *fields), data(stream, sent[0]))
        peer.answer(peer.request().stream)
        peer.send(data(stream, sent[1], end=True))
        peer.serve()

    with talking(script) as made:
        pieces = made.get("/", preload_content=False, timeout=3).stream(amount)

        assert next(pieces) == events[0]
        assert made.get("/next").data == b"ok"
        assert b"".join(pieces) == events[1]
