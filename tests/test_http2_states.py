"""Two engines that talk: ours and h2 in server mode, over any split of the bytes; and ours against any damage.

What a model of each stream says must come true: bodies whole and in order, no seat lost, windows within the RFC,
memory within the windows. FEWPORTS_EXAMPLES=20000 runs so many cases in all, others each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, SettingsAcknowledged, StreamEnded
from h2.events import StreamReset as ResetReceived
from h2.settings import SettingCodes
from hpack import Decoder, Encoder
from http2_peer import GET, POST, data, frame, goaway, head, opened, rst, settings, window
from hypothesis import HealthCheck, given
from hypothesis import settings as profile_of
from hypothesis import strategies as st

from fewports.http2 import Code, Connection, ConnectionFailed, ProtocolError, Stream, StreamReset, Unprocessed
from fewports.http2.connection import MAX_QUEUED
from fewports.http2.hpack import Reading

T = TypeVar("T")
EXAMPLES = int(os.environ.get("FEWPORTS_EXAMPLES", "0"))
WINDOW, STREAM_WINDOW = 80_000, 20_000


def cases(share: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run that percentage of FEWPORTS_EXAMPLES; without it, of 400, which are the same each time."""
    profile = profile_of(
        max_examples=(EXAMPLES or 400) * share // 100,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def run(test: Callable[..., None]) -> Callable[..., None]:
        return pytest.mark.timeout(7200 if EXAMPLES else 60)(profile(test))

    return run


@pytest.fixture(autouse=True, scope="module")
def _ledgers_tell_the_truth() -> None:
    """Leave out what is done after other tests: no ledger is touched here, and the look at them takes 40 ms."""


def content(number: int, start: int, stop: int) -> bytes:
    """Return a part of the body of a stream: others have other bytes at each place."""
    return bytes((number * 31 + at * 7 + at // 251) % 256 for at in range(start, stop))


class Talk:
    """Both ends, what is under way between them, and what ought to have happened to each stream."""

    def __init__(self) -> None:
        self.ours = Connection(window=WINDOW, stream_window=STREAM_WINDOW)
        self.theirs = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self.theirs.initiate_connection()
        self.up, self.down = bytearray(), bytearray()
        self.streams: dict[int, Stream] = {}
        self.got: dict[int, bytes] = {}  # by us
        self.answered: dict[int, int] = {}  # by the server: bytes sent
        self.uploaded: dict[int, int] = {}  # by us: bytes accepted
        self.received: dict[int, bytes] = {}  # by the server
        self.over: set[int] = set()  # at the server: it sent the end, or the stream was reset
        self.left: set[int] = set()  # streams that we reset
        self.reset: set[int] = set()  # streams that the server reset
        self.unconfirmed = 1  # h2 takes an answer to SETTINGS for one to all of them

    # What may happen. Each takes a number, which picks one of what there is.

    def open(self, pick: int) -> None:
        upload = pick % 3 == 0
        seat = self.ours.reserve()
        if seat is None:
            assert len(self.ours._live) >= self.ours.limit
            return
        stream = seat.open([*(POST if upload else GET), ("n", str(pick % 5))], end=not upload)
        self.streams[stream.id], self.got[stream.id] = stream, b""
        self.uploaded[stream.id] = 0

    def upload(self, pick: int) -> None:
        stream = self.some([stream for stream in self.streams.values() if not stream.sent and not stream.closed], pick)
        if stream:
            size, done = pick * 37 % 40_000, self.uploaded[stream.id]
            end = pick % 4 == 0
            self.uploaded[stream.id] += stream.send(content(stream.id, done, done + size), end=end)

    def take(self, pick: int) -> None:
        stream = self.some(list(self.streams.values()), pick)
        if stream and stream.id not in self.left and not stream.error:
            self.got[stream.id] += stream.take(pick * 11 % 9000)

    def leave(self, pick: int) -> None:
        stream = self.some([stream for stream in self.streams.values() if not stream.closed], pick)
        if stream:
            stream.reset()
            self.left.add(stream.id)

    def carry_up(self, pick: int) -> None:
        self.up += self.ours.pending()
        size = len(self.up) if pick % 2 else pick * 13 % 30_000
        for event in self.theirs.receive_data(bytes(self.up[:size])):
            if isinstance(event, RequestReceived):
                self.received[event.stream_id] = b""
            elif isinstance(event, DataReceived):
                self.received[event.stream_id] += event.data
                self.theirs.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, SettingsAcknowledged):
                self.unconfirmed -= 1
            elif isinstance(event, ResetReceived):
                self.over.add(event.stream_id)
            elif isinstance(event, StreamEnded):
                assert len(self.received[event.stream_id]) == self.uploaded[event.stream_id]
        del self.up[:size]

    def carry_down(self, pick: int) -> None:
        self.down += self.theirs.data_to_send()
        size = len(self.down) if pick % 2 else pick % 50
        self.ours.receive(bytes(self.down[:size]))
        del self.down[:size]
        self.ours.woken()

    def answer(self, pick: int) -> None:
        number = self.some([number for number in self.received if number not in self.answered], pick)
        if number and number not in self.over:
            if pick % 3 == 0:
                self.theirs.send_headers(number, [(":status", "103"), ("link", "x")])
            self.theirs.send_headers(number, [(":status", "200"), ("n", str(pick % 3)), ("date", str(pick % 7))])
            self.answered[number] = 0

    def body(self, pick: int) -> None:
        number = self.some([number for number in self.answered if number not in self.over], pick)
        if number:
            allowed = self.theirs.local_flow_control_window(number)
            size = min(allowed, pick * 29 % 16_000, 16_384)
            done = self.answered[number]
            padding = pick % 100 if pick % 5 == 0 and size + 101 <= min(allowed, 16_384) else None
            self.answered[number] += size
            self.theirs.send_data(number, content(number, done, done + size), pad_length=padding)

    def end(self, pick: int) -> None:
        number = self.some([number for number in self.answered if number not in self.over], pick)
        if number:
            if pick % 2:
                self.theirs.end_stream(number)
            else:
                self.theirs.send_headers(number, [("check", "sum")], end_stream=True)
            self.over.add(number)

    def refuse(self, pick: int) -> None:
        number = self.some([number for number in self.received if number not in self.over], pick)
        if number:
            self.theirs.reset_stream(number, Code.REFUSED_STREAM if pick % 2 else Code.INTERNAL_ERROR)
            self.over.add(number)
            self.reset.add(number)

    def set(self, pick: int) -> None:
        if self.unconfirmed:
            return
        self.unconfirmed += 1
        code, value = [
            (SettingCodes.MAX_CONCURRENT_STREAMS, pick % 20),
            (SettingCodes.INITIAL_WINDOW_SIZE, pick * 17 % 70_000),
            (SettingCodes.HEADER_TABLE_SIZE, pick % 5000),
        ][pick % 3]  # no MAX_FRAME_SIZE: h2 heeds its own only from the next receive_data() on
        self.theirs.update_settings({code: value})

    def ping(self, pick: int) -> None:
        if pick % 2:
            self.ours.ping()
        else:
            self.theirs.ping(pick.to_bytes(8, "big"))

    @staticmethod
    def some(things: list[T], pick: int) -> T | None:
        return things[pick % len(things)] if things else None

    # What must hold.

    def check(self) -> None:
        ours = self.ours
        assert ours.error is None
        assert ours.active == sum(not stream.closed for stream in self.streams.values())
        assert set(ours._h2.streams) <= set(ours._live)
        assert set(ours._blocked) <= set(ours._live.values())
        assert ours._h2.outbound_flow_control_window >= 0
        assert 0 <= ours._window <= WINDOW
        assert ours._queued <= MAX_QUEUED
        for number, stream in self.streams.items():
            assert 0 <= stream.buffered <= STREAM_WINDOW - stream._window <= STREAM_WINDOW
            assert sum(map(len, stream._body)) - stream._offset == stream.buffered
            if number not in self.left:
                assert content(number, 0, len(self.got[number])) == self.got[number]

    def finish(self) -> None:
        """Let everything come to its end: no stream may hang, and each got what was sent to it."""
        for stream in self.streams.values():
            if not stream.closed and not stream.sent:
                stream.reset()
                self.left.add(stream.id)
        for _ in range(3):
            self.carry_up(1)
            self.carry_down(1)
        for number in list(self.received):
            self.answer(list(self.received).index(number))
        for number in self.received:
            if number not in self.answered and number not in self.over:
                self.theirs.send_headers(number, [(":status", "200")])
                self.answered[number] = 0
            if number not in self.over:
                self.theirs.end_stream(number)
                self.over.add(number)
        for _ in range(3):
            self.carry_down(1)
            self.carry_up(1)
        self.check()
        for number, stream in self.streams.items():
            assert stream.closed
            if number in self.left:
                continue
            if stream.error:
                assert number in self.reset
                assert isinstance(stream.error, StreamReset)
                assert stream.repeatable == (stream.error.code == Code.REFUSED_STREAM)
                continue
            self.got[number] += b"".join(iter(stream.take, b""))
            assert stream.ended
            assert stream.head is not None
            assert stream.head.status == 200
            assert self.got[number] == content(number, 0, self.answered[number])
        assert self.ours.active == 0
        assert self.ours.unanswered == 0


STEPS = ["open", "upload", "take", "leave", "answer", "body", "end", "refuse", "set", "ping", "carry_up", "carry_down"]
WEIGHTED = [*STEPS, "open", "open", "body", "body", "carry_up", "carry_down", "carry_down", "answer", "take"]


@cases(60)
@given(st.lists(st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 5000)), min_size=10, max_size=120))
def test_two_engines(steps: list[tuple[str, int]]) -> None:
    """Whatever both do, in whatever order and pieces: each stream comes to its end with its own bytes."""
    talk = Talk()
    for name, pick in steps:
        getattr(talk, name)(pick)
        talk.check()
    talk.finish()


