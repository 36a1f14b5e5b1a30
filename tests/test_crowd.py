"""Many threads on few ports, and the kernel's own count beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import urllib3
from support.ns import in_namespace
from support.sampler import KernelSampler, held
from support.servers import HttpServer

import fewports
from fewports.urllib3 import PoolManager

THREADS, REQUESTS = 64, 200


def at_once(number: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run *work* in so many threads and return what they raised."""
    raised: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def storm(server: HttpServer, http: urllib3.PoolManager, requests: int = REQUESTS) -> list[BaseException]:
    """Have THREADS threads send *requests* each, to all addresses in turn."""
    retries = urllib3.Retry(20, redirect=0, backoff_factor=0)

    def work(index: int) -> None:
        for number in range(requests):
            response = http.request("GET", server.urls[(index + number) % len(server.urls)] + "/", retries=retries)
            assert response.status == 200

    return at_once(THREADS, work)


@in_namespace(timeout=55)
def test_threads_beyond_the_budget_are_all_served() -> None:
    """64 threads with 200 requests each to 3 destinations never hold more than 20 ports of any, and none fails."""
    with HttpServer(ports=3) as server, PoolManager(budget=20) as http:
        with KernelSampler(*(port for _, port in server.addresses)) as kernel:
            raised = storm(server, http)

        assert raised == []
        assert server.stats()["requests"] == THREADS * REQUESTS
        accepted = server.stats()["accepted"]

        assert accepted <= 60
        assert set(kernel.maximum.values()) == {20}


@in_namespace(timeout=55)
def test_a_server_that_closes_after_each_response() -> None:
    """With a new connection for each request the count stays within 20 as well, and nothing fails."""
    with HttpServer(ports=3, close_after_response=True) as server, PoolManager(budget=20) as http:
        with KernelSampler(*(port for _, port in server.addresses)) as kernel:
            raised = storm(server, http)

        assert raised == []
        assert server.stats()["accepted"] == THREADS * REQUESTS
        assert 0 < kernel.peak <= 20


@in_namespace(timeout=55)
def test_connections_killed_at_random() -> None:
    """Connections that the server resets now and then cost no port for longer than they live."""
    with HttpServer(ports=3, kill_probability=0.05) as server, PoolManager(budget=20) as http:
        with KernelSampler(*(port for _, port in server.addresses)) as kernel:
            raised = storm(server, http)

        assert raised == []
        assert server.stats()["killed"] > 100
        assert 0 < kernel.peak <= 20


@in_namespace()
def test_idle_connections_serve_those_who_wait() -> None:
    """With a budget of 4, 16 threads are all served by 4 connections: nobody waits for a port beside an idle one."""
    with HttpServer() as server, PoolManager(budget=fewports.Budget(4, wait=5)) as http:
        raised = at_once(16, lambda _: [http.request("GET", server.url + "/slow?s=0.01") for _ in range(20)])

        assert raised == []
        assert server.stats()["accepted"] == 4
        assert server.stats()["requests"] == 320


@in_namespace()
def test_idle_connections_of_another_pool_give_way() -> None:
    """A full budget held by idle connections of one client is given over to another, at once and without TIME_WAIT."""
    book = fewports.Ledger(budget=4)
    with HttpServer() as server, PoolManager(ledger=book) as first, PoolManager(ledger=book) as second:
        assert at_once(4, lambda _: first.request("GET", server.url + "/meet?n=4")) == []
        began = time.monotonic()
        assert at_once(4, lambda _: second.request("GET", server.url + "/meet?n=4")) == []

        assert time.monotonic() - began < 10  # a TIME_WAIT is a minute
        assert server.stats()["accepted"] == 8
        assert sum(held(server.port).values()) <= 4


@in_namespace()
def test_two_clients_share_the_line() -> None:
    """Two clients that are both busy take turns: neither starves, whoever came first is served first."""
    book = fewports.Ledger(budget=fewports.Budget(3, wait=20))
    with HttpServer() as server, PoolManager(ledger=book) as first, PoolManager(ledger=book) as second:
        with KernelSampler(server.port) as kernel:
            clients = (first, second)
            raised = at_once(
                16, lambda index: [clients[index % 2].request("GET", server.url + "/slow?s=0.002") for _ in range(20)]
            )

        assert raised == []
        assert kernel.peak <= 3


def test_bursts_reuse_what_the_burst_before_opened() -> None:
    """Six bursts of 40 take 40 connections, not 157: the surplus of a burst is kept for the next."""
    with HttpServer() as server, PoolManager(ledger=fewports.Ledger()) as http:
        for _ in range(6):
            assert at_once(40, lambda _: http.request("GET", server.url + "/slow?s=0.05")) == []

        assert server.stats()["requests"] == 240
        assert server.stats()["accepted"] <= 40
