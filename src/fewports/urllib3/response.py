"""urllib3's response over our codec: the type that users know, made without what nobody looked at.

A ``Body`` stands where urllib3 expects the response of http.client. A ``Response`` makes its headers,
and whatever else is rarely asked for, on the first access.

Long, because a response of urllib3 is one class, and has many ways to be read.
"""

from __future__ import annotations

import contextlib
import http.client
import io
from collections.abc import Generator
from typing import Any, cast

import urllib3
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import FullPoolError, InvalidChunkLength, InvalidHeader, ProtocolError
from urllib3.response import BytesQueueBuffer

from .. import http1
from ..sync.wire import Wire

_CODING = "transfer-encoding"


class BadResponse(http1.RemoteProtocolError, http.client.HTTPException):
    """The peer broke the rules of HTTP/1.1; urllib3 makes a ProtocolError of it. The connection is closed."""

    def __init__(self, error: http1.RemoteProtocolError) -> None:
        self.error = error
        http1.RemoteProtocolError.__init__(self, error.what, error.where, error.data)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.error,)


class BadLength(http1.RemoteProtocolError, InvalidHeader):
    """The peer gave more than one Content-Length, or none that is a number; an InvalidHeader, as in urllib3."""


class Body:
    """The body of one response, read from its connection, which stays in use until the end or close()."""

    debuglevel = 0
    chunk_left: int | None = None

    def __init__(self, wire: Wire | None, head: http1.Head, method: str) -> None:
        self._wire = wire
        self.head = head
        self._method = method
        self.status = self.code = head.status
        self.reason = head.reason
        self.version = head.version
        self.chunked = wire is not None and wire.reader.chunked
        self._told = self.chunked or head.version == 20  # the end, by itself; urllib3 sees to a length
        until_close = wire is not None and wire.reader.length is None and not self._told
        self.will_close = until_close or (wire is not None and not wire.reader.persists)

    def isclosed(self) -> bool:
        return self._open() is None

    @property
    def closed(self) -> bool:
        return self._open() is None

    @property
    def fp(self) -> Body | None:
        """The file that http.client reads from; by whether there is one urllib3 tells that chunks can be read."""
        return None if self._open() is None else self

    @property
    def length(self) -> int | None:
        """The bytes of body that are still to come, where that is known."""
        wire = self._open()
        if wire is None:
            return 0
        return wire.reader.expects if wire.reader.length is not None else None

    @property
    def msg(self) -> http.client.HTTPMessage:
        """The header fields as the email package has them; what reads cookies wants them so."""
        found = self.__dict__.get("_msg")
        if found is None:
            _, _, lines = self.head.raw.partition(b"\r\n")
            found = self._msg = http.client.parse_headers(io.BytesIO(lines))
        return cast(http.client.HTTPMessage, found)

    headers = msg

    def info(self) -> http.client.HTTPMessage:
        return self.msg

    def getheader(self, name: str, default: Any = None) -> Any:
        found = self.msg.get_all(name)
        return ", ".join(found) if found else default

    def getheaders(self) -> list[tuple[str, str]]:
        return self.msg.items()

    def readable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing, as nothing is written."""

    def fileno(self) -> int:
        wire = self._open()
        if wire is None:
            raise ValueError("I/O operation on closed file")
        return wire.sock.fileno()

    def readline(self, limit: int = -1) -> bytes:
        """Return nothing: urllib3 looks here for what follows the last chunk, which the codec has read."""
        return b""

    def read(self, amt: int | None = None) -> bytes:
        """Return *amt* bytes, or all that is left; raises IncompleteRead where http.client does."""
        wire = self._open()
        if wire is None:
            missing = self.__dict__.pop("_missing", None)
            if missing is not None and (amt is None or amt < 0):
                raise http.client.IncompleteRead(b"", missing.expected) from missing
            return b""
        try:
            data = wire.read(None if amt is None or amt < 0 else amt)
        except http1.RemoteProtocolError as error:
            raise BadResponse(error) from error
        if wire.failure is not None:
            self._fall_short(wire, data, strict=amt is None or self._told)
        elif wire.reader.done:
            self._finish(wire)
        return data

    def read1(self, n: int = -1) -> bytes:
        """Return what is there, *n* bytes at most; b"" at the end."""
        wire = self._open()
        if wire is None or n == 0:
            return b""
        try:
            data = wire.read_some(None if n < 0 else n)
        except http1.RemoteProtocolError as error:
            raise BadResponse(error) from error
        if wire.failure is not None:
            self._fall_short(wire, data, strict=self._told)
        elif wire.reader.done:
            self._finish(wire)
        return data

    def readinto(self, b: Any) -> int:
        """Read into the buffer *b*; return the number of bytes, 0 at the end."""
        wire = self._open()
        view = memoryview(b).cast("B")
        if wire is None or not view:
            return 0
        try:
            count = wire.read_into(view)
        except http1.RemoteProtocolError as error:
            raise BadResponse(error) from error
        if wire.failure is not None:
            self._fall_short(wire, b"", strict=self._told)
        elif wire.reader.done:
            self._finish(wire)
        return count

    def next_chunk(self) -> int:
        """Return the number of bytes left of the chunk that is next; 0 after the last one and its trailer.

        Raises RemoteProtocolError, Truncated among them.
        """
        wire = self._open()
        if wire is None:
            return 0
        reader = wire.reader
        reader.take(0)  # raises what the last bytes gave away
        while not reader.expects and not reader.done:
            wire.receive()
        return reader.expects

    def _safe_read(self, size: int) -> bytes:
        """Return *size* bytes of the chunk that is next; close() follows after the last one. CacheControl wraps it."""
        wire = self._open()
        data = b"" if wire is None else wire.read(size)
        if len(data) < size:
            self.close()
            raise http.client.IncompleteRead(data, size - len(data))
        return data

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: another request could not tell what is left."""
        wire = self._wire
        if wire is not None and wire.reader.done:
            self._finish(wire)
        elif wire is not None:
            self._wire = None
            wire.close()

    def _open(self) -> Wire | None:
        wire = self._wire
        if wire is not None and wire.closed:  # with its connection
            wire = self._wire = None
        return wire

    def _finish(self, wire: Wire) -> None:
        self._wire = None
        if wire.parted or not wire.reader.reusable:
            wire.part()

    def _fall_short(self, wire: Wire, data: bytes, *, strict: bool) -> None:
        failure = cast(http1.Truncated, wire.failure)
        self.close()
        if strict:
            raise http.client.IncompleteRead(data, failure.expected) from failure
        self._missing = failure  # nobody was told


