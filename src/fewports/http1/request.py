"""HTTP/1.1 requests as bytes. Sections are those of RFC 9112 unless another RFC is named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from .errors import LocalProtocolError

LAST_CHUNK = b"0\r\n\r\n"  # section 7.1
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110, section 5.6.2

_is_token = re.compile(rf"{TOKEN}+").fullmatch
_FRAMING = frozenset(("content-length", "transfer-encoding"))
_SINGLE = frozenset(("content-length", "transfer-encoding", "host"))  # at most one of each in a request

Field = tuple[str | bytes, str | bytes | int]


def _field_lines(fields: Iterable[Field]) -> tuple[list[str], bytes]:
    """Return the names in lower case, and the lines; values are latin-1, as those of http.client."""
    names, lines = [], []
    for name, value in fields:
        if not isinstance(name, str):
            name = name.decode("latin-1")
        names.append(_checked_name(name))
        if not isinstance(value, str):
            value = value.decode("latin-1") if isinstance(value, bytes) else f"{value:d}"
        lines.append(f"{name}: {value}\r\n")
    text = "".join(lines)
    # Names have no line break. So if there are as many as lines, values have none (RFC 9110, section 5.5).
    if not text.count("\r") == text.count("\n") == len(lines) or "\0" in text:
        bad = next(line for line in lines if "\0" in line or line.count("\r") + line.count("\n") > 2)
        raise LocalProtocolError(f"the value of {bad.partition(':')[0]} has CR, LF or NUL in it")  # it may be a secret
    try:
        return names, text.encode("latin-1")
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise LocalProtocolError(f"{bad!r} in a value is not latin-1: encode the value as it is to be sent") from error


@lru_cache(1024)
def _checked_name(name: str) -> str:
    """Return a field name or method in lower case; it is a token (RFC 9110, sections 5.1 and 9.1)."""
    if not _is_token(name):
        raise LocalProtocolError(f"{name!r} is no token, as a method or field name must be (RFC 9110, section 5.6.2)")
    return name.lower()


def _check_framing(names: Iterable[str]) -> None:
    """Refuse what two readers could understand differently (sections 3.2 and 6.2)."""
    single = [name for name in names if name in _SINGLE]
    if len(single) != len(set(single)):
        raise LocalProtocolError(f"a request has one each of {', '.join(sorted(_SINGLE))} at most")
    if "content-length" in single and "transfer-encoding" in single:
        raise LocalProtocolError("a request has Content-Length or Transfer-Encoding, not both")


class Preset:
    """Fields that are the same for many requests (Host, User-Agent, ...), checked and encoded once.

    A request that brings a field of the same name replaces the one here.
    """

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self._fields = tuple(fields)
        self._rests: dict[frozenset[str], Preset] = {}  # what without() made: callers leave out the same names again
        self._names, lines = _field_lines(self._fields)
        _check_framing(self._names)
        # Host comes first (RFC 9110, section 7.2), and what differs between two requests after it.
        self.host, self.lines = b"", lines
        if self._names[:1] == ["host"]:
            host, line_end, self.lines = lines.partition(b"\r\n")
            self.host = host + line_end
        self.names = frozenset(self._names)
        self.framed = not self.names.isdisjoint(_FRAMING)  # they say how long the body is

    def check(self, length: int) -> None:
        """Refuse a body of *length* bytes where they announce another: what follows would be misread."""
        for name, (_, value) in zip(self._names, self._fields, strict=True):
            if name == "content-length":
                text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
                if not (text.strip(" \t").isdecimal() and int(text) == length):
                    raise LocalProtocolError(f"the body has {length} bytes, and Content-Length says {text}")

    def without(self, names: Collection[str]) -> Preset:
        """Return what is left when the fields with these names (in lower case) are gone."""
        gone = self.names.intersection(names)
        if not gone:
            return self
        if gone not in self._rests:
            left = (field for name, field in zip(self._names, self._fields, strict=True) if name not in gone)
            self._rests[gone] = Preset(left)
        return self._rests[gone]


_NOTHING = Preset()


def request_head(
    method: str, target: str, fields: Iterable[Field] = (), preset: Preset = _NOTHING, length: int | None = None
) -> bytes:
    """Return the request line, the fields of *preset*, *fields* and the empty line, as bytes to send.

    *length* is that of a body whose fields say nothing of it. Raises LocalProtocolError for what would not be one
    request with one meaning.
    """
    _checked_name(method)  # section 3.1: a token, as field names are
    if not (target and target.isascii() and target.isprintable()) or " " in target:
        # Section 3.2. A line break would start another request in the name of the caller.
        raise LocalProtocolError(f"the request target {target!r} is empty or has other than visible ASCII characters")
    lines = b""
    if fields:
        names, lines = _field_lines(fields)
        preset = preset.without(names)
        _check_framing([*preset.names, *names, *(() if length is None else ("content-length",))])
    elif length is not None:
        _check_framing([*preset.names, "content-length"])
    framing = b"" if length is None else b"Content-Length: %d\r\n" % length
    return b"%b %b HTTP/1.1\r\n%b%b%b%b\r\n" % (
        method.encode(),
        target.encode(),
        preset.host,
        framing,
        preset.lines,
        lines,
    )


def chunk_head(size: int) -> bytes:
    """Return what goes before *size* bytes of data, which CRLF follows (section 7.1)."""
    if size <= 0:
        raise LocalProtocolError("a chunk without data would end the body; LAST_CHUNK does")
    return b"%x\r\n" % size
