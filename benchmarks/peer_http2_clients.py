"""The clients of threads that speak HTTP/2, and share one connection by it."""

from __future__ import annotations

import ssl
from typing import Any

from peer_clients import (
    Body,
    Client,
    FewportsManager,
    FewportsSession,
    Httpx2Client,
    HttpxClient,
    Place,
    Take,
)


class HttpcorePool(Client):
    needs = ("httpcore", "h2")

    def __init__(self, place: Place) -> None:
        import httpcore

        self._url = place.url
        context = ssl.create_default_context(cafile=place.ca)
        self._pool = httpcore.ConnectionPool(ssl_context=context, http2=True)

    def get(self, path: str) -> bytes:
        content: bytes = self._pool.request("GET", self._url + path).content
        return content

    def stream(self, path: str, piece: int, take: Take) -> None:
        with self._pool.stream("GET", self._url + path) as response:
            for data in response.iter_stream():  # in the pieces in which it comes
                take(data)

    def put(self, path: str, body: Body, length: int | None) -> int:
        raise NotImplementedError("no case uploads over HTTP/2")

    def close(self) -> None:
        self._pool.close()


class FewportsHttp2Manager(FewportsManager):
    needs = ("fewports", "h2")

    def _make(self, place: Place, options: dict[str, Any]) -> Any:
        return super()._make(place, {**options, "http2": "auto"})


class FewportsHttp2Session(FewportsSession):
    needs = ("fewports", "requests", "h2")

    def _make(self, maxsize: int) -> Any:
        import fewports.requests

        return fewports.requests.Session(pool_maxsize=maxsize, http2="auto")


CLIENTS: dict[str, type[Client]] = {
    "httpcore.ConnectionPool": HttpcorePool,
    "httpx.Client": HttpxClient,
    "httpx2.Client": Httpx2Client,
    "fewports.PoolManager": FewportsHttp2Manager,
    "fewports.Session": FewportsHttp2Session,
}
