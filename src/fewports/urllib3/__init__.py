"""urllib3's classes, with every socket behind the gate: the same arguments, results and exceptions.

What is kept is not bounded by maxsize but by the budget and by time: connections beyond maxsize are
kept for a few seconds more, because to discard one costs its port for a minute.
"""

from __future__ import annotations

from .connection import HTTPConnection, HTTPSConnection
from .gate import BudgetExhausted, Gate, NoUsableSource
from .manager import PoolManager, ProxyManager, proxy_from_url
from .pool import HTTPConnectionPool, HTTPSConnectionPool, connection_from_url
from .response import BadLength, BadResponse, Body, Response

__all__ = [
    "BadLength",
    "BadResponse",
    "Body",
    "BudgetExhausted",
    "Gate",
    "HTTPConnection",
    "HTTPConnectionPool",
    "HTTPSConnection",
    "HTTPSConnectionPool",
    "NoUsableSource",
    "PoolManager",
    "ProxyManager",
    "Response",
    "connection_from_url",
    "proxy_from_url",
]
