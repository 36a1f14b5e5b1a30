"""Whom a ledger tells what happened. Takes no lock, and lets no subscriber fail a request."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..events import Emit, Event

log = logging.getLogger("fewports")


class Hook:
    """The subscribers of one ledger."""

    def __init__(self) -> None:
        self.emits: tuple[Emit, ...] = ()  # replaced, never changed: emit() may be going through it
        self._broken: list[Emit] = []

    def subscribe(self, emit: Emit) -> Callable[[], None]:
        """Have *emit* called with each event; return what ends that."""
        self.emits += (emit,)

        def unsubscribe() -> None:
            self.emits = tuple(other for other in self.emits if other is not emit)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Tell all; what one of them raises is logged once."""
        for emit in self.emits:
            try:
                emit(event)
            except Exception:
                if not any(emit is other for other in self._broken):  # it may have no hash
                    self._broken.append(emit)
                    log.exception("the subscriber %r failed on %r; this is logged once", emit, event)
