"""Whether somebody, such as an APM agent, has put something in the place of what sends requests."""

from __future__ import annotations

import http.client
from operator import attrgetter
from typing import TYPE_CHECKING

import urllib3

from .._own import own

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection

# Where one of them is not as it came, requests go its way.
_SENDING = ("request", "putrequest", "putheader", "endheaders", "send", "getresponse")
_sending = attrgetter(*_SENDING)
_stock_sending = tuple(own("http", http.client.HTTPConnection, step) for step in _SENDING)


def untouched() -> bool:
    """Say whether nobody has, in http.client."""
    return _sending(http.client.HTTPConnection) == _stock_sending


def recorder(pool: urllib3.HTTPConnectionPool) -> BaseHTTPConnection | None:
    """Return a connection of whoever put his own in the place of urllib3's, to answer for them, as vcrpy does."""
    stock = urllib3.HTTPSConnectionPool if pool.scheme == "https" else urllib3.HTTPConnectionPool
    found = stock.ConnectionCls
    if found.__module__.partition(".")[0] == "urllib3" or issubclass(found, pool.ConnectionCls):
        return None
    made = stock.__new__(stock)
    made.__dict__ = {**pool.__dict__, "ConnectionCls": found}
    connection = made._new_conn()
    pool.num_connections = made.num_connections
    return connection
