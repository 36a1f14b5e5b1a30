"""One trial: a client, its server, and the kernel's count of the ports, in a network namespace made for it."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from ...address import Destination
from ...errors import FewportsError
from ...kernel import diag
from . import namespace
from .child import Child, end_with_parent
from .namespace import NoNamespace
from .sampler import Sampler, held
from .work import Work, settings

FIRST_PORT = 40000  # of the namespace's range
SERVER_PORT = 8080  # outside of it: a listener would take its port from the clients
START = 10.0  # seconds for a process to start and say so
SPARE = 10.0  # seconds beyond a work's own limit, before a client is taken for stuck


class TrialFailed(FewportsError):
    """A trial came to no result."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client did, and what the kernel saw.

    *seconds* and *cpu* seconds are until the last answer. *opened* is the number of different flows, *peak*
    that of ports held at one time, *time_wait* of those left when the client had gone (both None where the
    kernel cannot be asked). *series* has the ports held, *bursts* what each burst did and failed, both by
    seconds since the work began.
    """

    done: int
    failed: int
    error: str | None
    seconds: float
    cpu: float
    opened: int
    peak: int | None
    time_wait: int | None
    series: tuple[tuple[float, int], ...]
    bursts: tuple[tuple[float, int, int], ...]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.done / self.seconds if self.seconds else 0.0


def run(client: str, work: Work, *, ports: int, isolated: bool, pause: float = 0.0, watch: float = 0.0) -> Outcome:
    """Have *client*, which is module:function, do *work*.

    If *isolated*, in a network namespace with that many local ports; else in this one, with its ports. The
    server takes *pause* seconds for an answer; the kernel is asked for *watch* seconds more than the client
    works. Raises NoNamespace or TrialFailed.
    """
    place = (FIRST_PORT, FIRST_PORT + ports - 1) if isolated else None
    options = {"client": client, "work": settings(work), "place": place, "pause": pause, "watch": watch}
    try:
        with Child(f"{__name__}:conduct", options) as child:
            told = child.read(3 * START + work.limit + SPARE + watch)
    except RuntimeError as error:
        raise TrialFailed(f"the trial of {client} came to no result: {error}") from error
    if "refused" in told:
        raise NoNamespace(told["refused"])
    for name in ("series", "bursts"):
        told[name] = tuple(tuple(entry) for entry in told[name])
    return Outcome(**told)


def conduct(
    client: str, work: dict[str, Any], place: tuple[int, int] | None, pause: float, watch: float
) -> dict[str, Any]:
    """Be the process of a trial, which enters the namespace and starts the others in it."""
    if place is not None:
        try:
            namespace.enter(*place)
        except NoNamespace as error:
            return {"refused": str(error)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave through each `with`
    end_with_parent()
    # In a namespace of our own any port is free; elsewhere the system names one.
    listen = [SERVER_PORT + number if place else 0 for number in range(work["destinations"])]
    with Child(f"{__package__}.server:serve", {"ports": listen, "pause": pause}) as server:
        destinations = [Destination(*address) for address in server.read(START)["addresses"]]
        urls = [f"http://{destination}/" for destination in destinations]
        asked = {"client": client, "urls": urls, "work": work}
        with Sampler(destinations) as sampler:
            with Child(f"{__package__}.work:be_client", asked) as worker:
                told = worker.read(START + work["limit"] + SPARE)
            time.sleep(watch)
        time_wait = held(destinations, diag.mask(diag.State.TIME_WAIT)) if diag.available() else None
        told |= server.finish()
    began = told.pop("began")
    told["bursts"] = [(at - began, *counts) for at, *counts in told["bursts"]]
    series = [(max(at - began, 0.0), number) for at, number in sampler.series if at >= began - 0.02]
    peak = max((number for _, number in series), default=None)
    return {**told, "peak": peak, "time_wait": time_wait, "series": changes(series)}


def changes(series: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Leave out what repeats the entry before it; the first and the last one stay."""
    kept = [entry for number, entry in enumerate(series) if number == 0 or entry[1] != series[number - 1][1]]
    return kept if not series or kept[-1] == series[-1] else [*kept, series[-1]]
