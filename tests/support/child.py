"""A server in a process of its own: started, asked and ended through its standard streams.

The child tells in one line of JSON when it is ready, answers each line with a line, and ends when its standard input
does: with the parent, however that ends. Its sockets and its CPU time are not the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol


class Service(Protocol):
    """What runs in the child: start() opens the listeners and tells where, stats() is what the parent may ask."""

    def start(self) -> Coroutine[Any, Any, dict[str, Any]]: ...

    def stats(self) -> dict[str, Any]: ...


class Child:
    """The parent's end. *main* is module:function, *settings* its keyword arguments."""

    def __init__(self, main: str, settings: dict[str, Any]) -> None:
        start = "import sys; sys.path[:0] = [sys.argv[1]]; from support.child import run; run(*sys.argv[2:])"
        place = str(Path(__file__).parents[1])
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, place, main, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.ready = self._read()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """Ask the child for its numbers, not over its own port."""
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write("stats\n")
            self._process.stdin.flush()
            return self._read()

    def close(self) -> None:
        """End the child and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server process has ended with {self._process.wait(5)}; see the captured stderr")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run(main: str, settings: str) -> None:
    """Be the child: make the service that *main* names, serve until the standard input ends."""
    module, _, name = main.partition(":")
    make = getattr(__import__(f"support.{module}", fromlist=[name]), name)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(make(**json.loads(settings))))


async def _serve(service: Service) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _tell(await service.start())
    while await commands.readline():
        _tell(service.stats())


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)
