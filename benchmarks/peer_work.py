"""What one client does in a process of its own: rounds of one kind of work, measured. Both ends are here.

The process's only argument is the task, in JSON. It says when it has started; then each line on its standard input is
a round, and is answered by a line of JSON. A round that takes too long ends the process, which says where it was. A
round makes the client anew, so that nothing is open between rounds; the process stays, with what it has learned.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import peer_tasks
import peer_threads
from peer_async_clients import AsyncClient
from peer_cases import FAMILIES
from peer_clients import Place
from peer_task import Failed, Round, Task


def main() -> None:
    told = json.loads(sys.argv[1])
    task = Task(**{**told, "place": Place(*told["place"])})
    if task.core is not None:
        os.sched_setaffinity(0, {task.core})
    tell({"ready": True})
    first = True
    for _ in sys.stdin:
        faulthandler.dump_traceback_later(task.limit, exit=True)
        answer: dict[str, Any]
        try:
            answer = work(task, first=first)._asdict()
        except Exception as error:
            answer = {"error": described(error)}
        tell(answer)
        faulthandler.cancel_dump_traceback_later()
        first = False


def work(task: Task, *, first: bool) -> Round:
    kind = FAMILIES[task.family][task.client]
    if issubclass(kind, AsyncClient):
        return peer_tasks.ask(kind, task, first=first)
    if task.action == "get":
        return peer_threads.ask(kind, task)
    return peer_threads.transfer(kind, task, first=first)


def described(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):  # of tasks: the first tells enough
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


class Worker:
    """The end of those who start the process."""

    def __init__(self, task: Task) -> None:
        kept = {name: value for name, value in os.environ.items() if not _diverts(name)}
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), json.dumps(task._asdict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it
            env=kept | {"PYTHONPATH": path},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_start(self) -> None:
        """Return when it has started; before that it would disturb others. Raises Failed."""
        self._read()

    def round(self) -> dict[str, Any]:
        """Do a round; raises Failed. The process ends by itself if that takes too long."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended: there is no answer
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"its process ended with exit code {self._process.wait()} and no answer")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise Failed(told["error"])
        return told


def _diverts(variable: str) -> bool:
    """Say whether clients would go another way, or trust another CA, for an environment variable."""
    return variable.lower().endswith("_proxy") or variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


if __name__ == "__main__":
    main()
