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
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import IO, Any, NamedTuple, Self

from peer_clients import CLIENTS, Client, Place

WARM = 300  # requests before those that are measured, by all threads together
BATCH = 10  # requests between two looks at the clock
PIECE = 1 << 16  # bytes that an iterable yields


class Task(NamedTuple):
    """What to do with a client: *action* is get, stream, whole, file or chunks; the last four move a big body.

    A big body is that of *big*, a file which the server has, too; *checksum* is its CRC-32.
    """

    client: str
    place: Place
    action: str
    seconds: float
    piece: int
    small: str
    big: str
    checksum: int
    core: int | None
    limit: float


class Round(NamedTuple):
    """What a round came to: times in seconds; *memory* is what the first transfer added to the peak, in MB."""

    requests: int
    total: int  # with those that were not measured
    cpu: float
    wall: float
    memory: float | None = None


class Failed(Exception):
    """A client came to no result."""


class WrongBody(Exception):
    """A client gave something else than the server sent."""


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
            answer = (ask(task) if task.action == "get" else transfer(task, first=first))._asdict()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        tell(answer)
        faulthandler.cancel_dump_traceback_later()
        first = False


def tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def ask(task: Task) -> Round:
    """GET the small body for some seconds."""
    kind, threads = CLIENTS[task.client], task.place.threads
    with ExitStack() as stack:
        made = [stack.enter_context(closing(kind(task.place))) for _ in range(1 if kind.shared else threads)]
        for client in made:
            check_small(client, task)
        if threads == 1:
            return alone(made[0], task.seconds)
        return together(made * (threads // len(made)), task.seconds)


def alone(client: Client, seconds: float) -> Round:
    get = client.get
    for _ in range(WARM):
        get("/small")
    cpu, began = time.process_time(), time.perf_counter()
    done = repeat(get, began + seconds)
    return Round(done, 1 + WARM + done, time.process_time() - cpu, time.perf_counter() - began)


def together(clients: list[Client], seconds: float) -> Round:
    """Have a thread for each of *clients*, which may be the same one."""
    turn = Barrier(len(clients) + 1)
    until = 0.0

    def work(client: Client) -> int:
        try:
            for _ in range(WARM // len(clients)):
                client.get("/small")
            turn.wait()
            turn.wait()  # meanwhile the clocks are read
            return repeat(client.get, until)
        except BrokenBarrierError:
            return 0
        except BaseException:
            turn.abort()
            raise

    with ThreadPoolExecutor(len(clients)) as threads:
        futures = [threads.submit(work, client) for client in clients]
        cpu = began = 0.0
        try:
            turn.wait()
            cpu, began = time.process_time(), time.perf_counter()
            until = began + seconds
            turn.wait()
        except BrokenBarrierError:
            pass  # the thread that broke it has an exception for us
        done = sum(future.result() for future in futures)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    warm = WARM // len(clients) * len(clients)
    return Round(done, len(set(clients)) + warm + done, cpu, wall)


def repeat(get: Callable[[str], object], until: float) -> int:
    done = 0
    while time.perf_counter() < until:
        for _ in range(BATCH):
            get("/small")
        done += BATCH
    return done


def transfer(task: Task, *, first: bool) -> Round:
    """Move the big body for some seconds, once at least; the *first* round sees before what memory it takes."""
    with closing(CLIENTS[task.client](task.place)) as client:
        check_small(client, task)
        memory = None
        if first:
            before = reset_peak()
            move(client, task, check=True)
            memory = (memory_of("VmHWM") - before) / 1000
        cpu, began, done = time.process_time(), time.perf_counter(), 0
        while not done or time.perf_counter() < began + task.seconds:
            move(client, task)
            done += 1
        return Round(done, 1 + first + done, time.process_time() - cpu, time.perf_counter() - began, memory)


def move(client: Client, task: Task, *, check: bool = False) -> None:
    """Move the big body; the CRC of what comes is looked at if *check*. What was sent, peers.py looks at."""
    size = os.path.getsize(task.big)
    if task.action in ("file", "chunks"):
        with open(task.big, "rb") as file:
            whole = task.action == "file"
            status = client.put(f"/put/{task.client}", file if whole else pieces(file), size if whole else None)
        if status not in (201, 204):  # created, or replaced
            raise WrongBody(f"the server answered {status}")
        return
    length = checksum = 0

    def take(data: bytes) -> None:
        nonlocal length, checksum
        length += len(data)
        if check:
            checksum = zlib.crc32(data, checksum)

    if task.action == "stream":
        client.stream("/big", task.piece, take)
    else:
        take(client.get("/big"))
    if length != size or (check and checksum != task.checksum):
        raise WrongBody(f"{length} bytes, CRC-32 {checksum:x}; sent were {size}, {task.checksum:x}")


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(PIECE), b"")


def check_small(client: Client, task: Task) -> None:
    if (body := client.get("/small")) != task.small.encode():
        raise WrongBody(repr(body))


def reset_peak() -> float:
    """Forget the peak of the memory so far; return the memory in use, in kB."""
    # Not by getrusage: its ru_maxrss begins with that of the process that started this one, even after exec.
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to the current value
    return memory_of("VmRSS")


def memory_of(name: str) -> float:
    """Return a field of /proc/self/status, in kB of 1,000 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1.024
    raise LookupError(name)


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
