"""A server's end of an HTTP/2 connection: h2 in server mode, or bytes made by hand where h2 would not send them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from hpack import Decoder, Encoder

from fewports.http2 import Connection, Stream

GET = ((":method", "GET"), (":scheme", "https"), (":authority", "example.org"), (":path", "/"))
POST = ((":method", "POST"), *GET[1:])
OK = ((":status", "200"),)
SETTINGS, PING, GOAWAY, WINDOW_UPDATE, RST_STREAM = 4, 6, 7, 8, 3
DATA, HEADERS, PRIORITY, PUSH, CONTINUATION = 0, 1, 2, 5, 9
END_STREAM, END_HEADERS, PADDED = 1, 4, 8


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    """Make a SETTINGS frame: table, push, streams, window, size, fields."""
    numbers = {"table": 1, "push": 2, "streams": 3, "window": 4, "size": 5, "fields": 6}
    pairs = (numbers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def goaway(last: int, code: int = 0) -> bytes:
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


def window(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def rst(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def block(fields: Iterable[tuple[str | bytes, str | bytes]] = OK) -> bytes:
    """Encode fields without touching the dynamic table."""
    return Encoder().encode([(name, value, True) for name, value in fields])


def head(stream: int, *fields: tuple[str | bytes, str | bytes], end: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(fields or OK))


def data(stream: int, payload: bytes = b"", end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def frames(sent: bytes) -> list[tuple[int, int, int, bytes]]:
    """Take apart what the client sent, without the preface: (type, flags, stream, payload)."""
    sent = sent.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    found = []
    while sent:
        size = int.from_bytes(sent[:3], "big")
        found.append((sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9 : 9 + size]))
        sent = sent[9 + size :]
    return found


def kinds(sent: bytes) -> list[int]:
    return [kind for kind, *_ in frames(sent)]


def greeted(**values: int) -> Connection:
    """Make a connection whose peer sent its SETTINGS, with nothing left to be sent."""
    connection = Connection()
    connection.receive(settings(**values))
    connection.pending()
    return connection


def opened(connection: Connection, fields: Iterable[tuple[str, str]] = GET, *, end: bool = True) -> Stream:
    seat = connection.reserve()
    assert seat is not None
    return seat.open(fields, end=end)


def requests(sent: Sequence[bytes]) -> list[list[tuple[bytes, bytes]]]:
    """Decode the header blocks of what the client sent, with one decoder as a server would."""
    decoder = Decoder()
    return [
        [(bytes(name), bytes(value)) for name, value in decoder.decode(payload, raw=True)]
        for piece in sent
        for kind, _, _, payload in frames(piece)
        if kind == HEADERS
    ]


class Peer:
    """h2 in server mode, which speaks with a connection of ours over two buffers."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self.h2.initiate_connection()
        self.events: list[Event] = []

    def turn(self) -> list[Event]:
        """Move what both have to say, until neither has anything; return what happened at the server."""
        happened = []
        while True:
            to_server, to_client = self.connection.pending(), self.h2.data_to_send()
            if not to_server and not to_client:
                return happened
            happened += self.h2.receive_data(to_server)
            self.connection.receive(to_client)
