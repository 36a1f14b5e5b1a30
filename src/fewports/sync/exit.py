"""At the interpreter's end idle connections are closed in the way that leaves nothing behind.

The pools stay open: other exit handlers, such as logging's, may have a last request to send.
"""

from __future__ import annotations

import atexit

from ..pool import pools


def _at_exit() -> None:
    for pool in list(pools):
        for connection, reason in pool.empty(for_good=True):
            connection.end(reason)


atexit.register(_at_exit)
