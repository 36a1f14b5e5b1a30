"""What urllib3's dummy server expects of hypercorn and only urllib3's own fork of it gives, on no package index.

Its applications read two ASGI extensions: "tls" (what was negotiated) and "_transport" (the trio stream, so that the
proxy can tunnel). Without them all its tests of proxies, of ALPN and of client certificates fail, stock or not.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

stream_of_connection: ContextVar[Any] = ContextVar("stream_of_connection")


class Extended:
    """An ASGI application whose requests know the stream that they came by."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: object, send: object) -> None:
        if scope["type"] == "http":
            stream = stream_of_connection.get()
            scope["extensions"] = {**scope.get("extensions", {}), "_transport": stream}
            if scope["scheme"] == "https":
                scope["extensions"]["tls"] = _negotiated(stream)
        await self._app(scope, receive, send)


def _negotiated(stream: Any) -> dict[str, str | None]:
    certificate = stream.getpeercert() or {}
    names = [f"{name}={value}" for group in certificate.get("subject", ()) for name, value in group]
    return {"alpn_protocol": stream.selected_alpn_protocol(), "client_cert_name": ", ".join(names) or None}


def complete() -> None:
    """Make hypercorn pass the extensions on, if it is here (requests' tests do without)."""
    if not importlib.util.find_spec("hypercorn"):
        return
    worker = importlib.import_module("hypercorn.trio")
    server = importlib.import_module("hypercorn.trio.tcp_server").TCPServer
    serve, run = worker.serve, server.run

    async def serve_extended(app: Callable[..., Awaitable[None]], *args: Any, **kwargs: Any) -> None:
        await serve(Extended(app), *args, **kwargs)

    async def run_known(self: Any) -> None:
        stream_of_connection.set(self.stream)
        await run(self)

    vars(worker)["serve"] = serve_extended
    server.run = run_known
