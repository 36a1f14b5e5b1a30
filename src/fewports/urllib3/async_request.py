"""A request of AsyncPoolManager, and its body, as urllib3 takes them and as the engine does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from urllib3._request_methods import RequestMethods
from urllib3.exceptions import UnrewindableBodyError
from urllib3.util import Retry
from urllib3.util.request import body_to_chunks, rewind_body

from .. import aio
from .streams import WITHOUT_BODY

BLOCK = 16384  # bytes that a file is read by: http.client's


class Asked(NamedTuple):
    """A request as it stands after redirects and retries, and the policy for what comes next."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any
    policy: Retry
    position: Any = None  # where the body, a file, began


class Manner(NamedTuple):
    """What is the same for a request and all that follow from it."""

    preload: bool
    decode: bool
    redirect: bool
    timeout: Any
    pool: float | None
    write: float | None


class _Encoding(RequestMethods):
    """urllib3's ways to make a URL and a body of fields and JSON."""

    def urlopen(self, method: str, url: str, **keywords: Any) -> Any:  # type: ignore[override]
        return method, url, keywords


def encoded(
    method: str, url: str, body: Any, fields: Any, headers: Mapping[str, str], json: Any, encoding: dict[str, Any]
) -> tuple[str, str, Mapping[str, str], Any]:
    unknown = set(encoding) - {"encode_multipart", "multipart_boundary"}
    if unknown:
        raise TypeError(f"request() got unexpected keyword arguments {', '.join(sorted(unknown))}")
    done: Any = _Encoding().request(method, url, body, fields, headers, json, **encoding)
    method, url, keywords = done
    return method, url, keywords.get("headers", headers), keywords.get("body")


class Source:
    """A body that can be read once: an iterator, or an async iterable. *begun* when somebody did."""

    def __init__(self, body: Any) -> None:
        self.body = body
        self.begun = False


class SyncSource(Source):
    """One that is read without waiting."""

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        return _bytes(self.body)


class AsyncSource(Source):
    """One that is awaited."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        pieces = aiter(self.body)
        try:
            async for piece in pieces:
                yield _plain(piece)
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


def source(body: Any) -> Any:
    """Return *body*, or what notes that it was read if that can be done only once."""
    if isinstance(body, AsyncIterable):
        return AsyncSource(body)
    return SyncSource(body) if isinstance(body, Iterator) and not hasattr(body, "read") else body


def content(body: Any, method: str) -> aio.Body | None:
    """Return *body* as the engine takes it."""
    if body is None:
        return None if method in WITHOUT_BODY else b""
    if isinstance(body, (bytes, SyncSource, AsyncSource)):
        return body
    if isinstance(body, str):
        return body.encode()
    chunks, length = body_to_chunks(body, method, BLOCK)
    if length is not None:
        return b"".join(bytes(chunk) for chunk in chunks or ())
    return _bytes(cast("Iterable[bytes | str]", chunks))


def again(asked: Asked) -> Asked:
    """Make ready to send the body once more."""
    body = asked.body
    if isinstance(body, Source):
        if body.begun:
            raise UnrewindableBodyError("The body was sent in part, and can be read only once.")
    elif body is not None and asked.position is not None:
        rewind_body(body, asked.position)
    return asked


def _bytes(chunks: Iterable[bytes | str]) -> Iterator[bytes]:
    for chunk in chunks:
        yield _plain(chunk)


def _plain(piece: bytes | str) -> bytes:
    if type(piece) is bytes:
        return piece
    # Not bytes(piece), which makes so many NUL of a number.
    return piece.encode() if isinstance(piece, str) else bytes(memoryview(piece))
