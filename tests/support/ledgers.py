"""The check that runs after each test: a ledger is empty, or it says what the kernel says."""

from __future__ import annotations

import contextlib
import gc
import time

from fewports.kernel import diag
from fewports.ledger.account import Lease
from fewports.ledger.local import Ledger, ledgers
from support.sampler import Kernel

PATIENCE = 2.0  # seconds for connections that were just closed to be acknowledged


def disagreements() -> list[str]:
    """Return what the ledgers of this process hold and the kernel does not; empty when all is well."""
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while (found := _disagreements()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _disagreements() -> list[str]:
    found: list[str] = []
    books = [ledger for ledger in list(ledgers) if ledger._referee.ask is diag.look_up and _holds(ledger)]
    if not books:
        return found
    with contextlib.closing(Kernel()) as kernel:
        rows = {row[:4] for row in kernel._dump()}
    for ledger in books:
        for lease in list(ledger._leases):
            if lease.state == Lease.DIALING or lease.flow is None:
                found.append(f"{lease!r} was neither used nor given back")
            elif (lease.flow.source, lease.flow.port, *lease.flow.destination) not in rows:
                found.append(f"{lease!r} has no connection in the kernel")
        for closing in list(ledger._closings._by_flow.values()):
            if (closing.flow.source, closing.flow.port, *closing.flow.destination) not in rows:
                found.append(f"{closing.flow} is free, and the ledger holds it")
        for account in list(ledger._accounts.values()):
            if account.waiting:
                found.append(f"{account!r} keeps somebody waiting")
    return found


def _holds(ledger: Ledger) -> bool:
    return bool(ledger.usage())
