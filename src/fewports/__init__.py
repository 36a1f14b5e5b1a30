"""Any number of HTTP requests on a handful of local ports, and never out of them."""

from . import events
from .budget import Budget
from .errors import BudgetExhausted, FewportsError, InvalidOption, NoUsableSource
from .ledger.local import Ledger
from .ledger.shared import configure
from .source import Sources
from .tcp import create_connection
from .urllib3 import PoolManager, ProxyManager
from .usage import Usage

__version__ = "0.1.0"
__all__ = [
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
