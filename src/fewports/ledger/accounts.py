"""Which accounts a port is charged to, under one budget: each with a name and a limit, made when it is first named.

Called by a ledger under its lock.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from ..address import PortSpace
from ..budget import Budget, Limit
from .account import Account, Want

WHOLE_RANGE = Limit(None, 1.0)
Key = tuple[object, ...]


class Accounts(WeakValueDictionary[Key, Account]):
    """The accounts of a ledger under *budget*, where the kernel's range has *capacity* ports.

    An account lives as long as a want, a lease or a closing names it: two for one key cannot be.
    """

    def __init__(self, budget: Budget, capacity: int) -> None:
        super().__init__()
        self.budget = budget
        self.capacity = capacity

    def of(self, space: PortSpace) -> Account | None:
        """Return the account of the space itself, if anything names it."""
        return self.get(("range", space))

    def want(self, space: PortSpace, host: str, own: Budget | None, client: object) -> Want:
        """Name what a port of *space* is charged to, for a *client* with a budget of its *own*."""
        if self.budget.uniform and (share := self.budget.limit).share is not None:
            # Each space has its share of the range, which is less than the range: one account says both.
            accounts = [self._account(("range", space), str(space), "ledger", share, self.budget)]
        else:
            accounts = [
                self._account(("range", space), str(space), "range", WHOLE_RANGE, self.budget),
                self._charge("ledger", self.budget, None, space, host),
            ]
        if own is not None:
            accounts.append(self._charge("client", own, client, space, host))
        for budget, owner in ((self.budget, None), (own, client)):
            if budget is not None and budget.connections is not None:
                rule = Limit(budget.connections, None)
                accounts.append(self._account(("total", owner), "all destinations", "total", rule, budget))
        pace = None
        bounding, pacer = (own, client) if own and own.dialing else (self.budget, None)
        if bounding.dialing:
            key = ("pace", pacer, space.destination)
            rule = Limit(bounding.dialing, None)
            pace = self._account(key, f"dialing to {space.destination}", "pace", rule, bounding)
        return Want(space, tuple(accounts), pace, host, client, own)

    def same(self, want: Want) -> Want:
        """Name what the port of *want*, which was named under another budget, is charged to under this one."""
        return self.want(want.space, want.host, want.budget, want.client)

    def _account(self, key: Key, name: str, scope: str, rule: Limit, budget: Budget) -> Account:
        account = self.get(key)
        if account is None:
            account = self[key] = Account(name, scope, rule, budget, self.capacity)
        return account

    def _charge(self, scope: str, budget: Budget, client: object, space: PortSpace, host: str) -> Account:
        group = budget.group(space.destination, host)
        if group.limit.share is None:
            return self._account((scope, client, group.name, None), group.name, scope, group.limit, budget)
        name = f"{space.source} -> {group.name}"
        return self._account((scope, client, group.name, space.source), name, scope, group.limit, budget)
