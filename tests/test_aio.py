"""What is asynchronous only: loops that change, end and fork, cancellation at every step, lines, and backpressure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import socket
import threading
import time
import weakref
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from faces import BODY, Aside, Door, counts, fresh_h2, fresh_server, run_script, states, until, waiting
from support.ledgers import disagreements
from support.listeners import listen
from support.scripted import Peer, Scripted
from support.servers import H2Server, HttpProxy, HttpServer
from test_fork import forked, sockets
from urllib3.exceptions import ClosedPoolError, HTTPError, MaxRetryError, ProtocolError, UnrewindableBodyError
from ways import Way

import fewports
from fewports import aio

LOOPS = ("asyncio", "uvloop", "trio")
TORTURE = float(os.environ.get("FEWPORTS_TORTURE", "0.3"))  # seconds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case on each loop, plain, over TLS and over HTTP/2; uvloop, which is asyncio's to us, not plain."""
    if "way" in metafunc.fixturenames and "server" in metafunc.fixturenames:
        spoken = "plain", "tls", "h2"
        pairs = [(name, kind) for name in LOOPS for kind in spoken if kind != "plain" or name != "uvloop"]
        ids = [f"{name}-{kind}" for name, kind in pairs]
        metafunc.parametrize(("way", "server"), pairs, ids=ids, indirect=True)
    elif "way" in metafunc.fixturenames:
        metafunc.parametrize("way", LOOPS, indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    with fresh_h2(tls=True) if request.param == "h2" else fresh_server(tls=request.param == "tls") as running:
        yield running


def manager(server: Door, **options: Any) -> fewports.AsyncPoolManager:
    options.setdefault("ledger", fewports.Ledger())
    return fewports.AsyncPoolManager(ca_certs=server.ca_path, retries=False, **options)


def used(http: fewports.AsyncPoolManager) -> int:
    return sum(pool.engine.home.used for pool in http._pools.values())


def tasks(way: Way) -> int:
    """Count the tasks of the loop that is running, the one that asks left out."""
    if way.name == "trio":
        return trio.lowlevel.current_statistics().tasks_living - FIXED_TASKS
    return len(asyncio.all_tasks()) - 1


FIXED_TASKS = 4  # of trio: main, init, its own, and the one that notices the end of the run


# Cancellation.


async def _steps(number: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def cancelled_after(turns: int, work: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Run *work*, cancel it after so many turns of the loop; say whether it had ended."""
    done = False

    async def run() -> None:
        nonlocal done
        await work()
        done = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await _steps(turns)
        if turns % 3 == 2:
            await anyio.sleep(turns * 0.0001)  # as far as the network
        group.cancel_scope.cancel()
    return done


def test_cancelled_at_every_step(way: Way, server: Door) -> None:
    """Wherever a request is cancelled, what it had is given back: nothing is in use, and the next one is served."""

    async def case() -> None:
        book = fewports.Ledger()
        async with manager(server, ledger=book, maxsize=2, block=True) as http:

            async def whole() -> None:
                await http.request("GET", server.url + "/slow?s=0.002")

            async def parts() -> None:
                async with await http.request("POST", server.url + "/echo", body=_many(), preload_content=False) as r:
                    async for _ in r.stream(10_000):
                        pass

            async def anew() -> None:
                await http.request("GET", server.url + "/close")

            for work in (whole, parts, anew):
                for turns in range(40):
                    await cancelled_after(turns, work)
                    assert await way.until(lambda: used(http) == 0), (work, turns)
            assert (await http.request("GET", server.url)).status == 200
            assert await way.until(lambda: counts(book)[0] == 0)
            assert tasks(way) == (1 if server.http2 and way.name == "trio" else 0)  # which reads the connection
        assert await way.until(lambda: tasks(way) == 0)

    way.run(case)


async def _many() -> AsyncIterator[bytes]:
    for _ in range(20):
        yield b"x" * 10_000


@pytest.mark.parametrize("what", ["a place", "a port"])
def test_cancelled_in_line(way: Way, what: str) -> None:
    """Who leaves the line leaves nothing in it, and who stands behind is served."""

    async def case() -> None:
        with fresh_server() as server:
            book = fewports.Ledger(1 if what == "a port" else None)
            options: dict[str, Any] = {"maxsize": 1, "block": True} if what == "a place" else {}
            async with manager(server, ledger=book, **options) as http:
                for turns in range(12):
                    held = await http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
                    assert not await cancelled_after(turns, lambda: http.request("GET", server.url))
                    await held.read()
                    assert (await http.request("GET", server.url)).json() == BODY
                assert waiting(book) == used(http) == 0
            assert server.stats()["accepted"] == 1

    way.run(case)


@pytest.mark.parametrize("what", ["a place", "a port"])
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_grant_that_crosses_a_cancellation(name: str, what: str) -> None:
    """What is granted in the very step in which its waiter is cancelled goes to the next in line, unused.

    On trio there is no such step: a task that was woken runs on to its next wait.
    """

    async def case() -> None:
        with fresh_server() as server:
            book = fewports.Ledger(1 if what == "a port" else None)
            options: dict[str, Any] = {"maxsize": 1, "block": True} if what == "a place" else {}
            async with manager(server, ledger=book, **options) as http:
                for _ in range(10):
                    held = await http.request("GET", server.url + "/bytes?n=100", preload_content=False)
                    first, then = (asyncio.ensure_future(http.request("GET", server.url)) for _ in range(2))
                    await _steps(5)
                    await held.read()  # gives it to the first
                    first.cancel()
                    assert (await then).json() == BODY
                    assert first.cancelled()
                assert waiting(book) == used(http) == 0
            assert server.stats()["accepted"] == 1

    Way(name).run(case)


@pytest.mark.parametrize(("bound", "spoken"), [("places", "plain"), ("ports", "tls"), ("streams", "h2")])
def test_torture(way: Way, bound: str, spoken: str) -> None:
    """2,000 tasks on 8 connections, or 8 streams of one, cancelled and timed out at random: afterwards 8 run at once,
    nothing is left."""

    async def case() -> None:
        book = fewports.Ledger()
        options: dict[str, Any] = {"maxsize": 8, "block": True} if bound == "places" else {"budget": 8}
        if bound == "streams":
            options = {"budget": 1}
        async with manager(server, ledger=book, **options) as http:
            chance = random.Random(7)
            end = time.monotonic() + TORTURE
            served = 0

            async def suffer(number: int) -> None:
                nonlocal served
                # On a busy machine a turn of all takes longer than any of them has: some go on until there are answers.
                while time.monotonic() < end or (number < 20 and served <= 10):
                    with anyio.move_on_after(chance.choice((0.01, 0.1, 1)) * chance.random()):
                        with contextlib.suppress(HTTPError):
                            await ask()
                            served += 1

            async def ask() -> None:
                path = chance.choice(("/", "/slow?s=0.003", "/bytes?n=300000", "/chunked?n=50000", "/close"))
                timeout = chance.choice((None, None, 0.005, 1))
                preload = chance.random() < 0.5
                response = await http.request(
                    chance.choice(("GET", "POST")), server.url + path, preload_content=preload, timeout=timeout
                )
                if chance.random() < 0.7:
                    await response.read()
                if chance.random() < 0.9:
                    await response.release()

            async with anyio.create_task_group() as group:
                for number in range(2000):
                    group.start_soon(suffer, number)
            gc.collect()
            assert await way.until(lambda: used(http) == 0)
            if bound == "ports":  # a FIN of ours that crossed the server's left a TIME_WAIT, for a second on loopback
                assert await way.until(lambda: counts(book)[2] == 0)
            replies = await way.all([lambda: http.request("GET", server.url + "/meet?n=8", timeout=10)] * 8)
            assert [getattr(reply, "status", reply) for reply in replies] == [200] * 8
            assert await way.until(lambda: tasks(way) == (1 if bound == "streams" and way.name == "trio" else 0))
            assert waiting(book) == 0
            assert [pool.engine.home.riding() for pool in http._pools.values()] == [[]]
        for _ in range(500):
            book.usage()  # asks the kernel about 64 of those that nobody had to ask about
        assert disagreements() == []
        assert await way.until(lambda: tasks(way) == 0)

    if bound == "streams":
        with H2Server(tls=True, streams=8) as server:
            way.run(case)
            assert server.stats()["flaws"] == []
            assert server.stats()["running"] == 0
    else:
        with fresh_server(tls=spoken == "tls") as server:
            way.run(case)


# Lines.


@pytest.mark.parametrize("bound", ["places", "ports"])
def test_who_came_first_is_served_first(way: Way, bound: str) -> None:
    """A thousand requests at once on 10 connections take 10 ports and are served in their order."""

    async def case() -> None:
        options: dict[str, Any] = {"maxsize": 10, "block": True} if bound == "places" else {"budget": 10}
        with fresh_server() as server:
            async with manager(server, **options) as http:
                order: list[int] = []

                async def ask(number: int) -> None:
                    await http.request("GET", server.url + "/slow?s=0.002")  # none is served before all stand in line
                    order.append(number)

                async with anyio.create_task_group() as group:
                    for number in range(1000):
                        group.start_soon(ask, number)
                        if way.name == "trio":  # it begins its tasks in any order
                            await _steps(1)
                late = [
                    number for place, number in enumerate(order) if abs(place - number) > 60
                ]  # an answer may be slow

                assert sorted(order) == list(range(1000))
                assert late == []
            assert server.stats()["accepted"] == 10

    way.run(case)


def test_a_thread_gives_back_the_port(way: Way) -> None:
    """Who waits in a loop is woken when a thread closes, and a thread when a loop does: they share one ledger."""

    async def case() -> None:
        book = fewports.Ledger(fewports.Budget(1, wait=5))
        with fresh_server() as server:
            raw = fewports.create_connection(server.addresses[0], ledger=book)

            def close() -> None:
                assert until(lambda: waiting(book) == 1)
                raw.close()

            async with manager(server, ledger=book) as http:
                closing = Aside(close)
                assert (await http.request("GET", server.url)).json() == BODY
                closing.result()
                taking = Aside(lambda: fewports.create_connection(server.addresses[0], ledger=book))
                assert await way.until(lambda: not taking.is_alive())  # the idle one gives way
                taken = taking.result()
                assert isinstance(taken, socket.socket)
                taken.close()

    way.run(case)


def test_close_sends_away_who_waits(way: Way) -> None:
    """aclose() ends the wait of others with ClosedPoolError; what is in use is closed when it comes back."""

    async def case() -> None:
        book = fewports.Ledger()
        with fresh_server() as server:
            http = manager(server, ledger=book, maxsize=1, block=True)
            held = await http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
            ended: list[object] = []

            async def ask() -> None:
                try:
                    await http.request("GET", server.url)
                except ClosedPoolError as error:
                    ended.append(error)

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await _steps(10)
                await http.aclose()
            assert len(ended) == 1
            assert counts(book)[:2] == (1, 0)
            assert len(await held.read()) == 3_000_000
            assert await way.until(lambda: counts(book)[:2] == (0, 0))
            async with http:
                assert (await http.request("GET", server.url)).json() == BODY

    way.run(case)


# Loops.


def test_a_second_loop(way: Way, server: Door) -> None:
    """A client that is used from another loop says so, the first loop goes on with it, and nothing is left."""

    async def case() -> None:
        async with manager(server) as http:
            await http.request("GET", server.url)

            def elsewhere() -> object:
                with pytest.raises(aio.LoopChanged, match="another event loop"):
                    Way("asyncio").run(lambda: http.request("GET", server.url))
                with pytest.raises(aio.LoopChanged, match="another event loop"):
                    Way("trio").run(lambda: http.request("GET", server.url))
                return True

            assert Aside(elsewhere).result()
            assert (await http.request("GET", server.url)).json() == BODY
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_a_loop_that_has_ended(way: Way, server: Door) -> None:
    """At the end of its loop a client's connections are closed, whoever forgot to; then it says what is wrong."""
    book = fewports.Ledger()
    http = manager(server, ledger=book)

    async def case() -> None:
        await way.all([lambda: http.request("GET", server.url + "/slow?s=0.05")] * 3)
        assert counts(book)[:2] == (0, 1 if server.http2 else 3)

    way.run(case)

    assert counts(book)[:2] == (0, 0)
    with pytest.raises(aio.LoopChanged):
        way.run(lambda: http.request("GET", server.url))
    assert states(server.port).get("ESTABLISHED", 0) == 0

    async def again() -> None:
        await http.aclose()
        async with http:
            assert (await http.request("GET", server.url)).json() == BODY

    way.run(again)


@pytest.mark.parametrize("held", [False, True], ids=["idle", "in use"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_loop_that_was_just_closed(tls: bool, held: bool) -> None:
    """Where nobody ends the loop's generators, aclose() in another loop, or the end of the client, closes all."""
    book = fewports.Ledger()
    with fresh_server(tls=tls) as server:
        _just_closed(server, held, book)

        assert counts(book)[:2] == (0, 0)


def _just_closed(server: Door, held: bool, book: fewports.Ledger) -> None:
    http = manager(server, ledger=book)
    loop = asyncio.new_event_loop()
    path = "/bytes?n=3000000" if held else "/"
    response = loop.run_until_complete(http.request("GET", server.url + path, preload_content=not held))
    loop.close()

    del response
    gc.collect()
    asyncio.run(http.aclose())


def test_a_client_that_is_forgotten(way: Way, server: Door) -> None:
    """A client that nobody refers to is collected, and its connections are closed, while the loop goes on."""

    async def case() -> None:
        book = fewports.Ledger()
        http = manager(server, ledger=book)
        await http.request("GET", server.url)
        gone = weakref.ref(http)
        assert counts(book)[:2] == (0, 1)
        del http
        gc.collect()

        assert gone() is None
        assert await way.until(lambda: counts(book)[:2] == (0, 0))

    way.run(case)


def test_a_fork_in_the_loop(way: Way, server: Door) -> None:
    """The child drops what it inherited without a word, and makes its own; the parent reads on."""
    if way.name == "uvloop":
        pytest.skip("a loop of libuv does not survive a fork, and ends what it inherited itself")

    async def case() -> None:
        book = fewports.Ledger()
        async with manager(server, ledger=book) as http:
            active = await http.request("GET", server.url + "/bytes?n=2000000", preload_content=False)
            await http.request("GET", server.url)

            def child() -> object:
                before = [number for number in sockets() if number not in apart], book.usage()
                status = Aside(lambda: asyncio.run(_status(http, server.url))).result()
                return before, status

            apart = [] if way.name == "trio" else sockets()[:0]
            with forked(child) as answer:
                assert answer == (([], []), 200)
            assert len(await active.read()) == 2_000_000
            assert (await http.request("GET", server.url)).json() == BODY
        assert server.stats()["accepted"] == (2 if server.http2 else 3)

    way.run(case)


async def _status(http: fewports.AsyncPoolManager, url: str) -> int:
    return (await http.request("GET", url)).status


ENDS = {
    "all is left open": """
async def main():
    http = fewports.AsyncPoolManager(ca_certs=ca)
    for address in (url, secure):
        await http.request("GET", address)
        kept.append(await http.request("GET", address + "/bytes?n=3000000", preload_content=False))
    kept.append(http)
""",
    "an exception": """
async def main():
    async with fewports.AsyncPoolManager(ca_certs=ca) as http:
        await http.request("GET", secure)
        sys.exit()
""",
    "tasks are cancelled": """
async def main():
    http = fewports.AsyncPoolManager(ca_certs=ca, maxsize=1, block=True)
    if sys.argv[4] == "trio":
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(http.request, "GET", secure + "/slow?s=5")
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    else:
        kept.extend(asyncio.ensure_future(http.request("GET", secure + "/slow?s=5")) for _ in range(5))
        await asyncio.sleep(0.1)
""",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_program_that_just_ends(way: Way, how: str) -> None:
    """At the end of the program nothing is left, and nothing is said."""
    start = f"""
import sys, asyncio, fewports, logging
logging.getLogger("asyncio").setLevel(logging.ERROR)  # in this mode it tells of what is slow
url, secure, ca, name = sys.argv[1:]
kept = []
{ENDS[how]}
if name == "trio":
    import trio
    trio.run(main)
elif name == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""
    with fresh_server() as plain, fresh_server(tls=True) as secure:
        done = run_script(start, plain.url, secure.url, secure.ca_path, way.name)

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert until(lambda: states(plain.port).get("ESTABLISHED", 0) == 0)


# Bytes.


def test_a_download_that_nobody_reads_stands_still(way: Way) -> None:
    """A server can send no more than some buffers hold while nobody reads; then all of it comes."""
    size = 60_000_000
    sent = 0

    def serve(peer: Peer) -> None:
        nonlocal sent
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = memoryview(bytes(1_000_000))
        while sent < size:
            sent += peer.sock.send(piece[: size - sent])

    async def case() -> None:
        with Scripted(serve) as peer:
            async with fewports.AsyncPoolManager(retries=False, ledger=fewports.Ledger()) as http:
                response = await http.request("GET", peer.url, preload_content=False)
                before = -1
                while before != sent:
                    before = sent
                    await way.sleep(0.1)
                assert sent < size / 2
                count = 0
                async for piece in response.stream(1_000_000):
                    count += len(piece)
                assert count == size

    way.run(case)


def test_an_upload_that_nobody_reads(way: Way) -> None:
    """What cannot be sent in time ends the request as it does in urllib3; the connection is closed."""

    async def case() -> None:
        book = fewports.Ledger()
        ended = threading.Event()
        with Scripted(*[lambda peer: ended.wait(5)] * 2) as peer:  # type: ignore[arg-type,return-value,list-item]
            async with fewports.AsyncPoolManager(retries=False, ledger=book) as http:
                for body in (bytes(50_000_000), _without_end()):
                    with pytest.raises(ProtocolError, match="timed out"):
                        await http.request("POST", peer.url, body=body, write_timeout=0.1)
                assert await way.until(lambda: counts(book)[:2] == (0, 0))
            ended.set()

    way.run(case)


async def _without_end() -> AsyncIterator[bytes]:
    while True:
        yield bytes(100_000)


def test_the_pieces_of_an_upload(way: Way, server: Door) -> None:
    """They may be text, and whatever has bytes, from iterables of both kinds; what has none is refused."""
    pieces = ["text", bytearray(b"1"), memoryview(b"2"), array("H", [0x3434])]
    whole = b"text1244"

    async def awaited(given: list[Any]) -> AsyncIterator[Any]:
        for piece in given:
            yield piece

    async def case() -> None:
        async with manager(server) as http:
            for make in (iter, awaited):
                sent = await http.request("POST", server.url + "/echo", body=make(pieces))
                told = await http.request(
                    "POST", server.url + "/echo", body=make(pieces), headers={"Content-Length": str(len(whole))}
                )
                with pytest.raises(TypeError):
                    await http.request("POST", server.url + "/echo", body=make([3]))

                assert (sent.data, told.data) == (whole, whole)
            assert used(http) == 0

    way.run(case)


def test_a_body_that_fails(way: Way, server: Door) -> None:
    """What the caller's own iterable raises comes out as it is, and the connection is closed, or the stream reset."""

    async def case() -> None:
        book = fewports.Ledger()

        async def body() -> AsyncIterator[bytes]:
            yield b"x"
            raise ZeroDivisionError

        async with manager(server, ledger=book) as http:
            with pytest.raises(ZeroDivisionError):
                await http.request("POST", server.url + "/echo", body=body())
            with pytest.raises(ValueError, match=r"Content-Length (says 5|leaves 2)"):
                await http.request("POST", server.url + "/echo", body=[b"abc"], headers={"Content-Length": "5"})
            assert await way.until(lambda: counts(book)[:2] == (0, int(server.http2)))
            fixed = await http.request(
                "POST", server.url + "/echo", body=[b"ab", b"c"], headers={"Content-Length": "3"}
            )
            assert fixed.data == b"abc"

    way.run(case)


def test_what_can_be_read_only_once(way: Way) -> None:
    """A body from a generator is sent again while nobody has begun to read it, and never after that."""

    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    async def case() -> None:
        with Scripted(*[_read_and_reset] * 2) as peer:
            async with fewports.AsyncPoolManager(retries=2, ledger=fewports.Ledger()) as http:
                for once in (body(), iter([b"once"])):
                    with pytest.raises(UnrewindableBodyError):
                        await http.request("PUT", peer.url, body=once)
        with listen(["127.0.0.1"])[0] as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        async with fewports.AsyncPoolManager(retries=2, ledger=fewports.Ledger()) as http:
            unread = body()
            with pytest.raises(MaxRetryError):
                await http.request("PUT", url, body=unread)
            assert [piece async for piece in unread] == [b"once"]

    way.run(case)


def _read_and_reset(peer: Peer) -> None:
    peer.request()
    peer.reset()


def test_a_request_that_cannot_be_sent(way: Way, server: Door) -> None:
    """What is no request is refused before a byte of it goes out, and the connection stays."""

    async def case() -> None:
        async with manager(server) as http:
            await http.request("GET", server.url)
            with pytest.raises(ValueError, match=r"CR, LF or NUL|control character"):
                await http.request("GET", server.url, headers={"X-A": "a\r\nX-B: b"})
            assert (await http.request("GET", server.url)).json() == BODY
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_an_answer_to_an_upload_that_stands_still(way: Way) -> None:
    """A server that answers, and reads no more, is heard."""
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.answer(b"enough", status="413 Too Large")
        ended.wait(5)

    async def case() -> None:
        with Scripted(serve) as peer:
            async with fewports.AsyncPoolManager(retries=False, ledger=fewports.Ledger()) as http:
                response = await http.request("PUT", peer.url, body=bytes(50_000_000), write_timeout=3)
                assert (response.status, response.data) == (413, b"enough")
                ended.set()

    way.run(case)


def test_what_a_response_tells(way: Way, server: Door) -> None:
    """The names are those of urllib3's response."""

    async def case() -> None:
        async with manager(server) as http:
            async with await http.request("GET", server.url, preload_content=False) as response:
                with pytest.raises(RuntimeError, match="was not read"):
                    _ = response.data
                assert not response.closed
                await response.read()
                assert response.json() == BODY
                assert response.closed
            assert response.geturl() == server.url
            assert repr(response) == f"<AsyncResponse 200 GET {server.url}>"
            assert response.get_redirect_location() is False
            whole = await http.request("GET", server.url)
            assert [await whole.read(5), await whole.read(), await whole.read()] == [
                whole.data[:5],
                whole.data[5:],
                b"",
            ]
            assert [piece async for piece in (await http.request("GET", server.url)).stream()] == [whole.data]
            with pytest.raises(TypeError, match="unexpected keyword"):
                await http.request("GET", server.url, fields=None, unknown=1)
            with pytest.raises(TypeError):
                fewports.AsyncPoolManager(unknown=1)

    way.run(case)


def test_no_more_pools_than_allowed(way: Way) -> None:
    """The origin that was not used for longest is forgotten, and its idle connections are closed."""

    async def case() -> None:
        book = fewports.Ledger()
        with fresh_server(ports=3) as server:
            async with fewports.AsyncPoolManager(2, retries=False, ledger=book) as http:
                for url in server.urls:
                    await http.request("GET", url)
                assert await way.until(lambda: counts(book)[:2] == (0, 2))
                assert len(http._pools) == 2

    way.run(case)


def test_idle_connections_are_closed_in_time(way: Way) -> None:
    """What was idle for too long is retired and closed by the timer, with no request made."""

    async def case() -> None:
        book = fewports.Ledger()
        with HttpServer(keepalive_timeout=0.3) as server:
            async with fewports.AsyncPoolManager(retries=False, ledger=book, idle_limit=0.05) as http:
                await http.request("GET", server.url)
                assert await way.until(lambda: counts(book) == (0, 0, 0))

    way.run(case)


def test_credentials_in_the_url_of_a_proxy(way: Way) -> None:
    """They are sent to the proxy as Basic, in CONNECT or with each request, and to nobody behind a tunnel."""

    async def case() -> None:
        with HttpServer(tls=True) as server, HttpProxy(credentials=("m\u00e9", "pa:ss@")) as proxy:
            url = proxy.url.replace("://", "://m%C3%A9:pa%3Ass%40@")
            async with way.manager(url, ca_certs=server.ca_path, retries=False) as http:
                seen = (await http.get(server.url + "/headers")).json()
            async with way.manager(url, proxy_headers={"proxy-authorization": "Basic other"}, retries=False) as http:
                status = (await http.get("http://127.0.0.1:9/")).status
            assert "proxy-authorization" not in str(seen).lower()
            assert status == 407
        requests: list[bytes] = []

        def keep(peer: Peer) -> None:
            requests.append(peer.request())
            peer.answer()

        with Scripted(keep, keep) as plain:
            for headers in ({}, {"Proxy-Authorization": "mine"}):
                async with way.manager(plain.url.replace("://", "://me@"), retries=False) as http:
                    await http.get("http://example.com/", headers=headers)

        assert [re.findall(rb"(?i)proxy-authorization: (.*)\r", each) for each in requests] == [
            [b"Basic bWU6"],
            [b"mine"],
        ]

    way.run(case)


def test_a_response_dropped_after_the_peer_has_closed(way: Way) -> None:
    """Dropped unread when its connection is gone already, it gives back the place that it had."""

    def once(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789")

    async def case() -> None:
        async with fewports.AsyncPoolManager(ledger=fewports.Ledger(), retries=False, maxsize=1, block=True) as http:
            for _ in range(3):
                response = await http.request("GET", peer.url, preload_content=False, pool_timeout=2)
                await anyio.sleep(0.05)  # the peer's end is seen meanwhile
                assert response.status == 200
                del response
                gc.collect()
                await anyio.sleep(0.02)
            assert used(http) == 0

    with Scripted(once, once, once) as peer:
        way.run(case)


def test_a_response_that_is_released_while_a_task_reads_it(way: Way) -> None:
    """Who reads is told at once, by an error of urllib3's, and the place is given back once."""

    async def case() -> None:
        async with fewports.AsyncPoolManager(ledger=fewports.Ledger(), retries=False, maxsize=1, block=True) as http:
            response = await http.request("GET", peer.url, preload_content=False)

            async def read() -> None:
                with pytest.raises(ProtocolError):
                    await response.read()

            with anyio.fail_after(5):
                async with anyio.create_task_group() as group:
                    group.start_soon(read)
                    await anyio.sleep(0.05)  # it waits
                    await response.release()

            assert used(http) == 0

    with Scripted(_half) as peer:
        way.run(case)


def test_two_tasks_that_read_one_response(way: Way) -> None:
    """The second is refused, and does not keep the first from its end."""

    async def case() -> None:
        async with fewports.AsyncPoolManager(ledger=fewports.Ledger(), retries=False, timeout=5) as http:
            response = await http.request("GET", peer.url, preload_content=False)
            bodies: list[bytes] = []

            async def read() -> None:
                bodies.append(await response.read())

            with anyio.fail_after(5):
                async with anyio.create_task_group() as group:
                    group.start_soon(read)
                    await anyio.sleep(0.05)  # it waits
                    with pytest.raises(RuntimeError, match="another task reads"):
                        await response.read(1)
                    goes_on.set()

            assert bodies == [b"0123456789"]

    def halting(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        goes_on.wait(5)
        peer.send(b"56789")
        peer.end()

    goes_on = threading.Event()
    with Scripted(halting) as peer:
        way.run(case)


def _half(peer: Peer) -> None:
    """Send half of a body, and no more."""
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
    peer.end()


def test_a_response_of_another_loop(way: Way) -> None:
    """In another loop, while its own runs and after that, it raises LoopChanged; and it can be released there."""
    book = fewports.Ledger()

    async def begin() -> tuple[Any, Any]:
        http = fewports.AsyncPoolManager(ledger=book, retries=False, timeout=5)
        return http, await http.request("GET", peer.url, preload_content=False)

    async def refused(response: Any) -> None:
        with pytest.raises(aio.LoopChanged, match="of another event loop"):
            await response.read()
        await response.release()

    async def while_it_runs() -> None:
        http, response = await begin()
        await anyio.to_thread.run_sync(lambda: Way("asyncio").run(refused, response))

        assert await way.until(lambda: used(http) == 0)
        await http.aclose()

    with Scripted(_half, _half) as peer:
        way.run(while_it_runs)
        _, kept = way.run(begin)
        way.run(refused, kept)

        assert until(lambda: counts(book)[:2] == (0, 0))


def test_an_unknown_option_is_named() -> None:
    """What AsyncPoolManager does not know is refused in its own name, before anything is made."""
    with pytest.raises(TypeError, match=r"AsyncPoolManager\(\) got an unexpected keyword argument 'bugdet'"):
        fewports.AsyncPoolManager(bugdet=20)
