"""What urllib3 says of pools, bodies and retries holds over HTTP/2 too: places, bounds, repeats of bodies, closing."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Iterator

import pytest
import urllib3
from faces import Aside, counts, states, until
from http2_faces import client, open_rows
from support.http_server import HELLO
from support.servers import H2Server
from urllib3.exceptions import EmptyPoolError, MaxRetryError, ReadTimeoutError

import fewports
from fewports.events import CloseReason, ConnectionClosed
from fewports.urllib3 import HTTPSConnectionPool


@pytest.fixture
def server() -> Iterator[H2Server]:
    with H2Server(tls=True) as running:
        yield running


def test_a_bounded_pool_bounds_the_streams(server: H2Server) -> None:
    """With block=True no more than maxsize callers are at the server at once, on one connection; the others wait."""
    with client(server, maxsize=2, block=True) as made:
        asides = [Aside(lambda: made.get("/meet?n=2").status) for _ in range(8)]

        assert [aside.result() for aside in asides] == [200] * 8
        assert server.stats()["most_running"] == 2
        assert server.stats()["accepted"] == 1


def test_a_stream_that_is_dropped_gives_its_place_back(server: H2Server) -> None:
    """Who waits in line gets the place of a response that nobody reads, at once; and the next one does."""
    with client(server, maxsize=1, block=True) as made:
        for _ in range(3):
            response = made.get("/bytes?n=20000000", preload_content=False)
            aside = Aside(lambda: made.get("/hello", pool_timeout=5).status)
            aside.join(0.05)
            assert aside.is_alive()
            began = time.monotonic()
            del response

            assert aside.result() == 200
            assert time.monotonic() - began < 3
        assert server.stats()["accepted"] == 1
        assert until(lambda: made.counts == (0, 1, 0))


def test_a_wait_for_a_place_ends(server: H2Server) -> None:
    """pool_timeout= is heeded where all places are taken."""
    with client(server, maxsize=1, block=True) as made:
        held = Aside(lambda: made.get("/meet?n=2").status)
        assert until(lambda: server.stats()["running"] == 1)
        with pytest.raises(EmptyPoolError):
            made.get("/hello", pool_timeout=0.1)

        with fewports.PoolManager(ca_certs=server.ca_path, ledger=fewports.Ledger()) as other:
            assert other.request("GET", server.url + "/meet?n=2").status == held.result() == 200
        assert made.get("/hello").status == 200


def test_a_pool_of_one_host(server: H2Server) -> None:
    """HTTPSConnectionPool by itself speaks HTTP/2 too."""
    book = fewports.Ledger()
    with HTTPSConnectionPool(server.host, server.port, ledger=book, ca_certs=server.ca_path) as pool:
        assert pool.request("GET", "/hello").version == 20
        assert pool.urlopen("GET", "/hello").data == HELLO

        assert counts(book) == (0, 1, 0)
    assert until(lambda: book.usage() == [])


def test_a_small_pool_shares_one_connection(server: H2Server) -> None:
    """maxsize=1, urllib3's default, keeps nobody from the shared connection: nothing is discarded."""
    with client(server) as made:
        for _ in range(3):
            asides = [Aside(lambda: made.get("/slow?s=0.05").status) for _ in range(20)]
            assert [aside.result() for aside in asides] == [200] * 20

        assert server.stats()["accepted"] == 1


@pytest.mark.parametrize("end", ["close", "read", "dropped"])
def test_unread_responses_hold_their_streams(end: str) -> None:
    """With two streams and two responses unread a third request waits; it is served when one of them has ended."""
    with H2Server(tls=True, streams=2) as server, client(server, budget=1) as made:
        responses = [made.get("/bytes?n=20000000", preload_content=False) for _ in range(2)]
        third = Aside(lambda: made.get("/hello").data)
        third.join(0.2)
        assert third.is_alive()
        if end == "close":
            responses.pop().close()
        elif end == "read":
            assert len(responses.pop().read()) == 20_000_000
        else:
            responses.clear()
            gc.collect()

        assert third.result(3) == HELLO
        assert server.stats()["accepted"] == 1
        for response in responses:
            response.close()


def test_release_and_drain(server: H2Server) -> None:
    """drain_conn() reads the rest; release_conn() gives up what is unread; the connection serves the next."""
    with client(server) as made:
        response = made.get("/bytes?n=100000", preload_content=False)
        response.drain_conn()
        response.release_conn()
        response = made.get("/bytes?n=10000000", preload_content=False)
        response.release_conn()
        del response
        gc.collect()

        assert made.get("/hello").data == HELLO
        assert server.stats()["accepted"] == 1
        assert until(lambda: made.counts == (0, 1, 0))


