"""One HTTP/2 connection of a client. Decides what each frame means for which stream, and when the connection
must end; has no socket and no clock, and takes no lock: its owner holds one around each call.

Sections are those of RFC 9113 unless another RFC is named. h2 keeps the settings, and the windows for what we send: it
knows the streams that send a body, and no others. Of what comes it sees SETTINGS and WINDOW_UPDATE. It never sees

frame                            because
HEADERS, CONTINUATION            h2 takes 40 us for a head, and does not know the rules of fields.py
DATA                             h2 copies it thrice, and resets a stream again for each that comes late
PING                             h2 would queue any number of answers
GOAWAY                           h2 would refuse every frame after it, and forget what is to be sent
RST_STREAM                       for streams that it does not know
PUSH_PROMISE                     we forbid it, so that it is an error anywhere
PRIORITY, unknown types          nothing to do

State: ``_live`` has the open streams, ``_left`` those that we reset, whose frames may still come; ``_reserved``
counts the seats that are not used yet. A seat is held by each of the first and the last.

Long, because the frames, the flow control and the ways to end share that state.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from h2.events import RemoteSettingsChanged, WindowUpdated
from h2.events import StreamReset as ResetReceived
from h2.settings import SettingCodes

from ..errors import InvalidOption
from ..http1 import Field
from .blocks import Blocks, BrokenRule
from .errors import Code, ConnectionFailed, LocalProtocolError, StreamReset, Unprocessed, code_name
from .fields import Request, check_request
from .frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LAST_ID,
    PADDED,
    PING,
    PUSH,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Bytes,
    code_of,
    engine,
    goaway,
    headers,
    one_number,
    ping,
    reset,
    settings_of,
    two_numbers,
    window_update,
    with_settings,
)
from .hpack import KNOWN, REMEMBERED, FieldCoder, Reading, Writing
from .splitter import Splitter
from .stream import Seat, Stream

WINDOW = 16 * 1024 * 1024  # bytes under way on the connection: 1.3 Gbit/s at 100 ms
STREAM_WINDOW = 4 * 1024 * 1024  # bytes under way or unread on one stream: what Go's client allows
ASSUMED_STREAMS = 100  # at once, until the peer says how many: the least that section 6.5.2 recommends
MAX_STREAMS = 1000  # at once, however many the peer allows: what Go's client takes
MAX_QUEUED = 256 * 1024  # bytes of bodies that wait to be sent: the windows of a peer may allow 2 GB
MAX_OWED = 1000  # answers that wait to be sent (PING, SETTINGS, RST_STREAM): nobody sends so many in one flight
MAX_IDLE_FRAMES = 10_000  # frames in a row that move nothing: as many as Go's server lets wait
MAX_LEFT = 2 * MAX_STREAMS  # streams that we reset and remember

_WHERE = "the connection"
_STRANGE = "something other than the SETTINGS of HTTP/2 at the start"


class Connection:
    """What goes in and out on one connection. receive() and pending() move bytes; reserve() leads to streams.

    ``error``: why it failed. ``closing``: no new stream can be opened. ``unanswered``: so many PINGs of ours.
    ``greeted``: the peer's SETTINGS came; ``answered``: so did the head of a response; ``told_last``: it went away and
    said which streams it has looked at. ``limit``: so many streams may be open at once.
    """

    def __init__(
        self, *, max_streams: int = MAX_STREAMS, window: int = WINDOW, stream_window: int = STREAM_WINDOW
    ) -> None:
        if not (65535 <= window <= LAST_ID and 1 <= stream_window <= LAST_ID and max_streams >= 1):
            # Section 6.9.2: the connection's window begins with 65,535 and only grows.
            raise InvalidOption(
                f"windows are of 65535 (of a stream: 1) to {LAST_ID} bytes, and max_streams is positive"
            )
        self._reading, self._writing, self._coder = Reading(), Writing(), FieldCoder()
        self._h2 = engine(self._writing, stream_window)
        self._requests: dict[tuple[Field, ...], tuple[Request, bytes]] = {}
        self._max_streams, self.limit = max_streams, min(ASSUMED_STREAMS, max_streams)
        self._allowed: float = inf  # bytes of a request's header list
        self._step = window // 2
        self.stream_window = stream_window
        self.stream_step = max(stream_window // 2, 1)  # so much is taken before the peer is told
        self._live: dict[int, Stream] = {}
        self._left: dict[int, int] = {}  # with what its window may let through
        self._reserved = 0
        self._next_id = 1
        self._frames = Splitter()
        self._blocks = Blocks()
        self.greeted = self.answered = self.told_last = False
        self._received = 0  # bytes of DATA that the peer may send again, and is not told yet
        self._window = window  # bytes of DATA that the peer may send
        self._control = bytearray(self._h2.data_to_send())  # to be sent
        if window > 65535:
            self._widen(0, window - 65535)
        self._queued = self._owed = self._idle_frames = 0
        self._blocked: dict[Stream, None] = {}  # streams that have more to send
        self._woken: dict[Stream, None] = {}
        self._pings = 0
        self.unanswered = 0
        self.closing = False
        self.error: ConnectionFailed | None = None

    @property
    def room(self) -> int:
        """How many seats reserve() would give now."""
        if self.closing:
            return 0
        ids = (LAST_ID - self._next_id) // 2 + 1
        return max(0, min(self.limit - len(self._live), ids) - self._reserved)

    @property
    def owes(self) -> bool:
        """Whether pending() has anything."""
        return bool(self._control)

    @property
    def active(self) -> int:
        """How many seats are held, by open streams or before."""
        return len(self._live) + self._reserved

    @property
    def finished(self) -> bool:
        """Whether nothing can come of this connection any more: close it, when pending() is sent."""
        return self.closing and not self.active

    def reserve(self) -> Seat | None:
        """Hold a seat for a stream, or say None if there is none."""
        if self.room <= 0:
            return None
        self._reserved += 1
        return Seat(self)

    def receive(self, data: Bytes) -> None:
        """Take in what the peer sent, in any pieces. Raises ConnectionFailed if it breaks a rule; pending() says so to
        the peer. Streams to which something happened are in woken()."""
        if self.error is not None:
            raise self.error
        try:
            for kind, flags, number, frame in self._frames.split(data):
                self._take_frame(kind, flags, number, frame)
        except BrokenRule as error:
            raise self._failed(error.error_code, str(error) if self.greeted else _STRANGE) from error

    def eof(self) -> None:
        """Say that the peer closed, or the transport broke: streams that are open end with an error."""
        if self.error is None:
            self._end(ConnectionFailed("the peer closed it", _WHERE, None))

    def close(self) -> None:
        """Open no new stream and tell the peer. Streams that are open go on."""
        if not self.closing:
            self.closing = True
            self._control += goaway(Code.NO_ERROR)

    def pending(self) -> bytes:
        """Return what is to be sent, all at once. Streams that waited for room wake."""
        data = bytes(self._control)
        self._control.clear()
        if self._queued >= MAX_QUEUED:
            self._wake_blocked()
        self._queued = self._owed = 0
        return data

    def woken(self) -> list[Stream]:
        """Return the streams to which something happened, each once, and forget them."""
        streams = list(self._woken)
        self._woken.clear()
        return streams

    def ping(self) -> None:
        """Ask whether the peer is there: its answer takes all from ``unanswered`` that went before."""
        if self.error is not None:
            return
        self._pings += 1
        self.unanswered += 1
        self._control += ping(0, self._pings.to_bytes(8, "big"))

    def __repr__(self) -> str:
        state = "failed" if self.error else "closing" if self.closing else "open"
        return f"<Connection {state}, {len(self._live)} streams, {self._reserved} reserved, {self.room} free>"

    def open(self, fields: Iterable[Field], *, end: bool, seat: Seat | None = None) -> Stream:
        """Open a stream, for *seat* or for who counts its streams elsewhere; see Seat.open()."""
        request, block = self._request(tuple(fields))
        if request.size > self._allowed:
            raise LocalProtocolError(f"the fields count {request.size} bytes, the peer takes {self._allowed}")
        if end and request.length:
            raise LocalProtocolError(f"no body where Content-Length says {request.length}")
        if seat is not None:
            self._give_back(seat)
        if self.closing:
            raise Unprocessed("the connection takes no new streams") from self.error
        if len(self._live) >= self.limit:
            raise Unprocessed(f"the peer takes {self.limit} streams at once now, and has them")
        number = self._next_id
        self._next_id += 2
        if number == 1:
            block = self._coder.RESIZE + block
        if not end:  # h2 counts the windows of what sends a body
            self._h2.send_headers(number, _SHOWN)
            self._h2.clear_outbound_data_buffer()
        self._control += headers(number, block, end, self._h2.max_outbound_frame_size)
        stream = Stream(self, number, request)
        stream.sent = end
        self._live[number] = stream
        self._idle_frames = 0
        if self._next_id > LAST_ID:
            self.closing = True  # section 5.1.1: the ids of a connection are used once
        return stream

    # Below: what seats and streams ask for.

    def _request(self, fields: tuple[Field, ...]) -> tuple[Request, bytes]:
        known = self._requests.get(fields)
        if known is None:
            request = check_request(fields)
            known = request, self._coder.encode(request.fields)
            if request.size <= REMEMBERED:
                if len(self._requests) >= KNOWN:
                    self._requests.clear()
                self._requests[fields] = known
        return known

    def _give_back(self, seat: Seat) -> None:
        seat._connection = None
        self._reserved -= 1

    def _send(self, stream: Stream, data: Bytes, end: bool) -> int:
        size = len(data)
        count = min(size, self._room(stream))
        largest = self._h2.max_outbound_frame_size
        view = memoryview(data)
        for at in range(0, count, largest):
            stop = min(at + largest, count)
            self._h2.send_data(stream.id, bytes(view[at:stop]), end_stream=end and stop == size)
        if end and not size:
            self._h2.end_stream(stream.id)
        self._drain()
        self._queued += count
        if count:
            self._idle_frames = 0
        if count < size:
            self._blocked[stream] = None
        else:
            self._blocked.pop(stream, None)
            if end:
                self._sent(stream)
        return count

    def _send_trailer(self, stream: Stream, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        block = self._coder.encode(fields)
        self._control += headers(stream.id, block, True, self._h2.max_outbound_frame_size)
        self._sent(stream)

    def _sent(self, stream: Stream) -> None:
        stream.sent = True
        if stream.ended:
            self._forget(stream)

    def _leave(self, stream: Stream, code: int) -> None:
        """Reset a stream, if it is still open. The peer may go on for as long as its window lasts, until it hears."""
        if stream.closed:
            return
        self._control += reset(stream.id, code)
        self._forget(stream)
        self._left[stream.id] = self.stream_window
        if len(self._left) > MAX_LEFT:
            del self._left[next(iter(self._left))]

    def _drain(self) -> None:
        """Have what h2 wants to send stand in line with the rest."""
        self._control += self._h2.data_to_send()

    def _widen(self, number: int, size: int) -> None:
        self._control += window_update(number, size)

    # Below: frames. Each has come whole.

    def _take_frame(self, kind: int, flags: int, number: int, frame: Bytes) -> None:
        """Do what is for us, and give h2 the others (section 4.1)."""
        size = len(frame) - 9
        if not self.greeted:
            if kind != SETTINGS or flags & ACK:
                raise self._failed(Code.PROTOCOL_ERROR, _STRANGE)  # section 3.4
            self.greeted = True
        if self._blocks.open and (kind != CONTINUATION or number != self._blocks.open):
            raise self._failed(Code.PROTOCOL_ERROR, "a frame inside a header block")  # section 6.10
        if kind == DATA:
            self._expect_stream(number)
            stream = self._live.get(number)
            if stream is None:
                self._take_late_data(number, size)
            else:
                self._take_data(stream, flags, frame)
        elif kind in (HEADERS, CONTINUATION):
            self._take_headers(kind, flags, number, frame)
        elif kind == WINDOW_UPDATE:
            self._count_idle()
            self._take_window(number, frame)
        elif kind == SETTINGS:
            self._count_idle()
            self._pass_on(self._sift_settings(frame))
        elif kind == RST_STREAM:
            self._count_idle()
            self._take_reset(number, frame)
        elif kind == PING:
            self._take_ping(flags, number, frame)
        elif kind == GOAWAY:
            self._take_goaway(number, frame)
        elif kind == PUSH:
            raise self._failed(Code.PROTOCOL_ERROR, "a push, which we forbid")  # section 8.4
        else:
            self._count_idle()  # sections 5.5 and 6.3

    def _expect_stream(self, number: int) -> None:
        """Refuse what belongs to no stream, or one that is not open yet (section 5.1)."""
        if number % 2 == 0 or number >= self._next_id:
            raise self._failed(Code.PROTOCOL_ERROR, f"a frame for stream {number}, which was never opened")

    def _count_idle(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > MAX_IDLE_FRAMES:
            raise self._failed(Code.ENHANCE_YOUR_CALM, f"{MAX_IDLE_FRAMES} frames in a row that move nothing")

    def _count_owed(self) -> None:
        self._owed += 1
        if self._owed > MAX_OWED:
            raise self._failed(Code.ENHANCE_YOUR_CALM, f"more than {MAX_OWED} answers due at once")

    def _take_data(self, stream: Stream, flags: int, frame: Bytes) -> None:
        """Take a part of a body (section 6.1)."""
        size = len(frame) - 9
        # The connection's window is for what is under way: it opens again on receipt. The stream's is for what
        # waits here: it opens when the owner takes it, so that one who does not holds up nobody else.
        self._window -= size
        self._received += size
        stream._window -= size
        if self._window < 0 or stream._window < 0:
            raise self._failed(Code.FLOW_CONTROL_ERROR, f"more data on stream {stream.id} than a window lets through")
        if self._received >= self._step:
            self._widen(0, self._received)
            self._window += self._received
            self._received = 0
        if stream.ended:
            self._leave(stream, Code.STREAM_CLOSED)  # section 5.1; the response is whole
            return
        if stream.head is None:
            self._refuse(stream, "a body before the head")  # section 8.1
            return
        start, stop = 9, len(frame)
        if flags & PADDED:
            start, stop = 10, stop - (frame[9] if size else 0)
            if start > stop:
                raise self._failed(Code.PROTOCOL_ERROR, "more padding than data")
        flaw = stream._take_data(bytes(frame[start:stop]))
        if start < stop:
            self._idle_frames = 0
            self._woken[stream] = None
        else:
            self._count_idle()
        if flaw is not None:
            self._refuse(stream, flaw, ends=bool(flags & END_STREAM))
            return
        if stop - start < size:
            stream._give_back(size - (stop - start))
        if flags & END_STREAM:
            self._take_end(stream)

    def _sift_settings(self, frame: Bytes) -> Bytes:
        """Leave out unknown settings: h2 would keep all 65,536 of them. Refuse pushes: only h2 4.4 does."""
        self._count_owed()
        if len(frame) == 9 or len(frame) % 6 != 3:
            return frame
        settings = settings_of(frame)
        if any(setting[1] == 2 and any(setting[2:]) for setting in settings):
            raise self._failed(Code.PROTOCOL_ERROR, "a server that allows pushes to itself")  # section 6.5.2
        return with_settings(frame, settings)

    def _take_late_data(self, number: int, size: int) -> None:
        if number not in self._left:
            raise self._failed(Code.STREAM_CLOSED, f"data on stream {number}, which has ended")  # section 5.1
        self._left[number] -= size
        if self._left[number] < 0:
            raise self._failed(Code.FLOW_CONTROL_ERROR, f"more data on stream {number} than its window lets through")
        if not size:
            self._count_idle()
            return
        self._control += window_update(0, size)

    def _take_headers(self, kind: int, flags: int, number: int, frame: Bytes) -> None:
        """Take a part of a header block; with the last part, what it says (sections 6.2, 6.10 and 8.1)."""
        if kind == HEADERS:
            self._expect_stream(number)
        try:
            data = self._blocks.add(kind, flags, number, frame)
            if data is None:
                return
            block = self._reading.block(data)
        except Exception as error:  # what our rules and hpack raise, and what escapes hpack on odd input
            raise self._failed(code_of(error), f"a bad header block ({error})") from error
        stream = self._live.get(number)
        if stream is None:
            if number not in self._left:
                raise self._failed(Code.STREAM_CLOSED, f"a header block on stream {number}, which has ended")
            self._count_idle()
            return
        self._idle_frames = 0
        self._woken[stream] = None
        if stream.ended:
            self._leave(stream, Code.STREAM_CLOSED)
            return
        ends = self._blocks.ends
        flaw = stream._take_head(block, ends) if stream.head is None else stream._take_trailer(block, ends)
        if flaw is not None:
            self._refuse(stream, flaw, ends=ends)
            return
        self.answered = True
        if ends:
            self._take_end(stream)

    def _take_ping(self, flags: int, number: int, frame: Bytes) -> None:
        """Answer a PING, or take an answer (section 6.7)."""
        if number or len(frame) != 17:
            raise self._failed(
                Code.PROTOCOL_ERROR if number else Code.FRAME_SIZE_ERROR, "a PING for a stream, or not of 8 bytes"
            )
        self._count_idle()
        if flags & ACK:
            token = int.from_bytes(frame[9:], "big")
            if self._pings - self.unanswered < token <= self._pings:
                self.unanswered = self._pings - token
                self._idle_frames = 0
        else:
            self._count_owed()
            self._control += ping(ACK, frame[9:])

    def _take_goaway(self, number: int, frame: Bytes) -> None:
        """End the streams that the peer did not look at; the others go on (section 6.8)."""
        if number or len(frame) < 17:
            raise self._failed(
                Code.PROTOCOL_ERROR if number else Code.FRAME_SIZE_ERROR, "a GOAWAY for a stream, or too short"
            )
        last, code = two_numbers.unpack_from(frame, 9)
        last &= LAST_ID
        self._count_idle()
        self.closing = self.told_last = True
        for stream in [stream for stream in self._live.values() if stream.id > last]:
            stream._fail(Unprocessed(f"the peer goes away ({code_name(code)}) and did not look at it"), True)
            self._forget(stream)
            self._woken[stream] = None

    def _take_end(self, stream: Stream) -> None:
        """Take the end of a response; where our side has ended too, both know that the stream is closed."""
        flaw = stream._take_end()
        self._woken[stream] = None
        if flaw is not None:
            self._refuse(stream, flaw, ends=True)
        elif stream.sent:
            self._forget(stream)

    def _take_window(self, number: int, frame: Bytes) -> None:
        """Take room for what we send (section 6.9). h2 counts it, for streams that send a body."""
        if number:
            self._expect_stream(number)
            stream = self._live.get(number)
            if len(frame) != 13:
                raise self._failed(Code.FRAME_SIZE_ERROR, f"a window update of {len(frame) - 9} bytes")
            if stream is None:
                return  # it crossed our reset or the end (section 5.1)
            (size,) = one_number.unpack_from(frame, 9)
            size &= LAST_ID
            if not size:
                self._refuse(stream, "a window that opens by 0")
            elif size > LAST_ID - self._h2.remote_settings.initial_window_size:
                self._refuse(stream, "a window beyond 2**31 - 1", Code.FLOW_CONTROL_ERROR)
            if number not in self._h2.streams:
                return
        self._pass_on(frame)

    def _take_reset(self, number: int, frame: Bytes) -> None:
        self._expect_stream(number)
        if len(frame) != 13:
            raise self._failed(Code.FRAME_SIZE_ERROR, f"a reset of {len(frame) - 9} bytes")
        stream = self._live.get(number)
        if stream is None:
            return  # it crossed our reset or the end (section 5.1)
        (code,) = one_number.unpack_from(frame, 9)
        self._woken[stream] = None
        if not stream.ended:  # else the peer only does not want the rest of the request (section 8.1)
            stream._fail(StreamReset(f"stream {number}", code), code == Code.REFUSED_STREAM)  # section 8.7
        self._forget(stream)

    def _pass_on(self, frame: Bytes) -> None:
        """Give h2 one frame, and do what it tells."""
        try:
            events = self._h2.receive_data(frame)
        except Exception as error:  # what h2 and hyperframe raise, and what escapes them on odd input
            raise self._failed(code_of(error), f"a broken rule ({error})") from error
        self._drain()
        for event in events:
            if isinstance(event, WindowUpdated):
                self._wake_blocked()
            elif isinstance(event, ResetReceived):  # of h2's own (section 6.9.1)
                self._refuse(self._live[event.stream_id], "a window beyond 2**31 - 1", Code.FLOW_CONTROL_ERROR)
            elif isinstance(event, RemoteSettingsChanged):
                self._take_settings(event)

    def _take_settings(self, event: RemoteSettingsChanged) -> None:
        self.limit = min(self._h2.remote_settings.max_concurrent_streams, self._max_streams)
        self._allowed = self._h2.remote_settings.max_header_list_size or inf
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            self._wake_blocked()

    def _refuse(self, stream: Stream, flaw: str, code: Code = Code.PROTOCOL_ERROR, *, ends: bool = False) -> None:
        """End one stream for a response that breaks a rule (section 8.1.1); *ends*: in the peer's last frame on it."""
        if not stream.ended:
            stream._fail(stream._malformed(flaw), False)
        if ends and stream.sent:
            self._forget(stream)  # it is closed: nothing may be sent on it (section 5.1)
        else:
            self._leave(stream, code)
        self._woken[stream] = None

    def _room(self, stream: Stream) -> int:
        return max(0, min(self._h2.local_flow_control_window(stream.id), MAX_QUEUED - self._queued))

    def _wake_blocked(self) -> None:
        self._woken.update(self._blocked)

    # Below: the ways to end.

    def _forget(self, stream: Stream) -> None:
        """Close a stream: its seat is free. The one place for every way out."""
        stream.closed = True
        del self._live[stream.id]
        self._h2.streams.pop(stream.id, None)
        self._blocked.pop(stream, None)

    def _failed(self, code: Code, what: str) -> ConnectionFailed:
        """End everything because a rule was broken (section 5.4.1), and return the error to be raised."""
        error = ConnectionFailed(what, _WHERE, code)
        self._end(error)
        self._control += goaway(code)
        return error

    def _end(self, error: ConnectionFailed) -> None:
        self.error = error
        self.closing = True
        self._control.clear()
        self._h2.clear_outbound_data_buffer()
        for stream in list(self._live.values()):
            if not stream.ended:
                stream._fail(ConnectionFailed(error.what, error.where, error.code), False)
            self._forget(stream)
            self._woken[stream] = None


_SHOWN = [(b":method", b"GET")]  # h2 looks for a HEAD only, to know about a length that it does not see
