"""Transports for httpx and httpx2, with every socket behind the gate: in place of their HTTPTransport.

One class serves both libraries: requests of either get responses and exceptions of the same.
"""

from __future__ import annotations

from .errors import BudgetExhausted, NoUsableSource
from .transport import Transport

__all__ = ["BudgetExhausted", "NoUsableSource", "Transport"]
