"""TLS within TLS for a shared connection, without sockets: what the proxy's connection takes or gives is the test's."""

from __future__ import annotations

import contextlib
import random
import ssl

import pytest
from support.servers import authority
from urllib3.util.ssltransport import SSLTransport

from fewports.sync.nested import Nested, unblocked


class Narrow:
    """The proxy's connection: takes some bytes or has no room, gives some bytes or has none."""

    def __init__(self) -> None:
        self.random = random.Random(5)
        self.sent = bytearray()
        self.coming = bytearray()
        self.ended = False

    def send(self, data: bytes) -> int:
        if self.random.random() < 0.5:
            raise ssl.SSLWantWriteError
        taken = data[: self.random.randrange(1, 3000)]
        self.sent += taken
        return len(taken)

    def recv(self, size: int) -> bytes:
        if not self.coming and self.ended:
            return b""
        if not self.coming or self.random.random() < 0.3:
            raise ssl.SSLWantReadError
        data = bytes(self.coming[: self.random.randrange(1, 3000)])
        del self.coming[: len(data)]
        return data

    def pending(self) -> int:
        return 0


class Far:
    """The origin's end of the inner TLS, and ours after the handshake."""

    def __init__(self) -> None:
        keys = authority("127.0.0.1")
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(keys.chain, keys.key)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = serving.wrap_bio(self.incoming, self.outgoing, server_side=True)
        asking = ssl.create_default_context(cafile=keys.ca_path)
        transport = SSLTransport.__new__(SSLTransport)
        transport.incoming, transport.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        transport.sslobj = asking.wrap_bio(transport.incoming, transport.outgoing, server_hostname="127.0.0.1")
        self.narrow = Narrow()
        transport.socket = self.narrow  # type: ignore[assignment]
        for _ in range(3):
            for end, its_outgoing, others_incoming in (
                (transport.sslobj, transport.outgoing, self.incoming),
                (self.tls, self.outgoing, transport.incoming),
            ):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                others_incoming.write(its_outgoing.read())
        made = unblocked(transport)
        assert isinstance(made, Nested)
        self.near = made

    def heard(self) -> bytes:
        self.incoming.write(bytes(self.narrow.sent))
        self.narrow.sent.clear()
        pieces = []
        try:
            while True:
                pieces.append(self.tls.read(1 << 16))
        except ssl.SSLWantReadError:
            return b"".join(pieces)

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self.narrow.coming += self.outgoing.read()


def test_what_the_proxy_has_no_room_for_is_sent_later() -> None:
    """Bytes given again after a refusal go out once, in order, whatever comes to stand behind them meanwhile."""
    far = Far()
    whole = random.Random(1).randbytes(200_000)
    given, at = 0, 0
    while at < len(whole):
        given = min(len(whole), given + 5000)
        with contextlib.suppress(ssl.SSLWantWriteError):
            at += far.near.send(whole[at:given])

    assert far.heard() == whole


def test_what_came_is_read_to_its_end() -> None:
    """Records that came together, and in pieces, are given out; pending() says so until nothing is left."""
    far = Far()
    whole = random.Random(2).randbytes(100_000)
    for at in range(0, len(whole), 700):
        far.say(whole[at : at + 700])
    got = b""
    while len(got) < len(whole):
        try:
            got += far.near.recv(65536)
        except ssl.SSLWantReadError:
            assert not far.near.pending()
        else:
            assert far.near.pending()

    assert got == whole
    with pytest.raises(ssl.SSLWantReadError):
        far.near.recv(100)


@pytest.mark.parametrize("farewell", [False, True])
def test_the_end_is_no_error(farewell: bool) -> None:
    """With a farewell of the origin's, or when the proxy closes without one, recv() returns nothing more."""
    far = Far()
    far.say(b"last words")
    if farewell:
        with pytest.raises(ssl.SSLWantReadError):
            far.tls.unwrap()
        far.narrow.coming += far.outgoing.read()
    else:
        far.narrow.ended = True
    got = []
    while not got or got[-1]:
        try:
            got.append(far.near.recv(100))
        except ssl.SSLWantReadError:
            continue

    assert b"".join(got) == b"last words"
    assert unblocked(far) is far
