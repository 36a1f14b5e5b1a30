"""Many threads on few HTTP/2 connections: how many ports, who waits for a stream, and who is in whose way.

FEWPORTS_FULL=1 makes the large ones as large as they are meant: 500 threads with 20 requests each.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from faces import Aside, counts, until, waiting
from http2_faces import PATIENT, client, each_way, open_rows
from support.http_server import HELLO
from support.programs import BIG, Nginx
from support.sampler import KernelSampler
from support.servers import H2Server, HttpServer
from test_crowd import at_once

import fewports
import fewports.requests
from fewports.events import ConnectionRetired

__all__ = ["each_way"]
on_each_way = pytest.mark.usefixtures("each_way")
FULL = os.environ.get("FEWPORTS_FULL") == "1"
THREADS, REQUESTS = (500, 20) if FULL else (500, 4)


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    with Nginx(tls=True, http2=True) as running:
        yield running


@pytest.fixture
def slow() -> Iterator[H2Server]:
    with H2Server(tls=True) as running:
        yield running


def crowd(
    server: Nginx, book: fewports.Ledger, at_the_server: int, **options: object
) -> tuple[list[BaseException], KernelSampler]:
    """Have THREADS threads make REQUESTS each with one session of requests, so many of them under way at once."""
    start = threading.Barrier(THREADS)
    with fewports.requests.Session(ledger=book, **options) as session, KernelSampler(server.port) as kernel:
        session.verify = server.ca_path

        def work(_: int) -> None:
            start.wait(PATIENT)
            assert session.get(f"{server.url}/meet?n={at_the_server}", timeout=30).status_code == 200
            for _ in range(REQUESTS - 1):
                response = session.get(server.url + "/hello", timeout=30)
                assert (response.status_code, response.content) == (200, HELLO)

        raised = at_once(THREADS, work)
        assert counts(book)[0] == 0
    return raised, kernel


@pytest.mark.parametrize(("streams", "budget", "ports"), [(600, None, 1), (250, None, 2), (100, 1, 1)])
def test_five_hundred_threads(streams: int, budget: int | None, ports: int) -> None:
    """500 threads of requests are served on one port where the server allows so many streams, on two where it allows
    250, and on one within a budget of one: by the kernel's count, and nothing fails."""
    book = fewports.Ledger()
    with HttpServer() as app, Nginx(tls=True, http2=True, streams=streams, app=app.url) as server:
        raised, kernel = crowd(
            server, book, min(THREADS, streams * ports), **({} if budget is None else {"budget": budget})
        )

        assert raised == []
        assert kernel.peak == ports
        assert server.accepted() == ports
        assert until(lambda: not open_rows(server.port))


@on_each_way
def test_a_cold_origin_takes_one_port(slow: H2Server) -> None:
    """Sixteen threads that start together where nobody has been before dial once."""
    start = threading.Barrier(16)
    with client(slow) as made, KernelSampler(slow.port) as kernel:

        def work(_: int) -> None:
            start.wait(PATIENT)
            assert made.get("/slow?s=0.05").status == 200

        assert at_once(16, work) == []
        assert slow.stats()["accepted"] == 1

    assert kernel.peak == 1


@on_each_way
def test_streams_that_run_out_take_a_second_port() -> None:
    """With 10 streams a connection, 25 requests at once take three ports, and give no error."""
    with H2Server(tls=True, streams=10) as server, client(server) as made:
        asides = [Aside(lambda: made.get("/meet?n=25").status) for _ in range(25)]

        assert [aside.result() for aside in asides] == [200] * 25
        assert server.stats()["accepted"] == 3
        assert server.stats()["most_streams"] == 10


@on_each_way
def test_streams_that_run_out_within_a_budget() -> None:
    """With 10 streams and a budget of one port, 30 requests take turns: three times as long, one port, no error."""
    with H2Server(tls=True, streams=10) as server, client(server, budget=1) as made:
        began = time.monotonic()
        asides = [Aside(lambda: made.get("/slow?s=0.2").status) for _ in range(30)]

        assert [aside.result() for aside in asides] == [200] * 30
        assert 0.6 <= time.monotonic() - began < 5
        assert server.stats()["accepted"] == 1
        assert server.stats()["most_running"] == 10


@on_each_way
def test_whoever_waits_for_a_stream_is_served_in_order() -> None:
    """With one stream in all, those who came first are served first."""
    with H2Server(tls=True, streams=1) as server, client(server, budget=1) as made:
        made.get("/hello")

        asides = []
        for number in range(6):
            asides.append(Aside(lambda number=number: made.get("/slow?s=0.1", headers={"x-id": str(number)})))
            assert until(lambda number=number: server.stats()["requests"] + waiting(made.book) == 2 + number)
        for aside in asides:
            aside.result()

        assert list(server.stats()["processed"]) == list(map(str, range(6)))


