"""Transports for httpx and httpx2, with every socket behind the gate: in place of HTTPTransport and AsyncHTTPTransport.

One class serves both libraries: requests of either get responses and exceptions of the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import BudgetExhausted, NoUsableSource
from .transport import Transport

if TYPE_CHECKING:
    from .async_transport import AsyncTransport

__all__ = ["AsyncTransport", "BudgetExhausted", "NoUsableSource", "Transport"]


def __getattr__(name: str) -> object:
    """Import what needs anyio when it is first asked for."""
    if name != "AsyncTransport":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .async_transport import AsyncTransport

    globals()[name] = AsyncTransport
    return AsyncTransport