def test_a_redirect_repeats_the_body(server: H2Server) -> None:
    """307 sends the body again."""
    with client(server) as made:
        response = made.request("POST", "/redirect?code=307&to=/echo", body=b"x" * 1000, retries=None)

        assert response.data == b"x" * 1000


def test_a_retry_rewinds_the_body(server: H2Server) -> None:
    """A file is sent again from where it began, when Retry has the request made again."""
    retry = urllib3.Retry(1, allowed_methods=["POST"], backoff_factor=0)
    with client(server) as made:
        file = io.BytesIO(b"skipped" + b"x" * 1000)
        file.seek(7)
        response = made.request("POST", "/reset?code=2&times=1", body=file, retries=retry, headers={"x-id": "a"})

        assert response.status == 200
        assert server.stats()["processed"] == {"a": 2}
        assert server.stats()["received"] == {"a": [1000, 1000]}


def test_an_early_answer_to_a_large_upload(server: H2Server) -> None:
    """A server that answers before it has the body is heard, and the rest of the body is not sent."""
    with client(server) as made:
        response = made.request("POST", "/early", body=bytes(20_000_000))

        assert (response.status, response.data) == (413, b"too much")
        assert made.get("/hello").data == HELLO


def test_retries_of_urllib3(server: H2Server) -> None:
    """A stream that is reset counts as a failed read: as many tries as Retry says, then MaxRetryError."""
    with client(server) as made:
        retry = urllib3.Retry(2, backoff_factor=0)
        with pytest.raises(MaxRetryError):
            made.get("/reset?code=2", retries=retry, headers={"x-id": "get"})
        response = made.get("/reset?code=2&times=2", retries=retry, headers={"x-id": "twice"})

        assert response.status == 200
        assert server.stats()["processed"] == {"get": 3, "twice": 3}
        assert server.stats()["accepted"] == 1


def test_retries_after_a_time_out(server: H2Server) -> None:
    """A read time-out is retried where Retry says so, on the same connection."""
    with client(server) as made:
        with pytest.raises((MaxRetryError, ReadTimeoutError)):
            made.get(
                "/slow?s=3",
                retries=urllib3.Retry(2, backoff_factor=0),
                timeout=urllib3.Timeout(connect=5, read=0.1),
                headers={"x-id": "slow"},
            )

        assert until(lambda: server.stats()["processed"] == {"slow": 3})
        assert server.stats()["accepted"] == 1
        assert until(lambda: server.stats()["running"] == 0)


def test_1xx_and_trailers_disturb_nobody(server: H2Server) -> None:
    """103 before a response, 100 before an upload, a trailer after a body: the response is the one that counts."""
    with client(server) as made:
        assert made.get("/interim?n=3").status == 200
        assert made.request("POST", "/echo", body=b"x" * 10, headers={"Expect": "100-continue"}).data == b"x" * 10
        assert made.get("/trailer").data == b"with a trailer"
        assert made.get("/trailer", preload_content=False).read() == b"with a trailer"
        assert server.stats()["flaws"] == []


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
def test_to_clear_leaves_nothing(tls: bool) -> None:
    """clear() closes a quiet shared connection without TIME_WAIT, and tells the server."""
    with H2Server(tls=tls) as server, client(server) as made:
        made.get("/hello")
        made.http.clear()

        assert until(lambda: states(server.port) == {})
        assert [event.reason for event in made.events.of(ConnectionClosed)] == [CloseReason.POOL_CLOSED]
        assert made.book.usage() == []


def test_a_manager_that_is_dropped(server: H2Server) -> None:
    """Nobody refers to the manager any more: its connection is closed, and a response of it is read to its end."""
    book = fewports.Ledger()
    http = fewports.PoolManager(ledger=book, ca_certs=server.ca_path)
    response = http.request("GET", server.url + "/bytes?n=10000000", preload_content=False)
    del http
    gc.collect()
    assert len(response.read()) == 10_000_000
    del response
    gc.collect()

    assert until(lambda: counts(book)[:2] == (0, 0))
    assert until(lambda: not open_rows(server.port))


def test_origins_are_apart() -> None:
    """Two origins have a connection each; num_pools ends that of the one used longest ago."""
    with H2Server(tls=True) as one, H2Server(tls=True) as two, client(one, num_pools=1) as made:
        for server in (one, two, one):
            assert made.http.request("GET", server.url + "/hello").data == HELLO

        assert (one.stats()["accepted"], two.stats()["accepted"]) == (2, 1)
        assert until(lambda: made.counts[:2] == (0, 1))


def test_num_requests_and_connections(server: H2Server) -> None:
    """The pool counts requests as urllib3's does."""
    with client(server) as made:
        for _ in range(5):
            made.get("/hello")
        pool = made.http.connection_from_url(server.url)

        assert pool.num_requests == 5
