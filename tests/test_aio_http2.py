"""Many tasks on few HTTP/2 connections: how many ports, who is in whose way, and what a cancellation ends.

What servers do wrong is in test_http2_faults.py, what is the same on threads in test_parity.py and test_http2_*.py.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest
from faces import counts, states, waiting
from http2_peer import RST_STREAM, data, head, window
from support.http_server import HELLO
from support.programs import Nghttpd, Nginx
from support.sampler import KernelSampler
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import H2Server, HttpProxy, HttpServer
from urllib3 import Timeout
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from ways import Way

import fewports
from fewports import aio
from fewports.aio.asyncio_loop import AsyncioLink
from fewports.aio.trio_loop import TrioLink
from fewports.events import CloseReason

LOOPS = ("asyncio", "uvloop", "trio")
CANCEL = 8


@pytest.fixture(params=LOOPS)
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


def manager(server: Any, **options: Any) -> fewports.AsyncPoolManager:
    options.setdefault("ledger", fewports.Ledger())
    options.setdefault("http2", "auto" if server.ca_path else True)
    return fewports.AsyncPoolManager(ca_certs=server.ca_path, retries=False, **options)


@pytest.mark.parametrize(
    ("name", "streams", "budget", "ports"),
    [("asyncio", 600, None, 1), ("trio", 600, None, 1), ("uvloop", 250, None, 2), ("asyncio", 100, 1, 1)],
)
def test_five_hundred_tasks(name: str, streams: int, budget: int | None, ports: int) -> None:
    """500 tasks are served on one port where the server allows so many streams, on two where it allows 250, and on one
    within a budget of one: by the kernel's count, and nothing fails."""
    way = Way(name)

    async def case(server: Nginx) -> None:
        book = fewports.Ledger()
        options = {} if budget is None else {"budget": budget}
        meet = f"{server.url}/meet?n={min(500, streams * ports)}"  # so many are under way at once
        async with manager(server, ledger=book, **options) as http:

            async def ask() -> set[object]:
                found = [await http.request("GET", meet, timeout=30)]
                found += [await http.request("GET", server.url + "/hello", timeout=30) for _ in range(4)]
                return {(reply.status, reply.version) for reply in found}

            with KernelSampler(server.port) as kernel:
                results = await way.all([ask] * 500)

            assert [result for result in results if result != {(200, 20)}] == []
            assert kernel.peak == ports
            assert (counts(book)[0], waiting(book)) == (0, 0)

    with HttpServer() as app, Nginx(tls=True, http2=True, streams=streams, app=app.url) as server:
        way.run(case, server)

        assert server.accepted() == ports


@pytest.mark.parametrize("how", ["cancelled", "timed out", "released", "released while read"])
def test_a_request_that_ends_early_leaves_its_siblings_alone(way: Way, how: str) -> None:
    """Its stream is reset with CANCEL, and nothing else: the others on the connection are served."""
    ended: list[int] = []
    all_are_there = threading.Event()

    def script(peer: H2Peer) -> None:
        peer.greet()
        asked = {one.path: one.stream for one in peer.requests(3)}
        all_are_there.set()
        peer.send(head(asked["/left"]), data(asked["/left"], b"x"))
        ended.append(peer.until(RST_STREAM).stream - asked["/left"])
        for path in ("/first", "/second"):
            peer.answer(asked[path], path.encode())
        peer.serve()

    async def case(server: ScriptedH2) -> None:
        book = fewports.Ledger()
        async with manager(server, ledger=book) as http:

            async def leave() -> None:
                if how == "cancelled":
                    async with anyio.create_task_group() as group:
                        group.start_soon(http.request, "GET", server.url + "/left")
                        assert await way.until(all_are_there.is_set)
                        group.cancel_scope.cancel()
                elif how == "timed out":
                    with pytest.raises(ReadTimeoutError):
                        await http.request("GET", server.url + "/left", timeout=Timeout(connect=5, read=0.1))
                else:
                    response = await http.request("GET", server.url + "/left", preload_content=False)
                    with anyio.fail_after(5):
                        async with anyio.create_task_group() as group:
                            if how == "released while read":
                                group.start_soon(read, response)
                                await anyio.sleep(0.05)  # it waits
                            await response.release()

            async def read(response: Any) -> None:
                with pytest.raises(ProtocolError):
                    await response.read()

            async def ask(path: str) -> bytes:
                return (await http.request("GET", server.url + path)).data

            replies = await way.all([leave, lambda: ask("/first"), lambda: ask("/second")])
            after = await ask("/after")

            assert replies[1:] == [b"/first", b"/second"]
            assert after == b"/after"
            assert counts(book)[:2] == (0, 1)
            assert [pool.engine.home.riding() for pool in http._pools.values()] == [[]]
            assert [pool.engine.home.used for pool in http._pools.values()] == [0]

    with ScriptedH2(script) as server:
        way.run(case, server)

        assert ended == [0]
        assert server.peers[0].resets.popitem()[1] == CANCEL
        assert server.peers[0].resets == {}


