"""A round of a client of threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from threading import Barrier, BrokenBarrierError
from typing import IO

from peer_clients import Client
from peer_memory import memory_of, reset_peak
from peer_task import BATCH, WARM, Got, Round, Task, WrongBody

PIECE = 1 << 16  # bytes that an iterable yields


def ask(kind: type[Client], task: Task) -> Round:
    """GET the small body for some seconds."""
    threads = task.place.threads
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


def transfer(kind: type[Client], task: Task, *, first: bool) -> Round:
    """Move the big body for some seconds, once at least; the *first* round sees before what memory it takes."""
    threads = task.place.threads
    with closing(kind(task.place)) as client, ThreadPoolExecutor(threads) as pool:
        check_small(client, task)
        memory = None
        if first:
            before = reset_peak()
            move(client, task, check=True)
            memory = (memory_of("VmHWM") - before) / 1000
        cpu, began, done = time.process_time(), time.perf_counter(), 0
        while not done or time.perf_counter() < began + task.seconds:
            if threads == 1:
                move(client, task)
            else:
                list(pool.map(lambda _: move(client, task), range(threads)))
            done += threads
        return Round(done, 1 + first + done, time.process_time() - cpu, time.perf_counter() - began, memory)


def move(client: Client, task: Task, *, check: bool = False) -> None:
    """Move the big body; the CRC of what comes is looked at if *check*. What was sent, peers.py looks at."""
    if task.action in ("file", "chunks"):
        with open(task.big, "rb") as file:
            whole = task.action == "file"
            length = os.path.getsize(task.big) if whole else None
            status = client.put(f"/put/{task.client}", file if whole else pieces(file), length)
        if status not in (201, 204):  # created, or replaced
            raise WrongBody(f"the server answered {status}")
        return
    got = Got(check)
    if task.action == "stream":
        client.stream("/big", task.piece, got.take)
    else:
        got.take(client.get("/big"))
    got.judge(task)


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(PIECE), b"")


def check_small(client: Client, task: Task) -> None:
    if (body := client.get("/small")) != task.small.encode():
        raise WrongBody(repr(body))
