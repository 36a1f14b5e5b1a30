"""What comes on a link before it is known which protocol is spoken there."""

from __future__ import annotations

from .seam import Link, Receiver


class Prelude:
    """A Receiver that keeps what it is told, for the one who comes next."""

    answered = False

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._ends: list[Exception | None] = []

    def received(self, data: bytes) -> None:
        self._data.append(data)

    def ended(self, error: Exception | None) -> None:
        self._ends.append(error)

    def abandon(self) -> None:
        """Do nothing: who makes the connection is kept by the loop."""

    def pass_on(self, link: Link, receiver: Receiver) -> None:
        """Have *receiver* told from now on, and of what came."""
        link.receiver = receiver
        for data in self._data:
            receiver.received(data)
        for error in self._ends:
            receiver.ended(error)
