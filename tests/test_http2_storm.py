"""Everything at once over HTTP/2: callers that leave, time out, upload and wait, against a server that goes away.

FEWPORTS_FULL=1 makes it last for 20 seconds instead of two.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter

import pytest
from faces import Aside, until
from http2_faces import Client, client
from support.sampler import KernelSampler
from support.servers import H2Server
from test_crowd import at_once
from urllib3.exceptions import HTTPError

SECONDS = 20.0 if os.environ.get("FEWPORTS_FULL") == "1" else 2.0
THREADS = 24
WAYS = ("get", "post", "upload", "leave", "give_up", "wait")


class Caller:
    """One thread of the storm: what it asks for is drawn by chance, what came of it is counted."""

    def __init__(self, made: Client, number: int, kills: bool) -> None:
        self._made, self._number, self._kills = made, number, kills
        self._random = random.Random(number)
        self._turn = 0
        self.done: Counter[str] = Counter()
        self.failed: list[BaseException] = []
        self.posted: dict[str, bool] = {}  # by x-id, whether it was answered

    def run(self, until_then: float) -> None:
        ways = [self.get, self.get, self.post, self.upload, self.leave, self.give_up, self.wait]
        if self._kills:
            ways.append(self.kill)
        while time.monotonic() < until_then or min(self.done[name] for name in WAYS) < 1:
            self._turn += 1
            way = self._random.choice(ways)
            try:
                way()
                self.done[way.__name__] += 1
            except HTTPError as error:
                self.failed.append(error)

    def get(self) -> None:
        assert len(self._made.get("/hello").data) == 200

    def post(self) -> None:
        name = f"{self._number}-{self._turn}"
        self.posted[name] = False
        body = name.encode()
        assert self._made.request("POST", "/echo", body=body, headers={"x-id": name}).data == body
        self.posted[name] = True

    def upload(self) -> None:
        body = bytes([self._number]) * self._random.randrange(1, 200_000)
        assert self._made.request("PUT", "/echo", body=body).data == body

    def leave(self) -> None:
        response = self._made.get("/bytes?n=1000000", preload_content=False)
        response.read(self._random.randrange(1, 100_000))
        response.close()

    def give_up(self) -> None:
        # A response may come before the time-out; what is not to come is anything else.
        try:
            self._made.get("/slow?s=0.2", timeout=0.02)
        except HTTPError as error:
            if "timed out" not in str(error):
                raise

    def wait(self) -> None:
        assert self._made.get("/slow?s=0.02").status == 200

    def kill(self) -> None:
        if self._random.random() < 0.05:
            with pytest.raises(HTTPError):
                self._made.request("POST", "/drop", body=b"x")


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
@pytest.mark.parametrize("kills", [False, True], ids=["leaves", "dies"])
def test_a_storm(tls: bool, kills: bool) -> None:
    """No request is worked on twice, none is lost, the budget holds, and afterwards nothing is left.

    Where the server announces each end, nothing fails either; where it dies in mid-flight, errors are of urllib3.
    """
    with H2Server(tls=tls, streams=10, requests=None if kills else 60) as server:
        with client(server, budget=3) as made, KernelSampler(server.port) as kernel:
            made.get("/hello")
            callers = [Caller(made, number, kills) for number in range(THREADS)]
            end = time.monotonic() + SECONDS
            assert at_once(THREADS, lambda number: callers[number].run(end)) == []
            done = sum((caller.done for caller in callers), Counter[str]())
            failed = [error for caller in callers for error in caller.failed]
            posted = {name: answered for caller in callers for name, answered in caller.posted.items()}

            assert min(done[name] for name in WAYS) > 10
            if not kills:
                assert failed == []
            assert until(lambda: made.counts[0] == 0), made.book.usage()
            # Every stream and every port of the budget can be had again.
            asides = [Aside(lambda: made.get("/slow?s=0.3").status) for _ in range(20)]
            assert [aside.result() for aside in asides] == [200] * 20
        stats = server.stats()

        assert kernel.peak <= 3, kernel.most
        assert stats["flaws"] == []
        assert set(stats["processed"].values()) == {1}
        assert {name for name, answered in posted.items() if answered} <= set(stats["processed"])
    assert threading.active_count() < THREADS