@on_each_way
def test_a_wait_for_a_stream_ends_in_time() -> None:
    """A budget's wait counts for streams as for ports: then BudgetExhausted, and the place in line is given back."""
    budget = fewports.Budget(1, wait=0.2)
    with H2Server(tls=True, streams=1) as server, client(server, budget=budget) as made:
        held = Aside(lambda: made.get("/meet?n=2").status)
        assert until(lambda: server.stats()["running"] == 1)
        began = time.monotonic()
        with pytest.raises(fewports.BudgetExhausted):
            made.get("/hello")

        assert 0.15 < time.monotonic() - began < 3
        assert server.stats()["accepted"] == 1
        with fewports.PoolManager(ca_certs=server.ca_path, ledger=fewports.Ledger()) as other:
            assert other.request("GET", server.url + "/meet?n=2").status == held.result() == 200
        assert made.get("/hello").status == 200
        assert made.opened == 1


@on_each_way
def test_a_caller_that_stops_reading_slows_nobody(nginx: Nginx) -> None:
    """Eight large responses that nobody reads leave the connection to others: small ones and a whole download."""
    with client(nginx) as made:
        unread = [made.get("/big", preload_content=False) for _ in range(8)]
        began = time.monotonic()
        assert {made.get("/hello").status for _ in range(100)} == {200}
        whole = made.get("/big", headers={"Range": "bytes=0-29999999"}, preload_content=False)
        assert sum(map(len, whole.stream(1 << 20))) == 30_000_000

        assert time.monotonic() - began < 4
        assert made.opened == 1
        for response in unread:
            response.close()
        assert until(lambda: made.counts == (0, 1, 0))


@on_each_way
def test_a_slow_reader_gets_all_of_it(nginx: Nginx) -> None:
    """A response that is read late and in small pieces arrives whole, while others come and go."""
    with client(nginx) as made:
        slow = made.get("/big", headers={"Range": "bytes=0-9999999"}, preload_content=False)
        got = 0
        while piece := slow.read(1_000_000):
            got += len(piece)
            assert made.get("/hello").status == 200

        assert got == 10_000_000
        assert made.opened == 1


@on_each_way
def test_downloads_share_fairly(nginx: Nginx) -> None:
    """Eight downloads that begin together: when the first of them is whole, each of the others has half at least."""
    size = 40_000_000
    progress = [0] * 8
    at_first: list[list[int]] = []
    start = threading.Barrier(8)
    with client(nginx) as made:

        def download(number: int) -> None:
            response = made.get("/big", headers={"Range": f"bytes=0-{size - 1}"}, preload_content=False)
            start.wait(PATIENT)
            for piece in response.stream(1 << 16):
                progress[number] += len(piece)
            at_first.append(progress[:])

        assert at_once(8, download) == []
        assert progress == [size] * 8
        assert min(at_first[0]) > size // 2, at_first[0]
        assert made.opened == 1


def test_a_whole_download(nginx: Nginx) -> None:
    """A hundred million bytes arrive, read at once."""
    with client(nginx) as made:
        assert len(made.get("/big").data) == BIG


