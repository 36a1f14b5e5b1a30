"""What the tests of the faces stand on: what ledger and kernel hold, waiting for what comes soon, code in a child."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.sampler import client_rows
from support.servers import H2Server, HttpServer, Listening

import fewports

BODY = {"message": "hello", "items": [1, 2, 3]}  # what HttpServer replies to /


class Door(Listening):
    """Ports of a server that runs for the whole test process; stats() counts what comes there from now on.

    A connection of the test before that nobody has used is accepted elsewhere, when the server has time.
    """

    def __init__(self, server: HttpServer | H2Server, addresses: list[tuple[str, int]]) -> None:
        self.scheme, self.ca_path, self.addresses = server.scheme, server.ca_path, addresses
        self.http2 = isinstance(server, H2Server)
        self._server = server
        self._before = self._count()
        self._resets = len(server.stats()["resets"]) if self.http2 else 0

    def stats(self) -> dict[str, Any]:
        found = self._count() - self._before
        counted = {name: found.pop(name, 0) for name in ("accepted", "requests", "killed")}
        if self.http2:
            now = self._server.stats()
            most = now["most_at_once"].get(str(self.port), 0)
            return {**counted, "resets": now["resets"][self._resets :], "most_at_once": most}
        return {**counted, "sources": dict(found)}

    def _count(self) -> Counter[str]:
        doors = self._server.stats()["doors"]
        return sum((Counter(doors.get(str(port))) for port in {port for _, port in self.addresses}), Counter())


@contextlib.contextmanager
def fresh_server(ports: int = 1, **options: Any) -> Iterator[Door]:
    """Give a server, and ports of it to which the kernel holds nothing: a TIME_WAIT of before stays for a minute."""
    yield _fresh(HttpServer, ports, options)


@contextlib.contextmanager
def fresh_h2(ports: int = 1, **options: Any) -> Iterator[Door]:
    """Give such a server of HTTP/2."""
    yield _fresh(H2Server, ports, options)


def _fresh(make: Callable[..., HttpServer | H2Server], ports: int, options: dict[str, Any]) -> Door:
    asked = tuple(sorted(options.items()))
    server, left = _running(make, asked)
    chosen: list[tuple[str, int]] = []
    while len(chosen) < ports:
        if not left:
            _running.cache_clear()
            server, left = _running(make, asked)
            chosen.clear()  # of the server before
        address = left.pop()
        if not client_rows(address[1]):
            chosen.append(address)
    return Door(server, chosen)


@functools.cache
def _running(
    make: Callable[..., HttpServer | H2Server], options: tuple[tuple[str, Any], ...]
) -> tuple[HttpServer | H2Server, list[tuple[str, int]]]:
    """Start a server that ends with this process: an interpreter for each test would cost half of the time."""
    server = make(ports=100, **dict(options)).__enter__()
    atexit.register(server.__exit__, None, None, None)
    return server, list(server.addresses)


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """Wait until *condition* holds, *seconds* at most; say whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def states(*ports: int) -> dict[str, int]:
    """Count the kernel's rows on the client's side towards the server ports, by state."""
    return dict(Counter(row.state for row in client_rows(*ports)))


def counts(book: fewports.Ledger) -> tuple[int, int, int]:
    """Return the active, idle and TIME_WAIT ports of a ledger that has no account but those of its range and budget."""
    usages = [usage for usage in book.usage() if usage.scope == "ledger"]
    return sum(u.active for u in usages), sum(u.idle for u in usages), sum(u.time_wait for u in usages)


def waiting(book: fewports.Ledger) -> int:
    return max((usage.waiting for usage in book.usage()), default=0)


class Aside(threading.Thread):
    """A thread that is started at once; result() joins it, and returns or raises what *work* did."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error

    def result(self, seconds: float = 10.0) -> object:
        self.join(seconds)
        assert not self.is_alive(), "it still runs"
        if self._error is not None:
            raise self._error
        return self._value


def run_script(script: str, *arguments: object, seconds: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run *script* in an interpreter of its own that treats warnings as errors and looks closely (-X dev)."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # The package that is under test here, wherever it was imported from.
    paths = Path(__file__).parent, Path(fewports.__file__).parents[1]
    environ = {**kept, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=environ)
