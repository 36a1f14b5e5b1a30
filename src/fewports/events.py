"""What happened to a port: frozen values, handed to whoever subscribed to a ledger.

An Emit is called in the thread in which the thing happened, without any lock held. It should be
quick; what it raises is logged once and goes no further.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from .address import Flow, PortSpace
from .usage import Usage


class Level(Enum):
    """How full an account is; the values are shares of its budget."""

    NORMAL = 0.0
    WARNING = 0.6
    CRITICAL = 0.8


class CloseReason(Enum):
    """Why a connection was closed."""

    DONE = "its user closed it"
    PEER_CLOSED = "the peer had closed it"
    IDLE = "it was idle for too long"
    AGE = "it reached its maximum age"
    GAVE_WAY = "somebody else needed its port"
    POOL_CLOSED = "its pool was closed"
    DROPPED = "nobody referred to it any more"


@dataclass(frozen=True, slots=True)
class PortReserved:
    """A lease was given for one port of the space."""

    space: PortSpace


@dataclass(frozen=True, slots=True)
class DialFailed:
    """An attempt failed in this system call; its lease was given back."""

    space: PortSpace
    call: str
    error: OSError


@dataclass(frozen=True, slots=True)
class KernelRefused:
    """connect() found no free port although the ledger had one: others hold them."""

    space: PortSpace


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection was established, so many seconds after its lease was given."""

    flow: Flow
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionRetired:
    """An idle connection is no longer handed out, so that the peer may close it first."""

    flow: Flow


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection was closed; with *time_wait* the kernel may hold its port for some time more."""

    flow: Flow
    reason: CloseReason
    time_wait: bool


@dataclass(frozen=True, slots=True)
class PortFreed:
    """A port that outlived its connection can be used again."""

    flow: Flow


@dataclass(frozen=True, slots=True)
class WaitStarted:
    """A caller joined the line, because this account was full."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """A caller left the line after so many seconds, served or not."""

    seconds: float
    served: bool


@dataclass(frozen=True, slots=True)
class BudgetRefused:
    """A caller was told that there is no port."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class LevelCrossed:
    """An account rose or fell past 60 % (warning) or 80 % (critical) of its budget."""

    account: str
    before: Level
    after: Level
    held: int
    budget: int


@dataclass(frozen=True, slots=True)
class SourceSetAside:
    """A source address failed and is not used for so many seconds, for one destination or for all."""

    source: str
    destination: str | None
    reason: str
    seconds: float


Event = (
    PortReserved
    | DialFailed
    | KernelRefused
    | ConnectionOpened
    | ConnectionRetired
    | ConnectionClosed
    | PortFreed
    | WaitStarted
    | WaitEnded
    | BudgetRefused
    | LevelCrossed
    | SourceSetAside
)
Emit = Callable[[Event], None]
