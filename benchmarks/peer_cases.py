"""The cases of peers.py, and which clients take part in each: those of a family."""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

import peer_async_clients as tasks
import peer_clients as threads
import peer_http2_clients as http2

Kind = type[threads.Client] | type[tasks.AsyncClient]

FAMILIES: dict[str, dict[str, Kind]] = {
    "threads": dict(threads.CLIENTS),
    "threads http2": dict(http2.CLIENTS),
    "downloads http2": {name: kind for name, kind in http2.CLIENTS.items() if kind is not http2.HttpcorePool},
    # Threads that share a connection of httpx or httpcore wait for ever, or time out: its tasks are asked.
    "downloads at once http2": {
        "httpx.AsyncClient": tasks.Httpx,
        "httpx2.AsyncClient": tasks.Httpx2,
        "fewports.PoolManager": http2.FewportsHttp2Manager,
        "fewports.Session": http2.FewportsHttp2Session,
    },
    "tasks": dict(tasks.CLIENTS),
    "tasks http2": dict(tasks.HTTP2_CLIENTS),
    "crowd": dict(tasks.CROWD_CLIENTS),
}


class Case(NamedTuple):
    """One kind of work; *action* and *piece* are those of a Task. *threads*: or tasks; at once, and connections."""

    name: str
    text: str
    action: str = "get"
    threads: int = 1
    tls: bool = False
    anew: bool = False
    piece: int = 0
    family: str = "threads"
    reference: str = "urllib3.PoolManager"  # of clients that have none of their own

    @property
    def kinds(self) -> dict[str, Kind]:
        return FAMILIES[self.family]

    @property
    def http2(self) -> bool:
        return self.family.endswith("http2")

    @property
    def big(self) -> bool:
        return self.action not in ("get", "launch")

    def reference_of(self, client: str) -> str:
        own = self.kinds[client].reference
        return own if own in self.kinds else self.reference


CASES = (
    Case("a", "one thread, one kept connection"),
    Case("b", "16 threads on one pool", threads=16),
    Case("c", "one thread, one kept connection over TLS", tls=True),
    Case("d", "async, 64 tasks on 64 connections", threads=64, family="tasks", reference="aiohttp.ClientSession"),
    Case(
        "e",
        "async, 64 tasks on one HTTP/2 connection",
        threads=64,
        tls=True,
        family="tasks http2",
        reference="httpx2.AsyncClient",
    ),
    Case(
        "f-16",
        "16 threads on one HTTP/2 connection",
        threads=16,
        tls=True,
        family="threads http2",
        reference="httpcore.ConnectionPool",
    ),
    Case(
        "f-64",
        "64 threads on one HTTP/2 connection",
        threads=64,
        tls=True,
        family="threads http2",
        reference="httpcore.ConnectionPool",
    ),
    Case("n", "one thread, a new connection for each request", anew=True),
    Case("g-64k", "download, in pieces of 64 KiB", "stream", piece=1 << 16),
    Case("g-1m", "download, in pieces of 1 MiB", "stream", piece=1 << 20),
    Case("g-whole", "download, read at once", "whole"),
    Case("g-tls-64k", "download over TLS, in pieces of 64 KiB", "stream", piece=1 << 16, tls=True),
    Case("g-tls-1m", "download over TLS, in pieces of 1 MiB", "stream", piece=1 << 20, tls=True),
    Case("g-tls-whole", "download over TLS, read at once", "whole", tls=True),
    Case(
        "h",
        "async, all requests launched at once, 100 connections",
        "launch",
        threads=100,
        family="crowd",
        reference="aiohttp.ClientSession",
    ),
    Case(
        "j-64k",
        "download over HTTP/2, in pieces of 64 KiB",
        "stream",
        piece=1 << 16,
        tls=True,
        family="downloads http2",
        reference="httpx.Client",
    ),
    Case(
        "j-whole",
        "download over HTTP/2, read at once",
        "whole",
        tls=True,
        family="downloads http2",
        reference="httpx.Client",
    ),
    Case(
        "j-8",
        "8 downloads at once over one HTTP/2 connection, in pieces of 64 KiB",
        "stream",
        8,
        piece=1 << 16,
        tls=True,
        family="downloads at once http2",
        reference="httpx.AsyncClient",
    ),
    Case("u-file", "upload of a file with known length", "file"),
    Case("u-chunks", "upload of an iterable, in chunks", "chunks"),
)


def missing(*libraries: str) -> str:
    """Return those that cannot be imported, with a space between."""
    return " ".join(library for library in libraries if not importlib.util.find_spec(library))


def lacking(kind: Kind) -> str:
    """Say why a client cannot take part; "" if it can."""
    if libraries := missing(*kind.needs):
        return f"pip install {libraries}"
    for name in kind.names:
        module, _, attribute = name.rpartition(".")
        try:
            getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            return f"there is no {name} in what is installed"
    return ""