def test_requests_of_one_turn_go_out_together(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """What twenty tasks send in one turn of the loop is one write."""
    kind = AsyncioLink if way.name != "trio" else TrioLink
    writes: list[int] = []
    write = kind.write

    def counted(link: Any, data: bytes | memoryview) -> bool:
        writes.append(len(data))
        return write(link, data)

    async def case(server: H2Server) -> None:
        async with manager(server) as http:
            await http.request("GET", server.url)
            await way.sleep(0.05)
            writes.clear()
            replies = await way.all([lambda: http.request("GET", server.url)] * 20)

            assert {reply.status for reply in replies} == {200}
            assert max(writes) > 20 * 9
            assert len(writes) <= 5, writes  # of which one or two are acknowledgements

    monkeypatch.setattr(kind, "write", counted)
    with H2Server() as server:
        way.run(case, server)


@pytest.mark.parametrize("kind", ["nginx", "nghttpd", "h2"])
def test_servers_of_each_kind(way: Way, kind: str) -> None:
    """Downloads, uploads and small requests at once come whole from nginx, nghttpd and a Python server."""
    made: dict[str, Any] = {"nginx": lambda: Nginx(tls=True, http2=True), "nghttpd": lambda: Nghttpd(tls=True)}

    async def case(server: Any) -> None:
        async with manager(server) as http:

            async def load(number: int) -> int:
                if number % 4:
                    return (await http.request("GET", server.url + "/hello")).status
                size = 0
                async with await http.request("GET", server.url + "/big", preload_content=False) as response:
                    while size < 5_000_000 and (piece := await response.read(1 << 18)):
                        size += len(piece)
                return response.status

            assert await way.all([lambda number=number: load(number) for number in range(40)]) == [200] * 40

    with made.get(kind, lambda: H2Server(tls=True))() as server:
        way.run(case, server)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_through_a_connect_proxy(way: Way, secured: bool) -> None:
    """Sixteen tasks through a proxy share one tunnel, one port towards the proxy; the proxy may be spoken to by TLS."""

    async def case(server: H2Server, proxy: HttpProxy) -> None:
        book = fewports.Ledger()
        async with manager(server, proxy=proxy.url, ledger=book) as http:
            replies = await way.all([lambda: http.request("GET", server.url + "/hello")] * 16)

            assert {(reply.version, reply.data) for reply in replies} == {(20, HELLO)}
            assert counts(book) == (0, 1, 0)
        assert await way.until(lambda: states(proxy.port).get("ESTABLISHED", 0) == 0)

    with H2Server(tls=True) as server, HttpProxy(tls=secured) as proxy:
        way.run(case, server, proxy)

        assert proxy.stats()["tunnels"] == [f"{server.host}:{server.port}"]


def test_the_one_who_opens_may_leave(way: Way) -> None:
    """The connection that a task has begun to open is there for those who wait, although that task was cancelled."""

    def script(peer: H2Peer) -> None:
        time.sleep(0.2)
        peer.greet()
        peer.serve()

    async def case(server: ScriptedH2) -> None:
        book = fewports.Ledger()
        async with manager(server, ledger=book) as http:

            async def leave() -> None:
                with anyio.move_on_after(0.05):
                    await http.request("GET", server.url)

            async def ask() -> bytes:
                await way.sleep(0.01)
                return (await http.request("GET", server.url + "/stayed")).data

            replies = await way.all([leave, ask, ask])

            assert replies[1:] == [b"/stayed"] * 2
            assert counts(book)[:2] == (0, 1)
            assert [pool.engine.home.used for pool in http._pools.values()] == [0]

    with ScriptedH2(script) as server:
        way.run(case, server)

        assert len(server.peers) == 1


def test_what_nobody_waits_for_is_not_opened_on(way: Way) -> None:
    """Where all who waited for a connection are cancelled, what was begun of it is given up, and its port is free."""

    def script(peer: H2Peer) -> None:
        peer.end()  # without a word

    async def case(server: ScriptedH2) -> None:
        book = fewports.Ledger()
        async with manager(server, ledger=book, timeout=None) as http:

            async def leave(seconds: float) -> None:
                with anyio.move_on_after(seconds):
                    await http.request("GET", server.url)

            await way.all([lambda: leave(0.05), lambda: leave(0.1), lambda: leave(0.1)])

            assert await way.until(lambda: counts(book)[:2] == (0, 0))
            assert [pool.engine.home.used for pool in http._pools.values()] == [0]
            assert waiting(book) == 0

    with ScriptedH2(script) as server:
        way.run(case, server)

        assert server.accepted == 1


def test_what_an_exchange_tells(way: Way) -> None:
    """The engine's own exchange knows the protocol and the stream."""

    async def case(server: H2Server) -> None:
        async with manager(server) as http:
            first = await http.request("GET", server.url)
            (pool,) = http._pools.values()
            async with await http.request("GET", server.url, preload_content=False) as second:
                exchange = second._exchange

                assert (first.version, second.version) == (20, 20)
                assert (exchange.head.version, exchange.stream_id) == (20, 3)
                assert isinstance(pool.engine, aio.OriginPool)

    with H2Server() as server:
        way.run(case, server)


def test_a_full_server_holds_up_nobody_for_longer_than_the_wait(way: Way) -> None:
    """Who waits for a stream in vain gets BudgetExhausted when the budget's wait is over, and leaves no place taken."""

    async def case(server: H2Server) -> None:
        async with manager(server, budget=fewports.Budget(1, wait=0.2)) as http:

            async def slow() -> int:
                return (await http.request("GET", server.url + "/meet?n=2")).status

            async def late() -> object:
                assert await way.until(lambda: server.stats()["running"] == 1)
                began = time.monotonic()
                with pytest.raises(fewports.BudgetExhausted):
                    await http.request("GET", server.url)
                took = time.monotonic() - began
                assert server.stats()["accepted"] == 1
                async with manager(server) as other:
                    await other.request("GET", server.url + "/meet?n=2")
                return 0.15 < took < 3

            assert await way.all([slow, late]) == [200, True]
            assert (await http.request("GET", server.url)).status == 200

    with H2Server(streams=1) as server:
        way.run(case, server)

        assert server.stats()["accepted"] == 2


def test_a_close_while_there_is_more_to_send(way: Way) -> None:
    """A connection that closes as soon as the kernel has no more room ends its requests, and nothing else."""

    def script(peer: H2Peer) -> None:
        peer.greet(window=1 << 24)
        peer.send(window(0, 1 << 24))
        peer.request()
        full.wait(10)

    async def case(server: ScriptedH2) -> None:
        async with manager(server) as http:

            async def upload() -> object:
                try:
                    return await http.request("POST", server.url, body=bytes(1 << 24))
                except ProtocolError:
                    return "ended"

            async def close() -> None:
                assert await way.until(lambda: bool(stuck), 10)
                full.set()

            ended, _ = await way.all([upload, close])

            assert ended == "ended"

    kind = AsyncioLink if way.name != "trio" else TrioLink
    stuck: list[object] = []
    full = threading.Event()
    write = kind.write

    def closing(link: Any, data: bytes | memoryview) -> bool:
        flows = write(link, data)
        if not flows and not stuck:
            stuck.append(link)
            link.receiver.end(CloseReason.DONE)
        return flows

    with pytest.MonkeyPatch.context() as patch, ScriptedH2(script) as server:
        patch.setattr(kind, "write", closing)
        way.run(case, server)
