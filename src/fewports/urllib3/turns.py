"""How a request that may go straight waits for a port: behind others, so that it gets the connection as it is."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from urllib3.exceptions import ClosedPoolError

from .. import errors
from ..pool import PoolClosed
from ..standing import Turn, followed
from ..sync.dial import follow
from .connection import HTTPConnection, Kept
from .gate import BudgetExhausted

if TYPE_CHECKING:
    from .pool import HTTPConnectionPool


def take_turn(pool: HTTPConnectionPool, timeout: Any, pool_timeout: Any) -> Kept | None:
    """Return what came of a stand in line, in a place of *pool*: a closed connection has the turn to dial.

    None if there is nobody to follow, or a bound on the whole request, of which connect() takes off the wait.
    """
    home = pool.home
    if home.limits.bound is not None or (wants := followed(home, monotonic())) is None:
        return None
    times = pool._times(timeout)
    if times is None or times.deadline is not None or type(pool_timeout) not in (type(None), int, float):
        return None
    home.add_place()
    outcome = None
    try:
        outcome = follow(wants, pool.gate.ledger, home, pool_timeout)
        if isinstance(outcome, Turn):
            conn = pool._shell() or cast(HTTPConnection, pool._new_conn())
            conn._ticket = outcome
            return conn
    except errors.BudgetExhausted as error:
        home.drop_place()
        raise BudgetExhausted(error, pool) from error
    except PoolClosed:
        home.drop_place()
        raise ClosedPoolError(cast(Any, pool), "Pool is closed.") from None
    except BaseException:
        home.drop_place()
        if isinstance(outcome, Turn):
            pool.gate.ledger.give_up(outcome.lease, monotonic())
        raise
    home.adopted()
    return outcome
