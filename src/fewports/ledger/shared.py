"""The ledger that all faces of this process share, unless they are given another."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..budget import Budget
from ..source import Sources
from .local import Ledger

_lock = threading.Lock()
_shared: list[Ledger] = []


def shared_ledger() -> Ledger:
    """Return the process's ledger, made when it is first needed."""
    if not _shared:
        with _lock:
            if not _shared:
                _shared.append(Ledger())
    return _shared[0]


def configure(
    *, budget: int | str | Budget | None = None, sources: Iterable[str] | str | Sources | None = None
) -> Ledger:
    """Set the budget and the sources of the ledger that all faces share; return it.

    May be called at any time: ports held already stay held, and count against the new budget.
    Raises InvalidOption.
    """
    ledger = shared_ledger()
    ledger.configure(budget, sources)
    return ledger
