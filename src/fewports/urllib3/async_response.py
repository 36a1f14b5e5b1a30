"""A response that is awaited: urllib3's names and decoders, over the engine of aio."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, cast

from urllib3 import HTTPHeaderDict
from urllib3.exceptions import ProtocolError, ReadTimeoutError, SSLError
from urllib3.response import BaseHTTPResponse, BytesQueueBuffer
from urllib3.util import Retry

from .. import aio, http1
from ..alert import alert_in
from .response import BadResponse

PIECE = 65536  # bytes: what urllib3's stream() asks for
BOUNDED = "max_length" in inspect.signature(BaseHTTPResponse._decode).parameters  # since urllib3 2.6


class Decoding(BaseHTTPResponse):
    """What urllib3 decodes a body with: the part of a response that needs no connection."""

    def __init__(self, head: http1.Head, headers: HTTPHeaderDict) -> None:
        super().__init__(
            headers=headers,
            status=head.status,
            version=head.version,
            version_string="",
            reason=head.reason,
            decode_content=True,
            request_url=None,
        )
        self._init_decoder()
        self._buffer = BytesQueueBuffer()
        self.ended = False  # nothing more is put in

    def close(self) -> None:
        """Do nothing: io closes what is dropped."""

    def put(self, data: bytes, last: bool, limit: int | None = None) -> None:
        """Decode *data*, to some *limit* bytes if it grows beyond that; the rest comes with take()."""
        self.ended = last
        self._more(data, last, limit)

    def take(self, limit: int | None) -> bytes:
        """Return what has been decoded, *limit* bytes at most."""
        while limit is not None and not len(self._buffer) and self._tail:
            self._more(b"", False, limit)
        if limit is None or len(self._buffer) <= limit:
            return bytes(self._buffer.get_all())
        return bytes(self._buffer.get(limit))

    def _more(self, data: bytes, last: bool, limit: int | None) -> None:
        bound = (limit,) if BOUNDED and limit is not None and not last else ()
        self._buffer.put(self._decode(data, True, last, *bound))

    @property
    def _tail(self) -> bool:
        return self._decoder is not None and bool(getattr(self._decoder, "has_unconsumed_tail", False))

    @property
    def empty(self) -> bool:
        """Say whether take() has nothing to give before the next put()."""
        return not len(self._buffer) and not self._tail


class AsyncResponse:
    """A response; ``async with`` it, or read it to its end, or release() it: else its connection is closed.

    The names are those of urllib3's response; what may wait is awaited.
    """

    __slots__ = (
        *("_body", "_decoding", "_exchange", "_given", "_head", "_headers", "_pool", "decode_content"),
        *("method", "retries", "status", "url"),
    )

    def __init__(self, pool: object, exchange: aio.Exchange, method: str, url: str, decode_content: bool) -> None:
        self._pool = pool
        self._exchange = exchange
        self._head = head = exchange.head
        self._headers: HTTPHeaderDict | None = None
        self._decoding: Decoding | None = None
        self._body: bytes | None = exchange.body
        self._given = 0  # bytes of the body that were handed out
        self.status = head.status
        self.method = method
        self.url = url
        self.retries: Retry | None = None
        self.decode_content = decode_content
        if exchange.encoded and self._body and decode_content:
            self._decoder().put(self._body, True)
            self._body = self._decoder().take(None)

    @property
    def headers(self) -> HTTPHeaderDict:
        headers = self._headers
        if headers is None:
            headers = self._headers = HTTPHeaderDict(self._head.fields())
        return headers

    @property
    def reason(self) -> str:
        return self._head.reason

    @property
    def version(self) -> int:
        """10 or 11, as http.client has it, or 20 for HTTP/2."""
        return self._head.version

    @property
    def chunked(self) -> bool:
        return self._exchange.chunked

    @property
    def closed(self) -> bool:
        """Say whether the connection is no longer in use."""
        return not self._exchange.open

    @property
    def data(self) -> bytes:
        """The whole body; await read() before this, unless it was preloaded."""
        if self._body is None:
            raise RuntimeError("the body was not read: await response.read(), or leave out preload_content=False")
        return self._body

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.data.decode("utf-8"))

    def geturl(self) -> str:
        return self.url

    def get_redirect_location(self) -> str | bool | None:
        """Return where a redirect leads, None where it does not say, False if this is none."""
        if self.status in BaseHTTPResponse.REDIRECT_STATUSES:
            return self.headers.get("location")
        return False

    async def read(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        """Return *amt* bytes of the body, less only at its end, or all that is left; b"" after that.

        When all is read at once it is kept for ``data``. Raises ReadTimeoutError, ProtocolError or DecodeError.
        """
        if amt is not None and amt >= 0:
            pieces = []
            while amt and (piece := await self._piece(amt, decode_content)):
                pieces.append(piece)
                amt -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._body is not None:
            return self._more(len(self._body))
        data = await self._engine(self._exchange.read())
        if self._decodes(decode_content):
            decoding = self._decoder()
            if not decoding.ended:
                decoding.put(data, True)
            data = decoding.take(None)
        if not self._given:
            self._body = data
        self._given += len(data)
        return data

    async def stream(self, amt: int | None = PIECE, decode_content: bool | None = None) -> AsyncIterator[bytes]:
        """Give the body in pieces as they come, each of *amt* bytes at most."""
        while piece := await self._piece(amt or PIECE, decode_content):
            yield piece

    async def drain(self) -> None:
        """Read the rest, if it comes, and drop it, so that the connection can be used again."""
        with contextlib.suppress(ReadTimeoutError, ProtocolError):
            while self._exchange.open and await self._engine(self._exchange.piece()):
                pass

    async def release(self) -> None:
        """Give the connection back; it is closed unless the body was read to its end."""
        await self._exchange.release()

    aclose = release

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    def __repr__(self) -> str:
        return f"<AsyncResponse {self.status} {self.method} {self.url}>"

    async def _piece(self, limit: int, decode_content: bool | None) -> bytes:
        if self._body is not None:
            return self._more(limit)
        if not self._decodes(decode_content):
            piece = await self._engine(self._exchange.piece(limit))
        else:
            decoding = self._decoder()
            while decoding.empty and not decoding.ended:
                data = await self._engine(self._exchange.piece(limit))
                decoding.put(data, not data, limit)
            piece = decoding.take(limit)
        self._given += len(piece)
        return piece

    def _more(self, limit: int) -> bytes:
        """Hand out of the body that is all here, *limit* bytes at most."""
        assert self._body is not None
        piece = self._body[self._given : self._given + limit]
        self._given += len(piece)
        return piece

    def _decodes(self, decode_content: bool | None) -> bool:
        return self._exchange.encoded and (self.decode_content if decode_content is None else decode_content)

    def _decoder(self) -> Decoding:
        if self._decoding is None:
            self._decoding = Decoding(self._head, self.headers)
        return self._decoding

    async def _engine(self, reading: Any) -> bytes:
        try:
            return cast(bytes, await reading)
        except (aio.ExchangeError, http1.RemoteProtocolError) as error:
            raise broken(error, self._pool, None) from error


def broken(error: aio.ExchangeError | http1.RemoteProtocolError, pool: Any, url: str | None) -> Exception:
    """Say as urllib3 does what ended a body too early."""
    if isinstance(error, aio.TimedOut):
        return ReadTimeoutError(pool, cast(Any, url), "Read timed out.")
    cause: Exception
    if (alert := alert_in(error.__cause__)) is not None:
        return SSLError(alert)
    if isinstance(error, http1.Truncated):
        # http.client's prints the length of what came; nobody keeps that.
        cause = Incomplete(error.got, error.expected)
    elif isinstance(error, http1.RemoteProtocolError):
        cause = BadResponse(error)
    else:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else ConnectionResetError(str(error))
    return ProtocolError(f"Connection broken: {cause!r}", cause)


class Incomplete(http.client.IncompleteRead):
    """An IncompleteRead that knows how much came, and not what."""

    def __init__(self, got: int, expected: int | None) -> None:
        super().__init__(b"", expected)
        self.got = got

    def __repr__(self) -> str:
        more = "" if self.expected is None else f", {self.expected} more expected"
        return f"IncompleteRead({self.got} bytes read{more})"

    __str__ = __repr__
