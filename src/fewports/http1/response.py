"""HTTP/1.1 responses from bytes. Decides where a message ends and whether the connection may be used again;
has no socket and no clock, and repairs nothing.

Sections are those of RFC 9112 unless another RFC is named. A ``Reader`` is one of

state    expects     what comes next                                   then
IDLE     0           nothing is due; a byte that comes is in excess    HEAD by begin()
HEAD     0           a head; those with 1xx are passed over            LENGTH, SIZE, CLOSE, IDLE
LENGTH   bytes left  the body, as long as Content-Length says          IDLE
SIZE     0           the first chunk-size line                         CHUNK, TRAILER
CHUNK    bytes left  the data of a chunk                               NEXT
NEXT     0           CRLF and the next chunk-size line                 CHUNK, TRAILER
TRAILER  0           trailer fields and an empty line                  IDLE
CLOSE    UNBOUNDED   the body, until the peer closes                   IDLE by eof()
FAILED   0           nothing more: every call raises the same error    -

What the peer sent goes in with receive(); take() gives the body bytes in it. As soon as take() has
nothing left, ``expects`` bytes of body may also be read straight into a buffer of the caller, and are
told with took().

Long, because head, framing and body are one state table, and each rule has its reason beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .errors import LocalProtocolError, RemoteProtocolError, Truncated
from .request import TOKEN

MAX_LINE = 65536  # bytes of a line with its CRLF: http.client._MAXLINE
MAX_FIELDS = 100  # of a head or trailer: http.client._MAXHEADERS
MAX_HEAD = 256 * 1024  # bytes: what Chromium reads (kMaxHeaderBufSize), so that no public site needs more
MAX_INTERIM = 20  # heads with 1xx before the final one; servers send one or two
MAX_CHUNK_LINE = 4096  # bytes of a chunk-size line with the CRLF before and after it: Go's maxLineLength
MAX_EXTENSIONS = 16 * 1024  # bytes of chunk extensions beyond what the data pays for: Go's chunkedReader
MAX_TRAILER = 64 * 1024  # bytes: checksums and timings go there, no cookies
MAX_LENGTH = 2**63 - 1  # bytes of a body or chunk: what a file offset can be (off_t)
UNBOUNDED = MAX_LENGTH
REMEMBERED = 4096  # bytes of a head that an idle connection keeps, to know it again
SHOWN = 60  # bytes of the peer's that an error message quotes

IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))  # RFC 9110, section 9.2.2

BAD_CHUNK_SIZE = "a bad chunk size line"
BAD_LENGTH = "a Content-Length that is not one number"

# The states. Their values say in an error message where it happened.
_IDLE = "idle"
_HEAD = "the head"
_LENGTH = "the body"
_SIZE = "the first chunk size line"
_CHUNK = "the data of a chunk"
_NEXT = "the end of a chunk"
_TRAILER = "the trailer"
_CLOSE = "the body until close"
_FAILED = "failed"

_TEXT = r"[\t\x20-\x7e\x80-\xff]*+"  # field-content and reason-phrase: no control character (RFC 9110, section 5.5)
_STATUS = rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: ({_TEXT}))?\r\n"  # some leave out the SP with the reason
_FIELD = rf"{TOKEN}++:{_TEXT}\r\n"
_HEX = r"([0-7]?[0-9A-Fa-f]{1,15})"  # below 2**63; so many leading zeros at most

_match_head = re.compile(rf"{_STATUS}(?:{_FIELD}){{0,{MAX_FIELDS}}}\r\n".encode("latin-1")).match
_is_status = re.compile(_STATUS.encode("latin-1")).fullmatch
_is_field = re.compile(_FIELD.encode("latin-1")).fullmatch
_match_size = re.compile(rf"{_HEX}\r\n".encode()).match
_match_next = re.compile(rf"\r\n{_HEX}\r\n".encode()).match
_match_extended = re.compile(rf"(?:\r\n)?{_HEX}([\t ]*;{_TEXT})?\r\n".encode("latin-1")).fullmatch
# The next three read what the above let pass: each field line comes after a LF, and CR is nowhere but before LF.
_FIELDS = r"\n([^:\r]+):[ \t]*((?:[^\r]*[^\r \t])?)"  # without OWS (section 5.1)
_find_fields = re.compile(_FIELDS).findall
_find_raw_fields = re.compile(_FIELDS.encode()).findall
_find_framing = re.compile(
    rb"\n(?=[CTKctk])(?i:(content-length|content-encoding|transfer-encoding|connection|keep-alive)):[ \t]*([^\r]*)"
).findall
_find_timeout = re.compile(rb"(?i:(?:^|[,; \t])timeout[ \t]*=[ \t]*\"?([0-9]{1,9}))(?![0-9.])").search

_LINE_FLAWS = (
    (rb".*\x00", "NUL"),
    (rb".*\r(?!\n)", "CR without LF"),  # section 2.2
    (rb".*(?<!\r)\n", "LF without CR"),  # section 2.2 lets us accept it; others may see another message then
    (rb".*[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]", "a control character"),
)
_STATUS_FLAWS = (
    (rb"(?!HTTP/)", "no HTTP response"),
    (rb"(?!HTTP/1\.[01] )", "a version other than HTTP/1.0 and HTTP/1.1"),
    *_LINE_FLAWS,
    (rb"", "a bad status line"),  # section 4
)
_FIELD_FLAWS = (
    (rb"[ \t]", "a folded line"),  # section 5.2
    *_LINE_FLAWS,
    (rb"[^:]*\Z", "a line without colon"),
    (rb":", "a field without name"),
    (rb"[^:]*[ \t]:", "white space before the colon"),  # section 5.1
    (rb"", "a field name that is no token"),
)

_NOT_IN_TRAILERS = frozenset(("content-length", "transfer-encoding", "trailer"))  # RFC 9110, section 6.5.1


class Head(NamedTuple):
    """The head of a final response: ``version`` is 10 or 11, ``raw`` the bytes of it, checked."""

    version: int
    status: int
    reason: str
    raw: bytes

    def fields(self) -> list[tuple[str, str]]:
        """Make the names and values, in the order of the peer, latin-1, without white space around values."""
        return _find_fields(self.raw.decode("latin-1"))

    def raw_fields(self) -> list[tuple[bytes, bytes]]:
        """Make the names and values as bytes."""
        return _find_raw_fields(self.raw)


class Known(NamedTuple):
    """What a head says: ``length`` of the body (-1: chunked), whether to keep the connection, and so on."""

    head: Head
    length: int | None
    keep: bool
    encoded: bool
    idle_limit: int | None


class Reader:
    """What comes in on one connection: begin() once for each request, then receive() until ``done``.

    ``started``: something came; ``interim``: so many heads with 1xx came; ``head``: the final one.
    ``length``: of the whole body, None if it is ``chunked`` or lasts until close; ``got``: so much of it came.
    ``expects``: so many bytes of body come next with no framing in between (UNBOUNDED until close).
    ``encoded``: there is a Content-Encoding. ``excess``: so many bytes came after the end.
    ``idle_limit``: the N of ``Keep-Alive: timeout=N``, in seconds.
    ``persists``: nothing so far says that the connection ends with this response (section 9.3).
    ``reusable``: another request may be sent, as both messages ended, too.
    ``beyond``: what came after a head that ends HTTP on this connection, with 101 or after CONNECT.

    Methods raise RemoteProtocolError if the peer breaks a rule, LocalProtocolError if the caller does.
    """

    def __init__(self) -> None:
        self._error: RemoteProtocolError | None = None
        self.persists = self.reusable = True
        self._data: bytes | memoryview = b""  # the window: what came last,
        self._at = self._end = 0  # and what of it was not used yet
        self._known: Known | None = None
        self._kept = bytearray()  # of a line or section that is not complete
        self._searched = self._line = 0  # in _kept: the search for LF goes on here; this line began there
        self.excess = 0
        self.begin("")
        self._finish()  # nothing is due yet

    def __repr__(self) -> str:
        return f"<Reader {self._state}, {self.got} bytes of body{'' if self.persists else ', not to be used again'}>"

    @property
    def ready(self) -> int:
        """How many bytes of body the next take() can give."""
        return min(self._end - self._at, self.expects)

    def begin(self, method: str, *, sending: bool = False, upgrade: bool = False) -> None:
        """Expect the response to a request with *method* (its case matters: RFC 9110, section 9.1).

        *sending* means that the body is not out yet: only after sent() can the connection be reused. *upgrade* means
        that it asks for another protocol.
        """
        if not self.reusable:
            raise LocalProtocolError(f"no request may be sent now: {self!r}, {self.excess} bytes in excess")
        self._state = _HEAD
        self._sending = sending
        self.done = self.reusable = False
        self._bodyless = method == "HEAD"
        self._connect = method == "CONNECT"
        self._upgrade = upgrade
        self._tunnel = False
        self.beyond = b""
        self._extensions = 0
        self._trailer = b""
        self.head: Head | None = None
        self.started = self.chunked = False
        self.interim = self.expects = self.got = 0
        self.length: int | None = None
        self.encoded = False
        self.idle_limit: int | None = None

    def sent(self) -> None:
        """Learn that the last byte of the request is out."""
        self._sending = False
        self.reusable = self.done and self.persists

    def receive(self, data: bytes | memoryview) -> None:
        """Take in what the peer sent; empty means that it closed, as for recv(). *data* stays in use until taken."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if not data:
            self.eof()
            return
        if self._at < self._end:
            raise LocalProtocolError("there are body bytes left to take()")
        self._data, self._at, self._end = data, 0, len(data)
        if self._state is _HEAD:  # most often that is all there is to do: a body, if any, comes next
            self._read_head()
        if self._at < self._end and not self.expects:
            self._advance()

    def take(self, limit: int = UNBOUNDED) -> bytes | memoryview:
        """Return a slice of what was received: the next bytes of body, of one chunk and *limit* at most, or none."""
        at = self._at
        count = self._end - at
        if count > self.expects:
            count = self.expects
        if count > limit:
            count = limit
        if count <= 0:
            if self._error is not None:
                raise self._error.with_traceback(None)
            return b""
        self._at = at + count
        piece = self._data[at : at + count]
        self._pass(count)
        return piece

    def whole(self) -> bytes | memoryview | None:
        """Return the body at once, if it is here from its first byte to its last; else None, and take() gives it."""
        length, at, end = self.length, self._at, self._end
        if length is None or self.got or length > end - at:
            return None
        if not length or length != end - at:
            return self.take()  # there is none of it, or something behind it
        self._at = end
        self.got = length
        piece = self._data[at:]
        self._finish()
        return piece

    def took(self, count: int) -> None:
        """Learn that *count* bytes of body were read past this object."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if not 0 <= count <= self.expects or self._at < self._end:
            raise LocalProtocolError(f"cannot pass over {count} bytes: {self.expects} expected, take() comes first")
        self._pass(count)

    def eof(self) -> None:
        """Learn that the peer closed; raise Truncated if that is too early."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        self.persists = self.reusable = False
        state = self._state
        if self._at < self._end and self.expects:
            raise LocalProtocolError("there are body bytes left to take()")
        # Section 8: a chunked body is complete with its last chunk. Some servers send no empty line after it.
        if state is _CLOSE or (state is _TRAILER and not self._kept):
            self._finish()
        elif state is not _IDLE:
            where = state if self.started else "front of any response"
            expected = self.expects if state in (_LENGTH, _CHUNK) else None
            raise self._fail(Truncated(where, self.got, expected))

    def trailers(self) -> list[tuple[str, str]]:
        """Make names and values of the trailer; what frames a message has no meaning in it and is left out."""
        pairs: list[tuple[str, str]] = _find_fields("\n" + self._trailer.decode("latin-1"))
        return [pair for pair in pairs if pair[0].lower() not in _NOT_IN_TRAILERS]

    # Below: the window is known, and nothing has failed yet.

    def _advance(self) -> None:
        """Take framing off the front of the window, until body bytes come next or the window is empty."""
        while self._at < self._end and not self.expects:
            state = self._state
            if state is _NEXT or state is _SIZE:
                found = None if self._kept else (_match_next if state is _NEXT else _match_size)(self._data, self._at)
                if found is not None:
                    self._at = found.end()
                    size = int(found[1], 16)
                elif (size := self._gather_size(2 if state is _NEXT else 0)) < 0:
                    return
                self.expects = size
                self._state = _CHUNK if size else _TRAILER
            elif state is _HEAD:
                self._read_head()
            elif state is _TRAILER:
                self._read_trailer()
            else:
                # Nothing is due: another response, or more than a body. No telling what it answers (section 9.2).
                if self._tunnel:
                    self.beyond += self._data[self._at : self._end]
                self.excess += self._end - self._at
                self._at = self._end
                self._data = b""
                self.persists = self.reusable = False

    def _pass(self, count: int) -> None:
        """Count body bytes that were handed out, and go on after the last one of a part."""
        self.got += count
        if self._state is _CLOSE:
            return
        self.expects -= count
        if self.expects:
            return
        if self._state is _CHUNK:
            self._state = _NEXT
        else:
            self._finish()
        if self._at < self._end:
            try:  # noqa: SIM105 (suppress() costs as much as a chunk)
                self._advance()
            except RemoteProtocolError:
                pass  # the bytes in front of it were good: the next call raises it

    def _finish(self) -> None:
        self._state = _IDLE
        self.expects = 0
        self.done = True
        self.reusable = self.persists and not self._sending
        if self._at == self._end:
            self._data = b""  # an idle connection keeps no buffer alive

    def _read_head(self) -> None:
        self.started = True
        known = self._known
        if known is not None and not self._kept:
            head, length, keep, encoded, idle_limit = known
            end = self._at + len(head.raw)
            if self._data[self._at : end] == head.raw:
                # The same bytes as last time, the date included: they mean the same.
                self._at, self.head, self.encoded, self.idle_limit = end, head, encoded, idle_limit
                self._frame(head, length, keep)
                return
        found = None if self._kept else _match_head(self._data, self._at)
        if found is not None and found.end() - self._at <= MAX_LINE:  # so no line of it is longer
            self._at = found.end()
        elif not self._gather(MAX_HEAD):
            return
        elif (found := _match_head(bytes(self._kept))) is None:
            raise self._refuse(f"more than {MAX_FIELDS} fields", _HEAD)
        self._kept.clear()
        status = int(found[2])
        if status >= 200 or (status == 101 and self._upgrade):
            reason = (found[3] or b"").decode("latin-1").strip()
            self._decide(Head(11 if found[1] == b"1" else 10, status, reason, found[0]))
        elif status == 101:
            # RFC 9110, section 7.8: what follows would be another protocol, and nobody asked for one.
            raise self._refuse("a switch to another protocol", _HEAD, found[0])
        else:
            # RFC 9110, section 15.2: any number of them may come, asked for or not.
            self.interim += 1
            if self.interim > MAX_INTERIM:
                raise self._refuse(f"more than {MAX_INTERIM} responses with 1xx", _HEAD, found[0])

    def _decide(self, head: Head) -> None:
        """Tell from the final head how the body ends (section 6.3) and whether to go on after it (9.3)."""
        values: dict[bytes, bytes] = {}
        for name, value in _find_framing(head.raw):
            name = name.lower()
            # RFC 9110, section 5.3. A second Content-Length or Transfer-Encoding makes no valid value of it.
            values[name] = values[name] + b"," + value if name in values else value
        if (limit := values.get(b"keep-alive")) and (found := _find_timeout(limit)):
            self.idle_limit = int(found[1])
        self.encoded = b"content-encoding" in values
        keep = head.version == 11
        options = values.get(b"connection")
        if options is not None and not (keep and options == b"keep-alive"):
            tokens = {token.strip(b" \t") for token in options.lower().split(b",")}
            keep = b"close" not in tokens and (keep or b"keep-alive" in tokens)
        length = self._content_length(values)
        self.head = head
        self._known = Known(head, length, keep, self.encoded, self.idle_limit) if len(head.raw) <= REMEMBERED else None
        self._frame(head, length, keep)

    def _content_length(self, values: dict[bytes, bytes]) -> int | None:
        """Return the Content-Length, -1 for chunked, or None; refuse what can be understood differently."""
        length = values.get(b"content-length")
        coding = values.get(b"transfer-encoding")
        if coding is not None:
            if length is not None:
                # Section 6.1: an attempt at request smuggling or response splitting, and an error in any case.
                raise self._refuse("both Content-Length and Transfer-Encoding", _HEAD, length)
            if coding.rstrip(b" \t").lower() != b"chunked":
                # Section 6.1: we send no TE, so no other coding may come, and none twice.
                raise self._refuse("a Transfer-Encoding other than chunked", _HEAD, coding)
            return -1
        if length is None:
            return None
        digits = length.rstrip(b" \t")  # bytes.isdigit() knows ASCII only
        if not digits.isdigit() or len(digits) > 19 or int(digits) > MAX_LENGTH:
            # A list of equal numbers could be accepted (RFC 9110, section 8.6), but who sends it is confused.
            raise self._refuse(BAD_LENGTH, _HEAD, length)
        return int(digits)

    def _frame(self, head: Head, length: int | None, keep: bool) -> None:
        """Choose the state for the body."""
        tunnel = self._tunnel = head.status == 101 or (self._connect and head.status < 300)
        if self._bodyless or tunnel or head.status == 204 or head.status == 304:
            # Section 6.3, rules 1 and 2. Who announces a body with 204 may well send it, and after CONNECT
            # the connection speaks something else.
            keep = keep and not tunnel and not (head.status == 204 and length)
            self.length = 0
            self._finish()
        elif length is None:
            self.expects = UNBOUNDED
            self._state = _CLOSE
        elif length < 0:
            # Section 6.1: HTTP/1.0 has no chunks, so whoever passed this on may have framed it otherwise.
            keep = keep and head.version == 11
            self.chunked = True
            self._state = _SIZE
        else:
            self.length = self.expects = length
            self._state = _LENGTH
            if not length:
                self._finish()
        if not keep:
            self.persists = self.reusable = False

    def _gather_size(self, ahead: int) -> int:
        """Read a chunk-size line that comes in parts or has extensions, which mean nothing to us (section 7.1.1).

        *ahead* is the length of the CRLF before it. Returns -1 until the line is complete.
        """
        kept = self._kept
        had = len(kept)
        kept += self._data[self._at : self._at + MAX_CHUNK_LINE + 1 - had]
        if ahead and kept[:2] != b"\r\n"[: len(kept)]:
            raise self._refuse("no CRLF", _NEXT, bytes(kept))
        stop = kept.find(b"\n", max(ahead, had)) + 1
        if (stop or len(kept)) > MAX_CHUNK_LINE:
            what = "chunk size line exceeded maximum allowed length"  # the words of urllib3
            raise self._refuse(what, self._state, bytes(kept))
        if not stop:
            self._at = self._end
            return -1
        line = bytes(kept[:stop])
        if not (found := _match_extended(line)):
            raise self._refuse(BAD_CHUNK_SIZE, self._state, line)
        self._at += stop - had
        kept.clear()
        size = int(found[1], 16)
        if found[2]:
            # As Go does: 16 bytes for each chunk and 2 for each byte of data are no attack.
            self._extensions = max(0, self._extensions + len(found[2]) - 16 - 2 * size)
            if self._extensions > MAX_EXTENSIONS:
                raise self._refuse("more chunk extensions than data", self._state, found[2])
        return size

    def _read_trailer(self) -> None:
        """Read the trailer section (section 7.1.2). It is kept apart from the head and decides nothing."""
        if not self._kept and self._data[self._at : self._at + 2] == b"\r\n":
            self._at += 2
        elif not self._gather(MAX_TRAILER):
            return
        self._trailer = bytes(self._kept)
        self._kept.clear()
        if self._trailer.count(b"\n") > MAX_FIELDS + 1:
            raise self._refuse(f"more than {MAX_FIELDS} fields", _TRAILER)
        self._finish()

    def _gather(self, limit: int) -> bool:
        """Keep lines that come in parts or are not plain, up to the empty one; say whether that came.

        Each line is checked when it is complete: one that is wrong is told at once and not when a
        time-out ends the wait for the rest; no byte is searched twice.
        """
        kept = self._kept
        had = len(kept)
        if not had:
            self._searched = self._line = 0
        kept += self._data[self._at : self._at + limit + 1 - had]
        where = self._state
        while stop := kept.find(b"\n", self._searched) + 1:
            line = bytes(kept[self._line : stop])
            first = where is _HEAD and not self._line
            if len(line) > MAX_LINE or stop > limit:
                break
            if line == b"\r\n" and not first:
                del kept[stop:]
                self._at += stop - had
                return True
            if not (_is_status if first else _is_field)(line):
                flaw = _flaw(line, _STATUS_FLAWS if first else _FIELD_FLAWS)
                raise self._refuse(flaw, f"{where}, byte {self._line}", line)
            self._line = self._searched = stop
        if where is _HEAD and kept[:7] != b"HTTP/1."[: len(kept)]:
            raise self._refuse(_flaw(bytes(kept), _STATUS_FLAWS), where, bytes(kept))
        if (stop or len(kept)) - self._line > MAX_LINE:
            raise self._refuse(f"a line of more than {MAX_LINE} bytes", f"{where}, byte {self._line}")
        if len(kept) > limit:
            raise self._refuse(f"more than {limit} bytes", where)
        self._searched = len(kept)
        self._at = self._end
        return False

    def _refuse(self, what: str, where: str, data: bytes = b"") -> RemoteProtocolError:
        return self._fail(RemoteProtocolError(what, where, data[:SHOWN]))

    def _fail(self, error: RemoteProtocolError) -> RemoteProtocolError:
        self._error = error
        self._state = _FAILED
        self.persists = self.reusable = False
        self.expects = 0
        self._at = self._end
        self._data = b""
        self._kept.clear()
        return error


def may_repeat(reader: Reader, method: str, *, sent: bool) -> bool:
    """Say whether a request that met the end of a connection which was kept may be sent again (section 9.3.1).

    Either not a byte of it was *sent*, or it has no more effect twice than once, and not a byte came back.
    """
    if reader.started and not reader.done:
        return False
    return not sent or method in IDEMPOTENT


def _flaw(line: bytes, flaws: Sequence[tuple[bytes, str]]) -> str:
    """Say what is wrong with a line that is."""
    return next(what for pattern, what in flaws if re.match(pattern, line, re.DOTALL))
