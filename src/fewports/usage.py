"""How many ports an account holds, and in which state: a value, made when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """The ports charged to one account at one moment.

    ``scope`` says whose limit it is: ``range`` (what the kernel has for this port space), ``ledger``
    (the budget of a ledger), ``client`` (the budget of one session, manager or pool), ``pace``
    (connections being dialled at once) or ``total`` (connections over all destinations).
    """

    account: str
    scope: str
    budget: int
    dialing: int = 0
    active: int = 0
    idle: int = 0
    time_wait: int = 0
    waiting: int = 0

    @property
    def held(self) -> int:
        """Ports held: all but the callers in line, who hold none."""
        return self.dialing + self.active + self.idle + self.time_wait

    def __str__(self) -> str:
        states = (
            (self.dialing, "dialing"),
            (self.active, "active"),
            (self.idle, "idle"),
            (self.time_wait, "in TIME_WAIT"),
        )
        parts = ", ".join(f"{number} {state}" for number, state in states if number)
        what = "connections" if self.scope == "total" else "ports"
        return f"{self.account} holds {self.held} of {self.budget} {what}" + (f" ({parts})" if parts else "")