@on_each_way
def test_small_requests_beside_a_download(nginx: Nginx) -> None:
    """A download by one thread, as fast as it goes, leaves small requests of another quick."""
    with client(nginx) as made:

        def download() -> int:
            return sum(map(len, made.get("/big", preload_content=False).stream(1 << 16)))

        large = Aside(download)
        times = []
        while large.is_alive() and len(times) < 1000:
            began = time.monotonic()
            assert made.get("/hello").status == 200
            times.append(time.monotonic() - began)

        assert large.result(30) == BIG
        assert sorted(times)[len(times) // 2] < 0.25
        assert made.opened == 1


@pytest.mark.parametrize("leader", [True, False], ids=["reads for all", "others read"])
def test_keyboard_interrupt_in_a_waiting_caller(slow: H2Server, leader: bool) -> None:
    """Ctrl-C while a caller waits ends its own stream; whoever else is on the connection is served."""
    with client(slow) as made:
        made.get("/hello")
        siblings = []

        def begin() -> None:
            siblings.extend(Aside(lambda: made.get("/slow?s=0.6").status) for _ in range(3))

        if leader:
            later = threading.Timer(0.1, begin)
            later.start()
        else:
            begin()
            assert until(lambda: slow.stats()["running"] == 3)
        main = threading.main_thread().ident
        assert main is not None
        interrupt = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            made.get("/slow?s=5")
        interrupt.join()
        if leader:
            later.join()

        assert [sibling.result() for sibling in siblings] == [200] * 3
        assert made.get("/hello").status == 200
        assert until(lambda: slow.stats()["resets"] == [8])
        assert slow.stats()["accepted"] == 1
        assert until(lambda: made.counts == (0, 1, 0))


@on_each_way
def test_leaving_tells_the_server(slow: H2Server) -> None:
    """A response that is left unread, in whatever way, resets its stream with CANCEL and nothing else."""
    with client(slow) as made:
        made.get("/bytes?n=10000000", preload_content=False).close()
        assert until(lambda: slow.stats()["resets"] == [8])
        response = made.get("/bytes?n=10000000", preload_content=False)
        response.read(100)
        del response
        assert until(lambda: slow.stats()["resets"] == [8, 8])
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            made.get("/slow?s=5", timeout=0.1)
        assert until(lambda: slow.stats()["resets"] == [8, 8, 8])

        assert made.get("/hello").status == 200
        assert slow.stats()["accepted"] == 1
        assert until(lambda: slow.stats()["running"] == 0)


def test_a_whole_response_needs_no_reset(slow: H2Server) -> None:
    """Where all has come, read or not, there is nothing to reset."""
    with client(slow) as made:
        for _ in range(3):
            response = made.get("/hello", preload_content=False)
            made.get("/hello")  # meanwhile the first is here
            response.close()

        assert slow.stats()["resets"] == []
        assert slow.stats()["flaws"] == []


@on_each_way
def test_a_crowd_with_time_outs(slow: H2Server) -> None:
    """Forty threads of which every other gives up early: the connection lives, and every stream comes back."""
    with client(slow, budget=1) as made:

        def work(number: int) -> None:
            for turn in range(5):
                if (number + turn) % 2:
                    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
                        made.get("/slow?s=3", timeout=urllib3.Timeout(connect=30, read=0.1))
                else:
                    assert made.get("/slow?s=0.02").status == 200

        assert at_once(40, work) == []
        assert until(lambda: made.counts == (0, 1, 0))
        # All 128 streams are free again.
        asides = [Aside(lambda: made.get("/meet?n=128").status) for _ in range(128)]
        assert [aside.result() for aside in asides] == [200] * 128
        assert slow.stats()["accepted"] == 1
        assert slow.stats()["most_streams"] == 128
        assert slow.stats()["flaws"] == []


@on_each_way
def test_a_crowd_that_leaves_early(slow: H2Server) -> None:
    """Streams that are left in mid-body by many threads at once leave the connection whole, and its windows open."""
    with client(slow, budget=1) as made:

        def work(number: int) -> None:
            for _ in range(5):
                response = made.get("/bytes?n=3000000", preload_content=False)
                response.read(1 + 1000 * number)
                response.close()

        assert at_once(20, work) == []
        assert len(made.get("/bytes?n=5000000").data) == 5_000_000
        assert slow.stats()["flaws"] == []
        assert slow.stats()["accepted"] == 1


@on_each_way
def test_every_caller_gets_its_own_response(slow: H2Server) -> None:
    """A thousand uploads by 20 threads, each of another size and content, come back to whom they belong."""
    with client(slow) as made, ThreadPoolExecutor(20) as threads:

        def work(number: int) -> bool:
            body = b"%d," % number * (number % 700 + 1)
            return bool(made.request("POST", "/echo", body=body).data == body)

        assert all(threads.map(work, range(1000)))
        assert slow.stats()["flaws"] == []


@on_each_way
def test_a_pool_that_is_cleared_while_requests_run(slow: H2Server) -> None:
    """clear() lets those under way finish; the connection ends with the last of them, and the next has another."""
    with client(slow) as made:
        asides = [Aside(lambda: made.get("/meet?n=6").status) for _ in range(5)]
        assert until(lambda: slow.stats()["running"] == 5)
        made.http.clear()
        assert made.get("/meet?n=6").status == 200

        assert [aside.result() for aside in asides] == [200] * 5
        assert until(lambda: made.counts[:2] == (0, 1))


@on_each_way
def test_an_idle_connection_gives_way() -> None:
    """A quiet HTTP/2 connection gives its port to whoever needs one within the budget, without TIME_WAIT."""
    book = fewports.Ledger(fewports.Budget(1, wait=3))
    with H2Server(tls=True) as server, client(server, ledger=book) as made:
        made.get("/hello")
        other = fewports.PoolManager(ledger=book, ca_certs=server.ca_path)
        assert other.request("GET", server.url + "/hello").status == 200

        assert made.counts[:2] == (0, 1)
        assert server.stats()["accepted"] == 2
        other.clear()


@on_each_way
def test_an_idle_connection_expires(slow: H2Server) -> None:
    """idle_limit retires a quiet connection as any other: it is not used again, and the server may close it first."""
    with client(slow, idle_limit=0.2) as made:
        made.get("/hello")
        assert made.counts == (0, 1, 0)

        assert until(lambda: made.events.of(ConnectionRetired))
        assert made.get("/hello").status == 200
        assert made.opened == 2


@on_each_way
def test_max_age_lets_requests_finish(slow: H2Server) -> None:
    """A connection past its age takes nothing new; what runs on it is finished."""
    with client(slow, max_age=0.3) as made:
        made.get("/hello")
        held = Aside(lambda: made.get("/slow?s=0.8").status)
        time.sleep(0.5)
        assert made.get("/hello").status == 200

        assert held.result() == 200
        assert slow.stats()["accepted"] == 2
