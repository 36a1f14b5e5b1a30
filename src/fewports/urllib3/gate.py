"""What a face of urllib3 is configured with, and its two errors of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import urllib3
from urllib3.exceptions import HTTPError, PoolError

from .. import errors
from ..address import Origin
from ..budget import Budget
from ..dial import To
from ..ledger.local import Ledger
from ..ledger.shared import shared_ledger
from ..pool import AGE_LIMIT, IDLE_LIMIT, Limits
from ..source import Sources
from ..tcp import pick_sources


class BudgetExhausted(errors.BudgetExhausted, PoolError):
    """No port within the budget. A PoolError, as when a bounded pool is empty; urllib3 does not retry it."""

    def __init__(self, error: errors.BudgetExhausted, pool: object = None) -> None:
        errors.BudgetExhausted.__init__(self, error.usage, next_due=error.next_due, waited=error.waited)
        self.pool = cast("urllib3.connectionpool.ConnectionPool", pool)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        plain = errors.BudgetExhausted(self.usage, next_due=self.next_due, waited=self.waited)
        return type(self), (plain,)


class NoUsableSource(errors.NoUsableSource, HTTPError):
    """No source address reaches the destination."""


class Gate:
    """What a manager, a pool or a session was configured with: its own budget, sources and ledger."""

    def __init__(
        self,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        http2: bool | str = "auto",
    ) -> None:
        self.budget = None if budget is None else Budget.of(budget)
        self.sources = None if sources is None else Sources.of(sources)
        self.own_ledger = ledger
        for name, value in (("idle_limit", idle_limit), ("max_age", max_age)):
            if not value > 0:
                raise errors.InvalidOption(f"{name}={value!r} is not a time in seconds; give more than 0")
        if http2 not in (True, False, "auto"):
            raise errors.InvalidOption(f"http2={http2!r} is not one of 'auto', True and False")
        self.http2 = http2
        self.idle_limit = idle_limit
        self.max_age = max_age

    @property
    def ledger(self) -> Ledger:
        return self.own_ledger or shared_ledger()

    def limits(self, maxsize: int, block: bool) -> Limits:
        return Limits(maxsize, maxsize if block else None, self.idle_limit, self.max_age)

    def to(self, origin: Origin, source_address: tuple[str, int] | None) -> To:
        """Say how to reach *origin*; raises InvalidOption or OSError for a bad source address."""
        ledger = self.ledger
        sources, port = pick_sources(ledger, self.sources if source_address is None else None, source_address)
        return To(origin, ledger, sources, self.budget, self if self.budget else None, port)


open_gate = Gate()