# Header blocks.

NAMES = ["server", "date", "etag", "x", "content-type", "set-cookie", "long-name" * 4]
VALUES = ["", "a", "b", "x" * 40, "nginx/1.22.1", "y" * 300, "\xe9z" * 5, "w" * 5000]
some_fields = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES), st.booleans()), max_size=6)


@cases(40)
@given(
    st.lists(
        st.tuples(some_fields, st.booleans(), st.sampled_from([None, None, None, None, 0, 70, 500, 4096])),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(0, 11), min_size=5, max_size=60),
)
def test_memory_of_blocks(made: list[tuple[list[tuple[str, str, bool]], bool, int | None]], order: list[int]) -> None:
    """A decoder that remembers says the same as one that does not, and their tables hold the same."""
    encoder, plain, ours = Encoder(), Decoder(), Reading()
    for pick in order:
        fields, huffman, size = made[pick % len(made)]
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode([(":status", "200", False), *fields], huffman=huffman)
        expected = list(plain.decode(block, raw=True))
        decoded = ours.block(block)

        assert decoded.fields == tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in expected[1:]
        )
        ours.header_table.settle()
        assert ours.header_table.dynamic_entries == plain.header_table.dynamic_entries


# Damage.


def conversation() -> bytes:
    """What a peer may send to three requests: everything that there is."""
    return (
        settings(streams=50, window=70_000)
        + frame(4, 1)
        + head(1, (":status", "103"), ("link", "x"))
        + head(1, (":status", "200"), ("content-length", "60"), ("server", "s"))
        + window(0, 1000)
        + data(1, b"\x01" * 40)
        + head(3, (":status", "200"), ("n", "3"))
        + frame(0, 8, 3, b"\x04" + b"\x03" * 90 + bytes(4))
        + frame(6, 0, 0, b"12345678")
        + data(1, b"\x01" * 20, end=True)
        + window(3, 10)
        + frame(1, 0, 5, b"\x88\x40\x01a\x01b")
        + frame(9, 4, 5, b"\xbe\x00\x01c\x01d")
        + data(5, b"\x05" * 30)
        + rst(5, 8)
        + frame(1, 5, 3, b"\x40\x05check\x01x")
        + frame(0xC, 0, 0, b"unknown")
        + settings(streams=1, size=20_000)
        + goaway(7)
        + head(7)
        + data(7, b"\x07" * 50, end=True)
    )


