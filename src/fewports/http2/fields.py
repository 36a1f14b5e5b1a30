"""Which header blocks there may be in HTTP/2: checks what we send, and what comes. Pure.

Sections are those of RFC 9113 unless another RFC is named. Each rule of section 8 that speaks of one
block is here; those that need to know the stream (is it the head or the trailer, how long was the
body) are in stream.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..http1 import BAD_LENGTH, MAX_LENGTH, Field
from .errors import LocalProtocolError

SHOWN = 60  # bytes of the peer's that an error message quotes

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9a-z]+"  # RFC 9110, section 5.6.2, in lower case (section 8.2.1)
_is_name = re.compile(_TOKEN).fullmatch
_is_method = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_scheme = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch  # RFC 3986, section 3.1
_is_visible = re.compile(rb"[!-~]+").fullmatch
_is_status = re.compile(rb"[1-9][0-9]{2}").fullmatch
# Section 8.2.1, and no other control character (RFC 9110, section 5.5); no white space around it.
_is_value = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch

# Section 8.2.2. They speak of one connection, which HTTP/2 does by itself.
_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_NOT_IN_TRAILERS = _CONNECTION | {b"content-length", b"trailer", b"te", b"host"}  # RFC 9110, section 6.5.1
_SINGLE = frozenset((b"content-length", b"host"))


class Block(NamedTuple):
    """What a header block of the peer says; equal blocks share one.

    ``status`` is None in a trailer, ``length`` that of Content-Length. ``flaw``: the rule that it breaks.
    """

    status: int | None
    fields: tuple[tuple[str, str], ...]
    length: int | None
    flaw: str | None


class Request(NamedTuple):
    """A checked header block to be sent: names in lower case, pseudo-header fields first."""

    fields: tuple[tuple[bytes, bytes], ...]
    method: bytes
    length: int | None
    size: int


def read_block(pairs: Sequence[tuple[bytes, bytes]]) -> Block:
    """Check a response head or a trailer (sections 8.1, 8.2 and 8.3.2); names and values are latin-1."""
    status: int | None = None
    length: int | None = None
    fields: list[tuple[str, str]] = []
    for name, value in pairs:
        if name[:1] == b":":
            if name != b":status" or status is not None or fields:
                return _flawed(f"{_quoted(name)} where no pseudo-header field may be")
            if not _is_status(value) or value == b"101":  # section 8.6: there is no switch to another protocol
                return _flawed(f"a :status of {_quoted(value)}")
            status = int(value)
            continue
        if not _is_name(name):
            return _flawed(f"a field name that is no token in lower case: {_quoted(name)}")
        if not _is_value(value):
            return _flawed(f"a control character or white space around it in the value of {_quoted(name)}")
        if name in _CONNECTION:
            return _flawed(f"a field of one connection: {_quoted(name)}")
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 19 or int(value) > MAX_LENGTH:
                # Equal numbers could be accepted (RFC 9110, section 8.6), but who sends two is confused.
                return _flawed(f"{BAD_LENGTH}: {_quoted(value)}")
            length = int(value)
        fields.append((name.decode("ascii"), value.decode("latin-1")))
    return Block(status, tuple(fields), length, None)


def _flawed(what: str) -> Block:
    return Block(None, (), None, what)


def _quoted(data: bytes) -> str:
    return repr(data[:SHOWN])[1:]


def check_request(fields: Iterable[Field]) -> Request:
    """Check the head of a request (sections 8.2 and 8.3.1); names may come in any case, as in HTTP/1.1.

    Raises LocalProtocolError for what would not be one request with one meaning.
    """
    pseudo: dict[bytes, bytes] = {}
    plain: list[tuple[bytes, bytes]] = []
    single: dict[bytes, bytes] = {}
    for name, value in map(_as_bytes, fields):
        if name[:1] == b":":
            if name not in _REQUEST_PSEUDO or name in pseudo or plain:
                raise LocalProtocolError(f"{_quoted(name)} is unknown, there twice, or after other fields")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name in _CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise LocalProtocolError(f"{_quoted(name)} speaks of one connection; HTTP/2 has no such fields")
        if name in _SINGLE:
            if name in single:
                raise LocalProtocolError(f"a request has one {_quoted(name)} at most")
            single[name] = value
        plain.append((name, value))
    _check_pseudo(pseudo, single.get(b"host"))
    every = (*pseudo.items(), *plain)
    length = single.get(b"content-length")
    if length is not None and (not length.isdigit() or len(length) > 19):
        raise LocalProtocolError("the Content-Length of the request is not a number")
    size = sum(len(name) + len(value) + 32 for name, value in every)  # RFC 7541, section 4.1
    return Request(every, pseudo[b":method"], None if length is None else int(length), size)


def check_trailer(fields: Iterable[Field]) -> tuple[tuple[bytes, bytes], ...]:
    """Check the trailer of a request: one field at least, no pseudo-header field, nothing that frames or routes."""
    every = tuple(map(_as_bytes, fields))
    if not every:
        raise LocalProtocolError("a trailer has one field at least")
    for name, value in every:
        _check_field(name, value)
        if name in _NOT_IN_TRAILERS:
            raise LocalProtocolError(f"{_quoted(name)} has no place in a trailer")
    return every


def _check_pseudo(pseudo: dict[bytes, bytes], host: bytes | None) -> None:
    method, authority = pseudo.get(b":method", b""), pseudo.get(b":authority")
    if not _is_method(method):
        raise LocalProtocolError(f"the method {_quoted(method)} is no token")
    if method == b"CONNECT":  # section 8.5
        if set(pseudo) != {b":method", b":authority"}:
            raise LocalProtocolError("CONNECT has :method and :authority, and no other pseudo-header field")
    else:
        path = pseudo.get(b":path", b"")
        if not _is_scheme(pseudo.get(b":scheme", b"")):
            raise LocalProtocolError("a request has a :scheme")
        if not _is_visible(path) or not (path[:1] == b"/" or (path == b"*" and method == b"OPTIONS")):
            raise LocalProtocolError(f"the :path {_quoted(path)} does not begin with / or has other than visible ASCII")
    if authority is not None and (not _is_visible(authority) or b"@" in authority):
        raise LocalProtocolError(f"the :authority {_quoted(authority)} is empty, or not a host and port")
    if authority is None and host is None:
        raise LocalProtocolError("a request has an :authority")
    if None not in (authority, host) and authority != host:
        raise LocalProtocolError("Host and :authority differ")


def _check_field(name: bytes, value: bytes) -> None:
    if not _is_name(name):
        raise LocalProtocolError(f"{_quoted(name)} is no token, as a field name must be (RFC 9110, section 5.6.2)")
    if not _is_value(value):  # the value may be a secret
        raise LocalProtocolError(f"the value of {_quoted(name)} has a control character in it")


def _as_bytes(field: Field) -> tuple[bytes, bytes]:
    name, value = field
    try:
        if isinstance(name, str):
            name = name.encode("ascii")
        if not isinstance(value, bytes):
            value = value.encode("latin-1") if isinstance(value, str) else b"%d" % value
    except UnicodeEncodeError as error:
        raise LocalProtocolError(
            f"{error.object[error.start]!r} in a field is not latin-1: encode the value"
        ) from error
    return name.lower(), value.strip(b" \t")  # white space around a value is no part of it (RFC 9110, section 5.5)