class Response(urllib3.HTTPResponse):
    """urllib3's response; receive() makes it."""

    # What its constructor sets for each, and what is the same for most.
    _has_decoded_content = False
    _decoder = None
    _decoder_initialized = False
    _retries: Any = None
    _pool: Any = None
    _connection: Any = None
    _uncached_read_occurred = False
    _body = None
    _fp_bytes_read = 0
    _encoded = False
    _until: float | None = None  # the deadline of its request
    auto_close = True
    enforce_content_length = True
    decode_content = True
    length_remaining: int | None = 0
    chunked: bool
    chunk_left = None
    msg = None
    version_string = "HTTP/1.1"
    _head: http1.Head
    _method: str

    def __getattr__(self, name: str) -> Any:
        value: object
        if name == "headers":
            value = HTTPHeaderDict(self._head.fields())
        elif name in ("_fp", "_original_response"):
            value = Body(None, self._head, self._method)  # read to its end
        elif name == "_decoded_buffer":
            value = BytesQueueBuffer()
        elif name in ("reason", "version"):
            value = getattr(self._head, name)
        elif name == "chunked":  # as it says, if only of what a GET would get
            value = "chunked" in (option.strip() for option in self.headers.get(_CODING, "").lower().split(","))
        elif name == "_sock_shutdown":
            value = _shut_down_before
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.__dict__[name] = value
        return value

    @property
    def closed(self) -> bool:
        # Asked when the object is dropped, too.
        body = self.__dict__.get("_fp")
        return (body is None or body.isclosed()) if self.auto_close else super().closed

    def close(self) -> None:
        """Close, and give the place in the pool back, which urllib3 does not: with block=True it would be gone."""
        # The garbage collector calls as well, in the middle of anything: no lock of a pool may be taken then. What a
        # stream of HTTP/2 and the place take to come back is noted as they are dropped.
        finalizing = "_finalizing" in self.__dict__
        if not finalizing or self.version != 20:
            super().close()
        if not finalizing:
            with contextlib.suppress(FullPoolError):  # in a forked child the pool is empty
                self.release_conn()

    def hurry(self) -> None:
        """Have the body come before the deadline of the request, if it has one: it is going to be read at once."""
        body = self.__dict__.get("_fp")
        wire = body._open() if isinstance(body, Body) else None
        if wire is not None:
            wire.deadline = self._until

    def read(self, amt: int | None = None, decode_content: bool | None = None, cache_content: bool = False) -> bytes:
        if self._encoded or self._decoder_initialized or (amt is not None and amt <= 0):
            return super().read(amt, decode_content, cache_content)
        # There is nothing to decode, so there is nothing to keep for later either.
        data = self._raw_read(amt)
        if amt is not None:
            self._uncached_read_occurred = True
            decodes = self.decode_content if decode_content is None else decode_content
            if decodes and data and len(data) < amt and self.length_remaining:
                try:
                    self._raw_read(amt)  # it ended too early: raises
                except ProtocolError:
                    self._decoded_buffer.put(data)  # for who reads on, as in urllib3
                    self._encoded = True
                    raise
        elif not cache_content:
            self._uncached_read_occurred = True
        elif not self._uncached_read_occurred:
            self._body = data
        return data

    def stream(self, amt: int | None = 65536, decode_content: bool | None = None) -> Generator[bytes]:
        """Yield pieces of *amt* bytes, as urllib3 does; over HTTP/2, if no length is known, less where less is there.

        HTTP/1.1 would have chunks then, and each is given when it comes: an event is no use when the next is here.
        """
        body: object = self._fp
        if self.version == 20 and self.length_remaining is None and type(body) is Body:
            while data := self.read1(amt, decode_content):
                yield data
        else:
            yield from super().stream(amt, decode_content)

    def _raw_read(self, amt: int | None = None, *, read1: bool = False) -> bytes:
        body: object = self._fp
        if read1 or not isinstance(body, Body):
            return super()._raw_read(amt, read1=read1)
        try:
            data = body.read(amt)
        except BaseException:
            with self._error_catcher():
                raise
        if not data and amt and self.length_remaining:
            return super()._raw_read(amt)  # which tells what is missing
        if body._wire is None:
            self.release_conn()
        if data:
            self._fp_bytes_read += len(data)
            if self.length_remaining is not None:
                self.length_remaining -= len(data)
        return data

    def _update_chunk_length(self) -> None:
        if self.chunk_left is not None:
            return
        try:
            self.chunk_left = cast(Body, self._fp).next_chunk()
        except http1.RemoteProtocolError as error:
            self.close()
            if isinstance(error, http1.Truncated):
                raise ProtocolError("Response ended prematurely") from error
            if error.what == http1.BAD_CHUNK_SIZE:
                raise InvalidChunkLength(self, error.data.strip()) from error
            raise ProtocolError(f"Response {error.what}", BadResponse(error)) from error

    def _handle_chunk(self, amt: int | None) -> bytes:
        left = cast(int, self.chunk_left)
        size = left if amt is None or amt > left else amt
        self.chunk_left = left - size or None
        return cast(Body, self._fp)._safe_read(size)


