"""The HTTP/2 servers that the other tests stand on, asked by a client that is not ours: h2."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from http2_peer import GOAWAY, goaway
from support.http_server import HELLO
from support.programs import BIG, Nghttpd, Nginx
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import H2Server, HttpProxy, HttpServer, Listening


class Told(NamedTuple):
    """What came of one request; *status* 0 and a code if the stream was reset."""

    status: int
    body: bytes
    trailer: dict[str, str]
    interim: int
    code: int


class Asker:
    """A connection by the h2 library."""

    def __init__(self, server: Listening | ScriptedH2, proxy: HttpProxy | None = None) -> None:
        where = ("127.0.0.1", server.port)
        self.sock = socket.create_connection(proxy.addresses[0] if proxy else where, timeout=5)
        if proxy:
            self.sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % server.port)
            assert self.sock.recv(1000).startswith(b"HTTP/1.1 200")
        if server.ca_path:
            context = ssl.create_default_context(cafile=server.ca_path)
            context.set_alpn_protocols(["h2", "http/1.1"])
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
            assert self.sock.selected_alpn_protocol() == "h2"
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.streams = 0
        self.ended = False
        self.data = b""

    def ask(self, method: str, path: str, body: bytes = b"", **fields: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", "127.0.0.1"), (":path", path)]
        given = [(name.replace("_", "-"), value) for name, value in fields.items()]
        self.h2.send_headers(stream, [*head, *given], end_stream=not body)
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        self.sock.sendall(self.h2.data_to_send())
        return stream

    def tell(self, *streams: int) -> list[Told]:
        """Read until all of *streams* have ended."""
        told = {stream: Told(0, b"", {}, 0, 0) for stream in streams}
        bodies = {stream: bytearray() for stream in streams}
        left = set(streams)
        while left and (received := self.sock.recv(65536)):
            for event in self.h2.receive_data(self._without_goodbye(received)):
                if isinstance(event, RemoteSettingsChanged):
                    setting = event.changed_settings.get(SettingCodes.MAX_CONCURRENT_STREAMS)
                    self.streams = setting.new_value if setting else self.streams
                number = getattr(event, "stream_id", 0)
                if number not in told:
                    continue
                old = told[number]
                if isinstance(event, InformationalResponseReceived):
                    told[number] = old._replace(interim=old.interim + 1)
                elif isinstance(event, ResponseReceived):
                    told[number] = old._replace(status=int(dict(event.headers)[":status"]))
                elif isinstance(event, DataReceived):
                    bodies[number] += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, number)
                elif isinstance(event, TrailersReceived):
                    told[number] = old._replace(trailer=dict(event.headers))
                elif isinstance(event, StreamReset):
                    told[number] = old._replace(code=int(event.error_code))
                    left.discard(number)
                elif isinstance(event, StreamEnded):
                    left.discard(number)
            self.sock.sendall(self.h2.data_to_send())
        return [found._replace(body=bytes(bodies[stream])) for stream, found in told.items()]

    def _without_goodbye(self, received: bytes) -> bytes:
        """Keep GOAWAY from h2, which would refuse every frame after it."""
        self.data += received
        passed = b""
        while len(self.data) >= 9 and len(self.data) >= (size := 9 + int.from_bytes(self.data[:3], "big")):
            if self.data[3] == GOAWAY:
                self.ended = True
            else:
                passed += self.data[:size]
            self.data = self.data[size:]
        return passed

    def one(self, method: str, path: str, body: bytes = b"", **fields: str) -> Told:
        return self.tell(self.ask(method, path, body, **fields))[0]


@contextlib.contextmanager
def asking(server: Listening | ScriptedH2, proxy: HttpProxy | None = None) -> Iterator[Asker]:
    asker = Asker(server, proxy)
    with asker.sock:
        yield asker


@pytest.fixture(scope="module")
def app() -> Iterator[HttpServer]:
    with HttpServer() as running:
        yield running


@pytest.fixture(params=["nginx", "nghttpd", "h2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["tls", "plain"])
def server(request: pytest.FixtureRequest, name: str, app: HttpServer) -> Iterator[Listening]:
    tls: bool = request.param
    kinds = {
        "nginx": lambda: Nginx(tls=tls, http2=True, streams=7, app=app.url),
        "nghttpd": lambda: Nghttpd(tls=tls, streams=7),
        "h2": lambda: H2Server(tls=tls, streams=7),
    }
    with kinds[name]() as running:
        yield running


def test_all_servers_answer_the_same(server: Listening) -> None:
    """Each speaks h2, says how many streams it allows, answers GET and HEAD, sends uploads back, knows what is not."""
    with asking(server) as asker:
        assert asker.one("GET", "/hello") == Told(200, HELLO, {}, 0, 0)
        assert asker.streams == 7
        assert asker.one("HEAD", "/hello")[:2] == (200, b"")
        assert asker.one("POST", "/echo", b"x" * 10_000)[:2] == (200, b"x" * 10_000)
        assert asker.one("GET", "/missing").status == 404
        assert [told.body for told in asker.tell(*(asker.ask("GET", "/hello") for _ in range(7)))] == [HELLO] * 7


@pytest.mark.parametrize("name", ["nginx", "h2"])
def test_what_the_application_does(server: Listening) -> None:
    """The paths of the HTTP/1.1 server are there over HTTP/2, too, behind nginx and at the server on h2."""
    with asking(server) as asker:
        assert asker.one("GET", "/redirect?to=/hello").status == 302
        assert asker.one("GET", "/status?code=503").status == 503
        assert len(asker.one("GET", "/bytes?n=300000").body) == 300_000
        assert len(asker.one("GET", "/chunked?n=30000").body) == 30_000


def test_nginx_sends_a_large_file_and_counts_connections() -> None:
    """/big has a hundred million bytes; accepted() counts the connections of others than its own asking."""
    with Nginx(tls=True, http2=True) as server:
        with asking(server) as asker:
            assert len(asker.one("GET", "/big").body) == BIG
        with asking(server), asking(server) as asker:
            asker.one("GET", "/")
            assert server.accepted() == 3


def test_nginx_ends_a_connection_after_so_many_requests() -> None:
    """keepalive_requests of nginx counts for HTTP/2: a GOAWAY comes with the last one."""
    with Nginx(http2=True, requests=3) as server, asking(server) as asker:
        assert [asker.one("GET", "/").status for _ in range(3)] == [200] * 3
        assert asker.ended or asker.sock.recv(100)


def test_nghttpd_sends_a_trailer() -> None:
    """The trailer that it is told follows the body."""
    with Nghttpd(trailer="x-checksum: abc") as server, asking(server) as asker:
        assert asker.one("GET", "/hello").trailer == {"x-checksum": "abc"}


def test_what_the_server_on_h2_counts() -> None:
    """Requests by their x-id, how many ran at once, who came, and what clients reset."""
    with H2Server(streams=50) as server, asking(server) as asker:
        streams = [asker.ask("GET", "/slow?s=0.1", x_id=str(number % 10)) for number in range(20)]
        assert {told.status for told in asker.tell(*streams)} == {200}
        gone = asker.ask("GET", "/slow?s=5")
        asker.h2.reset_stream(gone, 8)
        asker.sock.sendall(asker.h2.data_to_send())
        assert asker.one("GET", "/hello").status == 200

        stats = server.stats()
        assert stats["processed"] == {str(number): 2 for number in range(10)}
        assert stats["most_running"] == stats["most_streams"] == 20
        assert stats["clients"] == [asker.sock.getsockname()[1]]
        assert (stats["resets"], stats["running"], stats["flaws"]) == ([8], 0, [])


def test_what_only_the_server_on_h2_does() -> None:
    """Trailers, 1xx, slow bytes, resets, early answers, and the end of a connection announced in mid-flight."""
    with H2Server() as server, asking(server) as asker:
        assert asker.one("GET", "/trailer")[:3] == (200, b"with a trailer", {"x-checksum": "abc"})
        assert asker.one("GET", "/interim?n=3").interim == 3
        assert asker.one("POST", "/echo", b"x", expect="100-continue")[:4] == (200, b"x", {}, 1)
        assert asker.one("GET", "/drip?n=3&s=0.01").body == b"xxx"
        assert asker.one("GET", "/half")[1::3] == (bytes(50), 2)
        assert [asker.one("GET", "/reset?code=7&times=1", x_id="a").code for _ in range(2)] == [7, 0]
        assert asker.one("POST", "/early", b"x" * 1000)[:2] == (413, b"too much")
        asked = asker.ask("GET", "/slow?s=0.1", x_id="before"), asker.ask("GET", "/goaway?s=0.05")
        assert [told.status for told in asker.tell(*asked)] == [200, 200]

        assert asker.ended
        assert server.stats()["flaws"] == []


def test_the_server_on_h2_ends_a_connection_after_so_many_requests() -> None:
    """With *requests* the last one is answered and the connection ends."""
    with H2Server(requests=2) as server, asking(server) as asker:
        assert [asker.one("GET", "/hello").status for _ in range(2)] == [200] * 2
        assert asker.ended or asker.sock.recv(100)


def test_http2_goes_through_a_connect_proxy(server: Listening) -> None:
    """The proxies of the tests pass HTTP/2 on, with TLS and without."""
    with HttpProxy() as proxy, asking(server, proxy) as asker:
        assert asker.one("POST", "/echo", b"x" * 10_000).body == b"x" * 10_000
        assert proxy.stats()["tunnels"] == [f"127.0.0.1:{server.port}"]


@pytest.mark.parametrize("tls", [True, False])
def test_a_scripted_peer(tls: bool) -> None:
    """A script sees each frame of the client and says when what is sent."""
    noted: list[object] = []

    def script(peer: H2Peer) -> None:
        peer.greet(streams=3)
        asked = peer.request()
        noted.append((asked.path, asked.whole, peer.body(asked.stream)))
        peer.answer(asked.stream, b"y" * 20_000)
        peer.send(goaway(asked.stream))
        noted.append(peer.end())

    with ScriptedH2(script, tls=tls) as server, asking(server) as asker:
        assert asker.one("POST", "/there", b"x" * 100).body == b"y" * 20_000
        assert asker.streams == 3

    assert noted == [("/there", False, b"x" * 100), None]