def feed(pieces: list[bytes]) -> tuple[Connection, list[Stream], list[bytes], ProtocolError | None]:
    connection = Connection()
    streams = [opened(connection, POST if number == 2 else GET, end=number != 2) for number in range(4)]
    connection.pending()
    bodies = [b""] * 4
    error: ProtocolError | None = None
    for piece in pieces:
        try:
            connection.receive(piece)
        except ConnectionFailed as failed:
            error = failed
            break
    for index, stream in enumerate(streams):
        try:
            while part := stream.take():
                bodies[index] += part
        except ProtocolError as broken:
            assert broken is stream.error  # noqa: PT017
    return connection, streams, bodies, error


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    connection, streams, bodies, error = feed(pieces)
    told = [(s.head, s.trailer, s.interim, s.ended, s.closed, s.repeatable, str(s.error)) for s in streams]
    return told, bodies, str(error), connection.closing, connection.room, connection.active


@cases(15)
@given(st.lists(st.integers(0, 2000), max_size=30))
def test_any_split(cuts: list[int]) -> None:
    """How the bytes are cut makes no difference."""
    whole = conversation()
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    pieces = [whole[start:stop] for start, stop in pairwise(places)]

    assert outcome(pieces) == outcome([whole])


def test_the_conversation() -> None:
    """Undamaged, it is understood, so that the damage below begins with something that works."""
    connection, streams, bodies, error = feed([conversation()])

    assert error is None
    assert bodies == [b"\x01" * 60, b"\x03" * 90, b"\x05" * 30, b"\x07" * 50]
    assert [stream.ended for stream in streams] == [True, True, False, True]
    assert streams[1].trailer == (("check", "x"),)
    assert connection.finished


