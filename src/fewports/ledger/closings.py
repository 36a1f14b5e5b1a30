"""Ports that outlive their connection, and what the kernel says of them.

Called by a ledger under its lock, except for ask(), which puts questions to the kernel. State: the closings
by flow, and in the order in which their ports should be free. Nearly all keep the time that they were given
first, so they need a queue only, and no entry of their own; the others are in a heap (entries that no longer
agree with their closing are skipped).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from operator import attrgetter
from typing import NamedTuple

from ..address import Flow
from ..kernel import diag, facts
from .account import Account, Closing, Want

TIME_WAIT = 60.0  # seconds; TCP_TIMEWAIT_LEN, include/net/tcp.h
OVERTIME = 2.0  # seconds for which the kernel's coarse timers may keep a port past its time (measured: 0.2)
NEAR = 256  # closings looked at one by one before all of an account are: 20,000 take a millisecond
_due = attrgetter("due")
_keeps = attrgetter("keeps")
QUESTIONS = 64  # put to the kernel at most before an answer; 5 us each, so a refusal stays under 1 ms


class Referee(NamedTuple):
    """What a ledger asks of the system: the size of the range, the hold of a closed flow, its state."""

    capacity: Callable[[float], int]
    hold: Callable[[str, str, float], float]
    ask: Callable[[Flow], diag.Row | None] | None


def kernel_referee() -> Referee:
    """Ask the system that we run on."""
    ask = diag.look_up if diag.available() else None
    return Referee(system_capacity, facts.time_wait_hold, ask)


_sized: tuple[facts.PortRange | None, int] = (None, 0)


def system_capacity(now: float) -> int:
    """Return the number of ports that the kernel chooses from."""
    global _sized
    ports = facts.port_range(now)
    if ports is not _sized[0]:
        _sized = (ports, ports.size)
    return _sized[1]


class Closings:
    """Keep the ports of closed connections until the kernel lets go of them."""

    def __init__(self, referee: Referee) -> None:
        self._referee = referee
        self._queue: deque[Closing] = deque()  # by due; only those that are fresh count
        self._latest = -inf  # the due time at its end
        self._heap: list[tuple[float, Closing]] = []
        self._by_flow: dict[Flow, Closing] = {}
        self.watched: set[Closing] = set()  # sockets in unknown hands; the kernel says when they are gone

    def make(self, flow: Flow, want: Want, now: float) -> Closing:
        """Describe the port of a connection that we closed just now."""
        if self._referee.ask:
            # A shorter hold (tcp_tw_reuse) is for TIME_WAIT alone, which only the kernel knows of: the peer
            # may leave us in FIN_WAIT2.
            return Closing(flow, want, now + TIME_WAIT, now)
        return Closing(flow, want, now + self._referee.hold(flow.source, flow.destination.address, now), inf)

    def of(self, flow: Flow) -> Closing | None:
        return self._by_flow.get(flow)

    def add(self, closing: Closing) -> None:
        """Go on counting a port whose connection is closed."""
        self._by_flow[closing.flow] = closing
        self.charge(closing)
        if closing.fresh and closing.due >= self._latest:
            self._latest = closing.due
            self._queue.append(closing)
        else:
            heapq.heappush(self._heap, (closing.due, closing))
        if len(self._queue) + len(self._heap) > 2 * len(self._by_flow) + 1000:
            others = sorted(other for other in self._by_flow.values() if not other.watched)
            self._queue = deque(other for other in others if other.fresh)
            self._latest = self._queue[-1].due if self._queue else -inf
            self._heap = [(other.due, other) for other in others if not other.fresh]  # sorted is a heap

    def watch(self, closing: Closing) -> None:
        """Go on counting a connection that has an owner whom we do not know."""
        closing.watched = True
        self.watched.add(closing)
        self._by_flow[closing.flow] = closing
        self.charge(closing)

    def charge(self, closing: Closing) -> None:
        """Enter *closing* with each of its accounts."""
        asked = closing.ask_at < inf
        for account in filter(_keeps, closing.want.accounts):
            account.kept.add(closing)
            if closing.watched:
                account.watched.add(closing)
            fresh = account.fresh
            if fresh and (not fresh[0].fresh or len(fresh) > 2 * len(account.kept) + 16):
                account.tidy()
            if asked and closing.fresh:
                account.fresh.append(closing)
        if not closing.fresh:
            self._ask_again(closing)

    def end(self, closing: Closing) -> None:
        """Note that the kernel let go of it."""
        closing.done = True
        closing.fresh = False
        closing.ask_at = inf
        if self._by_flow.get(closing.flow) is closing:
            del self._by_flow[closing.flow]
        self.watched.discard(closing)
        for account in closing.want.accounts:
            account.kept.discard(closing)
            account.watched.discard(closing)

    def over(self, now: float, unsure: list[Closing], most: float = QUESTIONS) -> Iterator[Closing]:
        """Give those whose time is up; note as *unsure* those, *most* of them, that the kernel is asked about first.

        They count until it says that they are gone: a peer that does not close, or has vanished, makes it keep a port
        for longer than a minute. A time that it named itself is asked about too: it was reckoned from the clock of a
        caller who may have waited for his turn since, and the kernel's timers are coarse.
        """
        while self.next_due() <= now and len(unsure) < most:
            if self._heap and (not self._queue or self._heap[0][0] < self._queue[0].due):
                closing = heapq.heappop(self._heap)[1]
            else:
                closing = self._queue.popleft()
            if not self._referee.ask or closing.overtime >= OVERTIME:
                yield closing
                continue
            if closing.final:
                closing.overtime += 0.1
            closing.due = now + 0.1
            heapq.heappush(self._heap, (closing.due, closing))
            closing.fresh = False
            unsure.append(closing)

    def next_due(self) -> float:
        """Return when over() has something to give; inf for never."""
        queue, heap = self._queue, self._heap
        while queue and not queue[0].fresh:
            queue.popleft()
        while heap and (heap[0][1].done or heap[0][1].due != heap[0][0]):
            heapq.heappop(heap)
        first = queue[0].due if queue else inf
        return min(first, heap[0][0]) if heap else first

    def next_of(self, account: Account, now: float) -> float | None:
        """Return the seconds until the next port of *account* leaves TIME_WAIT, if one is in it."""
        if not account.keeps:
            return None
        self.next_due()  # drops what no longer counts at the front of the queue and at the top of the heap
        near = (closing for closing in islice(self._queue, NEAR) if closing.fresh and account in closing.want.accounts)
        first = next(near, None)
        top = self._heap[:1] if self._heap and account in self._heap[0][1].accounts else self._heap
        if len(top) <= NEAR and (first or len(self._queue) <= NEAR):
            others = [due for due, closing in top if due == closing.due and account in closing.accounts]
            times = [first.due, *others] if first else others
        else:
            times = list(map(_due, account.kept - account.watched))
        return max(0.0, min(times) - now) if times else None

    def questions(self, accounts: Iterable[Account], now: float) -> list[Closing]:
        """Take those of *accounts* that the kernel should be asked about now: QUESTIONS at most."""
        found: dict[Closing, None] = {}
        for account in accounts:
            while len(found) < QUESTIONS and account.next_question() <= now:
                found[account.pop_question()] = None
        return list(found)

    def ask(self, closing: Closing, now: float) -> bool:
        """Ask the kernel whether it has let go of a port; else note when to expect it, or to ask again."""
        if not self._referee.ask:
            return False
        try:
            row = self._referee.ask(closing.flow)
        except OSError:  # no descriptor left for the question, say: it is put again
            closing.learn(closing.due, now, final=False)
            return False
        if row is None:
            return True
        if row.state != diag.State.TIME_WAIT:
            closing.learn(now + (row.remaining or TIME_WAIT), now, final=False)
            return False
        if row.remaining is None:
            closing.learn(closing.due, now, final=True)
            return False
        hold = self._referee.hold(closing.flow.source, closing.flow.destination.address, now)
        if hold >= TIME_WAIT:
            closing.learn(now + max(row.remaining, 0.05), now, final=True)
            return False
        # A shorter hold (tcp_tw_reuse) runs from the beginning of TIME_WAIT; its row stays for all of it.
        due = now + row.remaining - (TIME_WAIT - hold)
        closing.learn(due, now, final=True)
        return due <= now

    def note(self, closing: Closing) -> None:
        """Note what ask() found out."""
        if closing.watched and closing.final:
            self.watched.discard(closing)  # whoever had its socket has closed it: TIME_WAIT
            closing.watched = False
            for account in closing.want.accounts:
                account.watched.discard(closing)
        self._ask_again(closing)
        if not closing.watched:
            heapq.heappush(self._heap, (closing.due, closing))

    def charge_anew(self, wants: Callable[[Want], Want]) -> None:
        """Charge all to the accounts that *wants* names now."""
        for closing in sorted(self._by_flow.values()):
            closing.want = wants(closing.want)
            self.charge(closing)

    def _ask_again(self, closing: Closing) -> None:
        if closing.ask_at < inf:
            for account in filter(_keeps, closing.want.accounts):
                heapq.heappush(account.questions, (closing.ask_at, closing))
                if len(account.questions) > 2 * len(account.kept) + 16:
                    account.tidy()
