"""A forked child starts clean: it drops what it inherited without a word to any peer.

Closing its copy of a descriptor leaves the parent's connection alone; shutting it down, a TLS goodbye,
or a socket option would not (facts, 11).
"""

from __future__ import annotations

import os

from ..gated import GatedSocket, GatedSSLSocket, let_go, unnamed
from ..ledger.local import ledgers
from ..pool import pools
from .timer import timer


def _in_child() -> None:
    unnamed.release()
    timer.forget()
    for ledger in list(ledgers):
        for lease in ledger.forget():
            sock = lease.socket() if lease.socket else None
            if isinstance(sock, (GatedSocket, GatedSSLSocket)):
                let_go(sock)
    for pool in list(pools):  # last: to forget a connection closes it
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=unnamed.acquire, after_in_parent=unnamed.release, after_in_child=_in_child)