edits = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "double"]), st.integers(0, 2000), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@cases(200)
@given(edits, st.booleans())
def test_any_damage(changes: list[tuple[str, int, int]], bytewise: bool) -> None:
    """Damaged bytes end in errors of ours or in nothing; no stream gets a byte of another's, and no seat is lost."""
    sent = bytearray(conversation())
    for how, place, value in changes:
        at = place % max(1, len(sent))
        if how == "set":
            sent[at : at + 1] = bytes([value])
        elif how == "cut":
            del sent[at : at + value % 20]
        elif how == "insert":
            sent[at:at] = bytes([value]) * (value % 9)
        else:
            sent[at:at] = sent[at : at + value]
    pieces = [bytes(sent[at : at + 1]) for at in range(len(sent))] if bytewise else [bytes(sent)]
    connection, streams, bodies, error = feed(pieces)
    connection.eof()

    assert connection.active == 0
    assert all(stream.closed for stream in streams)
    assert all(stream.ended or stream.error for stream in streams)
    assert all(not stream.repeatable or isinstance(stream.error, (StreamReset, Unprocessed)) for stream in streams)
    if error is not None:
        assert connection.pending()[3] == 7  # the peer is told: GOAWAY
    if all(how == "set" for how, *_ in changes) and error is None:
        for stream, body in zip(streams, bodies, strict=True):
            strange = [byte for byte in body if byte != stream.id]
            assert len(strange) <= 200


@cases(60)
@given(st.binary(max_size=400), st.integers(0, 9), st.integers(0, 255))
def test_any_frame(payload: bytes, kind: int, flags: int) -> None:
    """Whatever a frame holds: it is understood, or refused with an error of ours."""
    for stream in (0, 1, 3, 5):
        connection, streams, _, error = feed([settings(), head(1), frame(kind, flags, stream, payload)])

        assert error is None or isinstance(error, ConnectionFailed)
        assert connection.active == sum(not stream.closed for stream in streams)
