"""Open a connection through the gate, or take one over, in a task."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from math import inf
from time import monotonic
from typing import TypeVar

from ..address import Destination
from ..dial import To
from ..dialing import Connect, Dialing, Limits, Queue
from ..gated import GatedSocket, SocketOption
from ..pool import Pool
from ..standing import Endable, Floor
from ..sync import exit, fork  # noqa: F401 - what is to happen at exit and in a forked child
from ..sync.timer import timer
from .seam import Loop

C = TypeVar("C", bound=Endable)
FLOOR = Floor(monotonic, timer.watch_ledger)


async def dial(
    loop: Loop,
    to: To,
    destinations: Iterable[Destination],
    limits: Limits,
    *,
    options: Sequence[SocketOption] = (),
    pool: Pool[C] | None = None,
) -> GatedSocket | C:
    """Return a connected socket with its lease, or a connection of *pool* that came free first.

    Raises BudgetExhausted, NoUsableSource, PoolClosed, TimeoutError or the OSError of the last attempt.
    """
    alarm = loop.alarm()
    steps = Dialing(to, destinations, limits, alarm.wake, FLOOR, options=options, pool=pool).steps()
    try:
        step = next(steps)
        while True:
            try:
                ready: Sequence[GatedSocket] = ()
                if isinstance(step, Queue):
                    await alarm.wait(step.seconds)
                elif isinstance(step, Connect):
                    await _connect(step, loop, inf if limits.timeout is None else monotonic() + limits.timeout)
                else:
                    ready = await loop.writable(step.sockets, step.until)
            except BaseException as error:
                step = steps.throw(error)  # a cancellation gives back what was taken, and comes out again
            else:
                step = steps.send(ready)
    except StopIteration as end:
        outcome: GatedSocket | C = end.value
        return outcome
    finally:
        steps.close()


async def _connect(step: Connect, loop: Loop, until: float) -> None:
    sock, name = step
    sock.setblocking(False)
    code = sock.connect_ex(name)
    if code == errno.EINPROGRESS:
        if not await loop.writable([sock], until):
            raise TimeoutError("timed out")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
