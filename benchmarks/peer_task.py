"""What a client's process of peers.py is told to do, and what it tells of it."""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

from peer_clients import Place

WARM = 300  # requests before those that are measured, by all threads or tasks together
BATCH = 10  # requests between two looks at the clock


class Task(NamedTuple):
    """What to do with a client of a *family*: *action* is get, launch, stream, whole, file or chunks.

    launch asks *launched* times at once; what stands after get and launch moves a big body, that of *big*, a file
    which the server has, too; *checksum* is its CRC-32.
    """

    client: str
    family: str
    place: Place
    action: str
    seconds: float
    launched: int
    piece: int
    small: str
    big: str
    checksum: int
    core: int | None
    limit: float


class Round(NamedTuple):
    """What a round came to: times in seconds; *memory* is what the first round added to the peak, in MB."""

    requests: int
    total: int  # with those that were not measured
    cpu: float
    wall: float
    memory: float | None = None


class Got:
    """What came of a big body; its CRC is looked at if *check*."""

    def __init__(self, check: bool) -> None:
        self._check = check
        self._length = self._checksum = 0

    def take(self, data: bytes) -> None:
        self._length += len(data)
        if self._check:
            self._checksum = zlib.crc32(data, self._checksum)

    def judge(self, task: Task) -> None:
        """Raise WrongBody if it is not what the server sent."""
        size = os.path.getsize(task.big)
        if self._length != size or (self._check and self._checksum != task.checksum):
            told = f"{self._length} bytes, CRC-32 {self._checksum:x}; sent were {size}, {task.checksum:x}"
            raise WrongBody(told)


class Failed(Exception):
    """A client came to no result."""


class WrongBody(Exception):
    """A client gave something else than the server sent."""
