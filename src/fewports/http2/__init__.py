"""HTTP/2 for a client, for threads and event loops alike: bytes in, streams out. No sockets, no clock.

h2 is imported with the first connection: ``Connection`` and its constants are looked up when they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    Code,
    ConnectionFailed,
    LocalProtocolError,
    Malformed,
    ProtocolError,
    RemoteProtocolError,
    StreamReset,
    Unprocessed,
)
from .fields import Block
from .stream import Seat, Stream

if TYPE_CHECKING:
    from .connection import ASSUMED_STREAMS, MAX_STREAMS, STREAM_WINDOW, WINDOW, Connection

__all__ = [
    "ASSUMED_STREAMS",
    "MAX_STREAMS",
    "STREAM_WINDOW",
    "WINDOW",
    "Block",
    "Code",
    "Connection",
    "ConnectionFailed",
    "LocalProtocolError",
    "Malformed",
    "ProtocolError",
    "RemoteProtocolError",
    "Seat",
    "Stream",
    "StreamReset",
    "Unprocessed",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        return getattr(import_module(".connection", __name__), name)


# Held during the import, and by whoever forks: else a child would wait for ever for a module that a thread of its
# parent was importing. Re-entrant, because what is imported may fork, and not for long, as it may wait for who forks.
_importing = threading.RLock()
PATIENCE = 2.0  # seconds; the import takes 0.05


def _before_fork() -> None:
    _importing.acquire(timeout=PATIENCE)


def _after_fork() -> None:
    with contextlib.suppress(RuntimeError):  # it was not to be had
        _importing.release()


def _in_child() -> None:
    global _importing
    _importing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