def receive(wire: Wire, asked: Any, version: str) -> Response:
    """Receive a response on *wire*, and its body if that is to be preloaded.

    *asked* is urllib3's _ResponseOptions. Raises what http.client does: RemoteDisconnected, HTTPException, OSError.
    """
    reader = wire.reader
    try:
        head = wire.head()
    except http1.RemoteProtocolError as error:
        if isinstance(error, http1.Truncated) and not reader.started and not reader.interim:
            raise http.client.RemoteDisconnected("Remote end closed connection without response") from None
        if error.what.startswith(http1.BAD_LENGTH):
            raise BadLength(error.what, error.where, error.data) from error
        raise BadResponse(error) from error
    return respond(wire, head, asked.request_method, asked.request_url, asked, version)


def respond(wire: Wire, head: http1.Head, method: str, url: str, asked: Any, version: str) -> Response:
    """Make the response that *head* begins."""
    reader = wire.reader
    response = Response.__new__(Response)  # without __init__(): there are 25 attributes, and most are never looked at
    response._head = head
    response._method = method
    response._request_url = url
    response.status = head.status
    if version != "HTTP/1.1":
        response.version_string = version
    preload = True
    if asked is not None:
        _, _, preload, decode, enforce = asked[:5]
        if not decode:
            response.decode_content = False
        if not enforce:
            response.enforce_content_length = False
    if preload and not reader.encoded and (data := reader.whole()) is not None:
        response._body = data if type(data) is bytes else bytes(data)
        response._fp_bytes_read = reader.got
        response._uncached_read_occurred = True
        if not reader.reusable:
            wire.part()
        return response
    response.length_remaining = reader.length
    if method != "HEAD":
        response.chunked = reader.chunked
    response._encoded = reader.encoded
    response._fp = response._original_response = Body(wire, head, method)  # type: ignore[assignment]
    response._sock_shutdown = getattr(wire.sock, "shutdown", None)
    if preload:
        response._body = response.read(decode_content=response.decode_content)
    elif wire.deadline is not None:
        response._until = wire.deadline
        wire.unhurried()
    return response


def _shut_down_before(how: int) -> None:
    """Stand for the shutdown() of a connection that has gone back to its pool."""
