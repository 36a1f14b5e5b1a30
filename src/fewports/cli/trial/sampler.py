"""How many ports are held, over time: the kernel's own count, whoever holds them and in whatever state."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from ...address import Destination
from ...kernel import diag

INTERVAL = 0.01  # seconds


def held(destinations: Sequence[Destination], states: int = diag.CONNECTED) -> int:
    """Return how many ports are held towards *destinations* now, by whom ever."""
    # On loopback the server's ends are sockets too, but their destinations are the clients' ports.
    return sum(diag.count(destination=destination, states=states) for destination in destinations)


class Sampler:
    """Asks the kernel every 10 ms while the block lasts. *series* has the counts, each with its time.

    It stays empty where the kernel cannot be asked.
    """

    def __init__(self, destinations: Sequence[Destination]) -> None:
        self.series: list[tuple[float, int]] = []
        self._destinations = destinations
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while diag.available():
            self.series.append((monotonic(), held(self._destinations)))
            if self._over.wait(INTERVAL):
                return
