"""Any number of HTTP requests on a handful of local ports, and never out of them."""

from typing import TYPE_CHECKING

from . import events
from .budget import Budget
from .errors import BudgetExhausted, FewportsError, InvalidOption, NoUsableSource
from .ledger.local import Ledger
from .ledger.shared import configure
from .source import Sources
from .tcp import create_connection
from .urllib3 import PoolManager, ProxyManager
from .usage import Usage

if TYPE_CHECKING:
    from .urllib3.async_manager import AsyncPoolManager

__version__ = "0.1.0"
__all__ = [
    "AsyncPoolManager",
    "Budget",
    "BudgetExhausted",
    "FewportsError",
    "InvalidOption",
    "Ledger",
    "NoUsableSource",
    "PoolManager",
    "ProxyManager",
    "Sources",
    "Usage",
    "configure",
    "create_connection",
    "events",
]


def __getattr__(name: str) -> object:
    """Import what needs anyio when it is first asked for."""
    if name != "AsyncPoolManager":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .urllib3.async_manager import AsyncPoolManager

    globals()[name] = AsyncPoolManager
    return AsyncPoolManager
