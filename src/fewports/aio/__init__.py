"""asyncio and trio: wait, connect, receive, send. The engine under every face that is awaited; it knows none of them.

A face makes one ``here()`` for the loop that it is used in and one ``OriginPool`` for each origin, and then

    exchange = await pool.exchange(Request("GET", "/", fields), Times(read=10.0))
    exchange.head                      # http1.Head: status, reason, fields()
    data = await exchange.read()       # all; or exchange.piece() for what is there, b"" at the end
    exchange.release()                 # in any case: back to the pool when read to its end, closed otherwise

``pool.exchange(..., whole=True)`` returns with the body in ``exchange.body`` and nothing left to release: one wait for
all. What goes wrong is raised as in errors.py, or is BudgetExhausted, NoUsableSource, PoolClosed, or an error of http1.
A request that met the end of a connection that was kept has been repeated by then, where that is safe.

Where ``Route.http2`` allows it and the peer speaks HTTP/2, all exchanges of a pool share one connection, each with a
stream of its own (``exchange.stream_id``); ``exchange.head.version`` is 20 then.

``Request.fields`` is all that is sent, Host included, as a tuple of pairs: the same tuple is encoded once. A body is
bytes, or an iterable of them, sync or async, sent in chunks unless the fields have a Content-Length.
"""

from .errors import (
    Disconnected,
    ExchangeError,
    LoopChanged,
    NotConnected,
    NotOffered,
    NotResolved,
    PlaceTimedOut,
    SocksRefused,
    Stage,
    TimedOut,
    TlsFailed,
    TunnelRefused,
)
from .exchange import Exchange
from .http2 import SharedConnection
from .pool import OriginPool, Pooled
from .request import Body, Fields, Presets, Request, Times
from .route import Route, Tunnel
from .seam import Loop, Tls, here
from .socks import Socks

__all__ = [
    "Body",
    "Disconnected",
    "Exchange",
    "ExchangeError",
    "Fields",
    "Loop",
    "LoopChanged",
    "NotConnected",
    "NotOffered",
    "NotResolved",
    "OriginPool",
    "PlaceTimedOut",
    "Pooled",
    "Presets",
    "Request",
    "Route",
    "SharedConnection",
    "Socks",
    "SocksRefused",
    "Stage",
    "TimedOut",
    "Times",
    "Tls",
    "TlsFailed",
    "Tunnel",
    "TunnelRefused",
    "here",
]
