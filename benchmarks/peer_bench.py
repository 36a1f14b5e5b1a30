"""The rounds of peers.py: each client takes its turn in each, and what it came to is kept."""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from peer_cases import Case
from peer_clients import Place
from peer_nginx import SMALL, Nginx
from peer_task import Failed, Task
from peer_work import Worker

LIMIT = 60.0  # seconds for a round beyond those that it measures, before the client is taken for stuck
PATIENCE = 3  # rounds that a client may have to make again, because something went wrong in them


class Measured(NamedTuple):
    """The rounds of one client in one case."""

    cpu: list[float]  # seconds per request
    wall: list[float]  # seconds per request
    ports: list[int]
    requests: list[int]  # all of them, as the ports are
    memory: float | None
    failed: list[str]  # what went wrong in rounds that were made again


Outcome = Measured | str  # or what went wrong


class Bench:
    """The server and what it serves. *place* is a directory for all files."""

    def __init__(self, place: Path, clients: Sequence[str], arguments: argparse.Namespace) -> None:
        self.megabytes: int = arguments.megabytes
        cores = sorted(os.sched_getaffinity(0))
        self.cores = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)  # the server's, the client's
        self._place, self._clients = place, clients
        self._rounds: int = arguments.rounds
        self._seconds: float = arguments.seconds
        self._launched: int = arguments.launched
        self._big = place / "big"

    def __enter__(self) -> Self:
        self._checksum = 0
        with self._big.open("wb") as file:
            for _ in range(self.megabytes):
                data = os.urandom(1_000_000)
                file.write(data)
                self._checksum = zlib.crc32(data, self._checksum)
        # A destination for each client: the ports that one leaves in TIME_WAIT are none of the next one's.
        addresses = {name: f"127.0.1.{number}" for number, name in enumerate(self._clients, 1)}
        self._nginx = Nginx(self._place, addresses, self.cores[0])
        self._nginx.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._nginx.stop()

    def measure(self, case: Case) -> dict[str, Outcome]:
        """Have each client do a round in turn, until all rounds are done."""
        outcomes: dict[str, Outcome] = {}
        names = [name for name in self._clients if name in case.kinds]
        with contextlib.ExitStack() as stack:
            workers = {name: stack.enter_context(Worker(self._task(case, name))) for name in names}
            for name, worker in workers.items():
                try:
                    worker.await_start()
                except Failed as error:
                    outcomes[name] = str(error)
            for number in range(self._rounds):
                for name in turned(names, number):
                    before = outcomes.get(name, Measured([], [], [], [], None, []))
                    if isinstance(before, Measured):
                        outcomes[name] = self._round(workers[name], name, before)
        return {name: outcomes[name] for name in names}

    def _task(self, case: Case, name: str) -> Task:
        address, port = self._nginx.where(name, tls=case.tls, http2=case.http2)
        ca = self._nginx.ca if case.tls else None
        return Task(
            client=name,
            family=case.family,
            place=Place(address, port, ca, case.threads, case.anew, case.http2),
            action=case.action,
            seconds=self._seconds,
            launched=self._launched,
            piece=case.piece,
            small=SMALL,
            big=str(self._big),
            checksum=self._checksum,
            core=self.cores[1],
            limit=LIMIT + self._seconds,
        )

    def _round(self, worker: Worker, name: str, before: Measured) -> Outcome:
        accepted = self._nginx.accepted()
        try:
            told = worker.round()
        except Failed as error:
            failed = [*before.failed, str(error)]
            if len(failed) > PATIENCE or not worker.alive:
                return str(error)
            return self._round(worker, name, before._replace(failed=failed))
        if (sent := self._place / "put" / name).exists():
            if not before.cpu and not filecmp.cmp(sent, self._big, shallow=False):
                return "the server has received something else"
            sent.unlink()
        return Measured(
            [*before.cpu, told["cpu"] / told["requests"]],
            [*before.wall, told["wall"] / told["requests"]],
            [*before.ports, self._nginx.accepted() - accepted],
            [*before.requests, told["total"]],
            before.memory if before.cpu else told["memory"],
            before.failed,
        )


def turned(names: Sequence[str], number: int) -> Iterator[str]:
    """Yield all names, in each round from another one on: nobody always follows the same one after the same time."""
    for at in range(len(names)):
        yield names[(number + at) % len(names)]
