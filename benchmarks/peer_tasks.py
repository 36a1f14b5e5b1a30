"""A round of a client of tasks, in its loop: asyncio or trio."""

from __future__ import annotations

import asyncio
import time

from peer_async_clients import AsyncClient
from peer_memory import memory_of, reset_peak
from peer_task import BATCH, WARM, Got, Round, Task, WrongBody


def ask(kind: type[AsyncClient], task: Task, *, first: bool) -> Round:
    """GET the small body for some seconds by all tasks, or as often as it is launched; or stream the big one."""
    import anyio  # optional

    return anyio.run(_ask, kind(task.place), task, first, backend=kind.loop)


async def _ask(client: AsyncClient, task: Task, first: bool) -> Round:
    await client.open()
    try:
        if (body := await client.get("/small")) != task.small.encode():
            raise WrongBody(repr(body))
        if task.action == "get":
            return await together(client, task)
        return await (launch if task.action == "launch" else stream)(client, task, first)
    finally:
        await client.close()


async def together(client: AsyncClient, task: Task) -> Round:
    """Have so many tasks ask again and again."""
    import anyio

    number = task.place.threads
    done = 0

    async def warm() -> None:
        for _ in range(WARM // number):
            await client.get("/small")

    async def repeat() -> None:
        nonlocal done
        while not done or time.perf_counter() < until:  # once at least, also where other programs took the time
            for _ in range(BATCH):
                await client.get("/small")
            done += BATCH

    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(warm)
    cpu, began = time.process_time(), time.perf_counter()
    until = began + task.seconds
    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(repeat)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    return Round(done, 1 + WARM // number * number + done, cpu, wall)


async def launch(client: AsyncClient, task: Task, first: bool) -> Round:
    """Ask so many times at once, each time in a task of its own; see in the *first* round what memory it takes.

    The tasks are the loop's own: those of an anyio group cost 30 us more each, whatever client they use.
    """
    done = 0

    async def once() -> None:
        nonlocal done
        await client.get("/small")
        done += 1

    before = reset_peak()
    cpu, began = time.process_time(), time.perf_counter()
    if client.loop == "asyncio":
        async with asyncio.TaskGroup() as group:
            for _ in range(task.launched):
                group.create_task(once())
    else:
        import trio

        async with trio.open_nursery() as nursery:
            for _ in range(task.launched):
                nursery.start_soon(once)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    return Round(done, 1 + done, cpu, wall, (memory_of("VmHWM") - before) / 1000 if first else None)


async def stream(client: AsyncClient, task: Task, first: bool) -> Round:
    """Have so many tasks stream the big body; the *first* round sees before what memory one takes."""
    import anyio

    async def move(check: bool) -> None:
        got = Got(check)
        await client.stream("/big", task.piece, got.take)
        got.judge(task)

    memory = None
    if first:
        before = reset_peak()
        await move(True)
        memory = (memory_of("VmHWM") - before) / 1000
    cpu, began, done = time.process_time(), time.perf_counter(), 0
    while not done or time.perf_counter() < began + task.seconds:
        async with anyio.create_task_group() as group:
            for _ in range(task.place.threads):
                group.start_soon(move, False)
        done += task.place.threads
    return Round(done, 1 + first + done, time.process_time() - cpu, time.perf_counter() - began, memory)
