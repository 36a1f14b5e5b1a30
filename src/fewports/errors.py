"""What fewports raises: one root and its leaves.

None is an OSError or an error of urllib3: urllib3 would dial again after the first, and lose a place
of its pool on the second. The faces add the wrapped library's class on the last step out.
"""

from __future__ import annotations

from collections.abc import Mapping

from .usage import Usage


class FewportsError(Exception):
    """Root of all errors of fewports."""


class InvalidOption(FewportsError, ValueError):
    """An option that cannot work, found when it was given."""


class LeaseError(FewportsError, RuntimeError):
    """A lease was released twice, or used after its release: a bug in the calling code."""


class BudgetExhausted(FewportsError):
    """No port could be had within the budget, at once or in the time allowed.

    ``usage`` has the numbers of the account that refused, ``next_due`` the seconds until the next of
    its ports leaves TIME_WAIT (None if none is in TIME_WAIT), ``waited`` the seconds spent in line.
    """

    def __init__(self, usage: Usage, *, next_due: float | None = None, waited: float = 0.0) -> None:
        self.usage = usage
        self.next_due = next_due
        self.waited = waited
        Exception.__init__(self, usage, next_due, waited)  # the faces' classes come next, and take other arguments

    def __str__(self) -> str:
        facts = str(self.usage)
        if self.next_due is not None and facts.endswith(")"):
            facts = f"{facts[:-1]}; next in {self.next_due:.1f} s)"
        if self.usage.scope == "client":
            facts += " of this client's own budget"
        waited = f" after {self.waited:.1f} s in line" if self.waited >= 0.05 else ""
        return f"{facts}{waited}: {self._advice()}"

    def _advice(self) -> str:
        usage = self.usage
        if usage.scope == "pace":
            return "too many connections are being dialled at once; wait longer, or raise dialing="
        if usage.scope == "total":
            return "send fewer requests at once, allow a longer wait, or allow more connections"
        if usage.held < usage.budget:
            return "the kernel has no port left: other programs hold them; add a source address"
        more = "add a source address" if " -> " in usage.account else "raise the budget"
        if usage.time_wait * 2 > usage.held:
            return f"reuse connections, or {more}"
        if usage.active * 2 > usage.held:
            return f"send fewer requests at once, allow a longer wait, or {more}"
        return f"allow a longer wait, or {more}"

    def __reduce__(self) -> tuple[object, ...]:
        return _exhausted, (type(self), self.usage, self.next_due, self.waited)


class NoUsableSource(FewportsError):
    """No source address can reach the destination; ``reasons`` tells why for each."""

    def __init__(self, destination: str, reasons: Mapping[str, str]) -> None:
        self.destination = destination
        self.reasons = dict(reasons)
        Exception.__init__(self, destination, self.reasons)

    def __str__(self) -> str:
        why = "; ".join(f"{source}: {reason}" for source, reason in self.reasons.items())
        return f"no usable source address for {self.destination} ({why}): check sources= against `ip address`"


def _exhausted(kind: type[BudgetExhausted], usage: Usage, next_due: float | None, waited: float) -> BudgetExhausted:
    return kind(usage, next_due=next_due, waited=waited)
