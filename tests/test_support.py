"""The ground the other tests stand on."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faces import fresh_server, until
from support import need
from support.http_server import HELLO
from support.listeners import listen
from support.ns import TW_REUSE, in_namespace, run_in_namespace
from support.programs import Nginx
from support.sampler import KernelSampler, Space, client_rows, held
from support.scripted import Peer
from support.servers import HttpProxy, HttpServer, SocksProxy, authority

# Below: what runs in namespaces, called by name.


def connect(source: str, destination: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(5)
    client.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    client.bind((source, 0))
    try:
        client.connect(destination)
    except OSError:
        client.close()
        raise
    return client


def connects_until_refused() -> tuple[int, int]:
    clients: list[socket.socket] = []
    with HttpServer() as server:
        try:
            while True:
                clients.append(connect("127.0.0.1", server.addresses[0]))
        except OSError as error:
            return len(clients), error.errno or 0
        finally:
            for client in clients:
                client.close()


def asserts(left: int, right: int) -> None:
    assert left == right


def warns() -> None:
    warnings.warn("a warning", stacklevel=1)


def leaves_a_socket() -> None:
    socket.socket()


def fails_in_a_thread() -> None:
    thread = threading.Thread(target=asserts, args=(3, 4))
    thread.start()
    thread.join()


def skips() -> None:
    pytest.skip("no such thing")


def says(value: object) -> object:
    return value


def sleeps() -> None:
    time.sleep(30)


# Below: the tests.


def test_a_namespace_has_fifty_ports() -> None:
    """The 51st connect to one destination fails with EADDRNOTAVAIL."""
    assert run_in_namespace(connects_until_refused) == (50, errno.EADDRNOTAVAIL)


def test_a_namespace_has_as_many_ports_as_asked_for() -> None:
    """Low and high are the range, both ends included."""
    # An even number: without IP_LOCAL_PORT_RANGE one connect looks at as many even ports as odd ones, and of seven at
    # six (__inet_hash_connect(), net/ipv4/inet_hashtables.c), so that 1 of 16 tries found the last one taken.
    assert run_in_namespace(connects_until_refused, low=50000, high=50007) == (8, errno.EADDRNOTAVAIL)


def test_results_and_arguments_travel() -> None:
    """Whatever can be pickled goes in and comes out."""
    value = {"ports": [1, 2], "source": ("::1", 3)}

    assert run_in_namespace(says, value) == value


@pytest.mark.parametrize(
    ("function", "args", "shown"),
    [
        (asserts, (1, 2), ["AssertionError", "assert left == right", "left = 1", "right = 2"]),
        (warns, (), ["UserWarning: a warning"]),
        (leaves_a_socket, (), ["ResourceWarning: unclosed <socket"]),
        (fails_in_a_thread, (), ["AssertionError", "left = 3"]),
    ],
)
def test_a_failure_in_the_namespace_fails_the_test(
    function: Callable[..., None], args: tuple[object, ...], shown: list[str]
) -> None:
    """The inner traceback, with the values, is in the message; warnings and lost exceptions are failures."""
    with pytest.raises(pytest.fail.Exception) as failed:
        run_in_namespace(function, *args)

    for text in shown:
        assert text in str(failed.value)


def test_a_skip_in_the_namespace_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing inside is missing outside."""
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        run_in_namespace(skips)


def test_nothing_may_be_missing_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI=true a skip becomes a failure."""
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="no such program"):
        need.missing("no such program")


def test_the_time_limit_is_hard() -> None:
    """A function that hangs is killed, and the test fails."""
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="killed after"):
        run_in_namespace(sleeps, timeout=1.0)

    assert time.monotonic() - start < 5


@in_namespace(drop_all=True)
def test_connects_to_foreign_addresses_time_out() -> None:
    """With drop_all every foreign address is a black hole, whose SYNs hold ports."""
    destinations = [("10.1.2.3", 80), ("203.0.113.9", 443), ("2001:db8::9", 443)]
    clients = [socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) for address, _ in destinations]
    for client, destination in zip(clients, destinations, strict=True):
        client.setblocking(False)
        client.connect_ex(destination)
    time.sleep(1.2)  # the first SYN is sent again after 1 s
    errors = [client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients]
    states = {(row.address, row.port): row.state for row in client_rows(80, 443)}
    for client in clients:
        client.close()

    assert errors == [0, 0, 0]
    assert dict.fromkeys(destinations, "SYN_SENT") == states


@in_namespace(addresses=["10.5.0.1", "fd00:5::1"], local_prefixes=["10.77.0.0/16", "2001:db8:5::/64"])
def test_extra_addresses_and_prefixes_are_local() -> None:
    """Every address of a local prefix is a source (in IPv6 with freebind) and a destination."""
    with HttpServer("10.5.0.1", "10.77.3.4") as server:
        for source in ("10.5.0.1", "10.77.200.1", "127.0.0.9"):
            for destination in server.addresses:
                connect(source, destination).close()
    with HttpServer("fd00:5::1") as server, socket.socket(socket.AF_INET6) as client:
        client.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        client.bind(("2001:db8:5::1234", 0))
        client.connect(server.addresses[0])

        assert {row.source for row in client_rows(server.port)} == {"2001:db8:5::1234"}


@in_namespace()
def test_time_wait_is_not_freed_early_in_a_namespace() -> None:
    """A port that we closed stays held, as off loopback; the referee counts it."""
    with HttpServer() as server:
        for _ in range(3):
            connect("127.0.0.1", server.addresses[0]).close()
        time.sleep(1.3)  # tcp_tw_reuse_delay is 1 s

        assert [row.state for row in client_rows(server.port)] == ["TIME_WAIT"] * 3


@in_namespace()
def test_the_sampler_sees_what_is_open() -> None:
    """The referee counts per source and destination, over time, and only the client's side."""
    with HttpServer("127.0.0.1", "127.0.0.2", "::1", ports=2) as server:
        ports = {port for _, port in server.addresses}
        one, two, six = server.addresses[0], server.addresses[1], server.addresses[2]
        with KernelSampler(*ports) as sampler:
            clients = [connect("127.0.0.1", one) for _ in range(7)]
            clients += [connect("127.0.0.5", one) for _ in range(4)]
            clients += [connect("127.0.0.1", two), connect("::1", six)]
            time.sleep(0.1)
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            time.sleep(0.1)

        expected = {
            Space("127.0.0.1", *one): 7,
            Space("127.0.0.5", *one): 4,
            Space("127.0.0.1", *two): 1,
            Space("::1", *six): 1,
        }
        assert expected == sampler.maximum
        assert sampler.peak == 7
        assert sampler.series[-1].held == {}
        assert sampler.series[0].at < sampler.series[-1].at
        assert held(*ports) == {}


@in_namespace(low=40000, high=40009)
def test_the_sampler_never_says_too_many() -> None:
    """A flow that ends while another begins is not counted beside it."""
    with HttpServer() as server:
        with KernelSampler(server.port, interval=0.0) as sampler:
            end, made = time.monotonic() + 0.3, 0
            while time.monotonic() < end or made <= 100:
                made += 1
                client = connect("127.0.0.1", server.addresses[0])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()

        assert sampler.peak == 1
        assert until(lambda: server.stats()["accepted"] == made)


@in_namespace(sysctls={TW_REUSE: 2})
def test_a_port_that_can_be_had_again_is_not_held() -> None:
    """On loopback the kernel gives out the port of a TIME_WAIT after a second: the referee counts it no longer."""
    with HttpServer() as server:
        with KernelSampler(server.port) as sampler:
            connect("127.0.0.1", server.addresses[0]).close()
            time.sleep(1.2)  # tcp_tw_reuse_delay is 1 s
            client = connect("127.0.0.1", server.addresses[0])
            time.sleep(0.1)
            rows = held(server.port)
            client.close()

        assert list(rows.values()) == [2]
        assert sampler.peak == 1
        assert len(sampler.most) == 1


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


@pytest.fixture
def client(server: HttpServer) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection(server.host, server.port, timeout=5)
    yield client
    client.close()


def ask(client: http.client.HTTPConnection, path: str, **request: object) -> tuple[http.client.HTTPResponse, bytes]:
    client.request(str(request.pop("method", "GET")), path, **request)  # type: ignore[arg-type]
    response = client.getresponse()
    return response, response.read()


@pytest.mark.parametrize(
    ("path", "status", "length"),
    [
        ("/", 200, None),
        ("/bytes?n=12345", 200, 12345),
        ("/chunked?n=12345", 200, 12345),
        ("/chunked?n=0", 200, 0),
        ("/slow?s=0.01", 200, None),
        ("/status?code=503", 503, None),
        ("/status?code=204", 204, 0),
        ("/nowhere", 404, None),
    ],
)
def test_paths_that_keep_the_connection(
    client: http.client.HTTPConnection, path: str, status: int, length: int | None
) -> None:
    """A second request goes over the same connection."""
    for _ in range(2):
        response, body = ask(client, path)
        kept = client.sock

        assert status == response.status
        assert length is None or length == len(body)
        assert kept is client.sock is not None


def test_a_body_comes_back(client: http.client.HTTPConnection) -> None:
    """/echo takes bodies of known length and chunked ones."""
    assert ask(client, "/echo", method="POST", body=b"x" * 100_000)[1] == b"x" * 100_000
    assert ask(client, "/echo", method="PUT", body=iter([b"one", b"two"]), encode_chunked=True)[1] == b"onetwo"


def test_a_request_is_told_as_it_came(client: http.client.HTTPConnection) -> None:
    """/headers shows method, query, headers and the client's address."""
    told = json.loads(ask(client, "/headers?a=1", method="DELETE", headers={"X-One": "two"})[1])

    assert (told["method"], told["query"]) == ("DELETE", {"a": "1"})
    assert ["X-One", "two"] in told["headers"]
    assert told["client"] == list(client.sock.getsockname())


def test_redirects_lead_to_their_end(client: http.client.HTTPConnection) -> None:
    """/redirect goes n steps, then to the given path."""
    path, steps = "/redirect?n=3&to=/bytes?n=5", 0
    while (answer := ask(client, path))[0].status == 302:
        path, steps = answer[0].headers["Location"], steps + 1

    assert (steps, path, len(answer[1])) == (3, "/bytes?n=5", 5)


def test_the_server_closes_first(client: http.client.HTTPConnection, server: HttpServer) -> None:
    """/close says so and sends its FIN; /half does it in the middle of the body; /drop resets."""
    assert ask(client, "/close")[0].headers["Connection"] == "close"
    with pytest.raises(http.client.IncompleteRead):
        ask(client, "/half")
    client.close()
    with pytest.raises(ConnectionResetError):
        ask(client, "/drop")


def test_statistics(server: HttpServer) -> None:
    """/stats and stats() tell the same, and stats() takes no connection."""
    before = server.stats()
    client = http.client.HTTPConnection(server.host, server.port, source_address=("127.0.0.77", 0))
    told = json.loads(ask(client, "/stats")[1])
    after = server.stats()
    client.close()

    assert (after["accepted"] - before["accepted"], after["requests"] - before["requests"]) == (1, 1)
    assert after == told
    assert after["sources"]["127.0.0.77"] == 1


def test_a_server_that_closes_after_each_response() -> None:
    """With announce_close it says so; without it the next request finds the connection closed."""
    for announce in (True, False):
        with HttpServer(close_after_response=True, announce_close=announce) as server:
            client = http.client.HTTPConnection(server.host, server.port, timeout=5)
            told = ask(client, "/")[0].headers["Connection"]
            waiting = client.sock and client.sock.recv(1)
            client.close()

            assert (told, waiting) == ("close", None) if announce else (told, waiting) == (None, b"")


def test_a_server_that_closes_idle_connections() -> None:
    """After keepalive_timeout seconds the server sends its FIN."""
    with HttpServer(keepalive_timeout=0.1) as server:
        client = http.client.HTTPConnection(server.host, server.port, timeout=5)
        ask(client, "/")
        start = time.monotonic()
        end = client.sock.recv(1)
        client.close()

        assert end == b""
        assert 0.05 < time.monotonic() - start < 1


@pytest.mark.parametrize("kill", ["before", "after", "either"])
def test_a_server_that_kills_connections(kill: str) -> None:
    """About the given part of the requests ends in a reset, before or after the response."""
    with HttpServer(kill_probability=0.5, kill=kill, seed=7) as server:
        failed = 0
        client = http.client.HTTPConnection(server.host, server.port, timeout=5)
        for _ in range(60):
            try:
                ask(client, "/")
            except (OSError, http.client.HTTPException):
                failed += 1
                client.close()
        client.close()

        assert 15 < server.stats()["killed"] < 45
        # A reset may overtake a response, and a connection reset after one fails the next request.
        assert 0 < failed <= server.stats()["killed"]


def test_five_hundred_connections_at_once() -> None:
    """The server holds them all, over several addresses, and answers on each."""
    clients: list[socket.socket] = []
    with HttpServer("127.0.0.1", "127.0.0.2") as server:
        for number in range(500):
            clients.append(socket.create_connection(server.addresses[number % 2]))
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = [client.recv(65536)[:15] for client in clients]
        open_now = server.stats()["open"]
        for client in clients:
            client.close()

        assert answers == [b"HTTP/1.1 200 OK"] * 500
        assert open_now == 500


@pytest.mark.parametrize("kind", [HttpServer, Nginx])
def test_tls_with_a_certificate_of_the_authority(kind: type[HttpServer] | type[Nginx]) -> None:
    """The certificate is good for the address and for localhost, and strictly verified."""
    with kind("127.0.0.1", "::1", tls=True) as server:
        context = ssl.create_default_context(cafile=server.ca_path)
        for (address, port), name in zip(server.addresses, ("localhost", "::1"), strict=True):
            with socket.create_connection((address, port)) as plain:
                client = context.wrap_socket(plain, server_hostname=name)
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = client.recv(100)
                client.close()

            assert server.url.startswith("https://127.0.0.1:")
            assert answer.startswith(b"HTTP/1.1 200")


def test_nginx_replies() -> None:
    """nginx keeps the connection and sends 200 bytes of JSON on each address."""
    with Nginx("127.0.0.1", "127.0.0.2") as server:
        for address, port in server.addresses:
            client = http.client.HTTPConnection(address, port, timeout=5)
            answers = [ask(client, "/any") for _ in range(2)]
            client.close()

            assert [body for _, body in answers] == [HELLO, HELLO]
            assert len(HELLO) == 200
            assert json.loads(HELLO)


def test_a_client_that_is_gone_before_tls_leaves_no_socket() -> None:
    """A scripted server that meets a reset in place of a handshake has closed its end when it learns of that."""
    keys = authority("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.chain, keys.key)
    with listen(["127.0.0.1"])[0] as listener:
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        peer = Peer(listener.accept()[0])
        number = peer.sock.fileno()
        with pytest.raises(OSError, match="reset") as caught:
            peer.secure(context)

        assert not Path(f"/proc/self/fd/{number}").exists(), caught


def test_a_door_counts_what_comes_there() -> None:
    """What comes to another port of the same server, from a test before perhaps, is not counted."""
    with fresh_server() as one, fresh_server() as other:
        for number in range(2):
            with socket.create_connection(other.addresses[0]) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * number)
                assert not number or client.recv(100).startswith(b"HTTP/1.1 200")

        counted = {"accepted": 2, "requests": 1, "killed": 0, "sources": {"127.0.0.1": 2}}
        assert other.stats() == counted
        assert one.stats() == dict.fromkeys(counted, 0) | {"sources": {}}


@in_namespace()
def test_servers_start_without_touching_the_ports() -> None:
    """In a namespace a server that is ready has left no row behind, not even a TIME_WAIT."""
    with HttpServer() as one, Nginx() as two, HttpProxy() as three:
        assert held(one.port, two.port, three.port) == {}
        assert all(not 40000 <= server.port <= 40049 for server in (one, two, three))


def tunnel(proxy: SocksProxy, destination: tuple[str, int], user: bytes, password: bytes) -> bytes:
    """Speak SOCKS5 to the proxy and ask the destination for /; return the end of the answer."""
    with socket.create_connection(proxy.addresses[0]) as client:
        client.settimeout(5)
        client.sendall(b"\x05\x02\x00\x02")
        if client.recv(2) == b"\x05\x02":
            client.sendall(bytes((1, len(user))) + user + bytes((len(password),)) + password)
            if client.recv(2) != b"\x01\x00":
                return b"refused"
        client.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(destination[0]) + struct.pack("!H", destination[1]))
        reply = client.recv(10)
        if reply[1]:
            return b"reply %d" % reply[1]
        client.sendall(b"GET /bytes?n=3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := client.recv(100):
            answer += data
        return answer[-3:]


def test_a_socks_proxy(server: HttpServer) -> None:
    """It tunnels, with and without credentials, and counts."""
    with SocksProxy() as proxy:
        assert bytes(3) == tunnel(proxy, server.addresses[0], b"", b"")
        assert tunnel(proxy, ("127.0.0.1", 1), b"", b"") == b"reply 5"
        assert (2, [f"127.0.0.1:{server.port}"]) == (proxy.stats()["accepted"], proxy.stats()["tunnels"])
    with SocksProxy(credentials=("me", "secret")) as proxy:
        assert bytes(3) == tunnel(proxy, server.addresses[0], b"me", b"secret")
        assert tunnel(proxy, server.addresses[0], b"me", b"guess") == b"refused"
        assert proxy.stats()["refused"] == 1


@pytest.mark.parametrize("tls", [False, True])
def test_an_http_proxy(server: HttpServer, tls: bool) -> None:
    """It forwards several requests over one connection, tunnels, and wants credentials if it has some."""
    allowed = {"Proxy-Authorization": "Basic bWU6c2VjcmV0"}
    with HttpProxy(tls=tls, credentials=("me", "secret")) as proxy:
        socks = [socket.create_connection(proxy.addresses[0], 5) for _ in range(2)]
        if tls:
            context = ssl.create_default_context(cafile=proxy.ca_path)
            socks = [context.wrap_socket(sock, server_hostname="localhost") for sock in socks]
        client = http.client.HTTPConnection(proxy.host, proxy.port)
        client.sock, tunnel = socks
        statuses = [ask(client, f"{server.url}/", headers=given)[0].status for given in ({}, allowed, allowed)]
        body = ask(client, f"{server.url}/echo", method="POST", body=b"four", headers=allowed)[1]
        head = f"CONNECT {server.host}:{server.port} HTTP/1.1\r\nProxy-Authorization: {allowed['Proxy-Authorization']}"
        tunnel.sendall(f"{head}\r\n\r\n".encode())
        granted = tunnel.recv(100)
        tunnel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        tunnelled = tunnel.recv(4096)
        for sock in socks:
            sock.close()
        stats = proxy.stats()

        assert statuses == [407, 200, 200]
        assert granted.startswith(b"HTTP/1.1 200 ")
        assert (body, tunnelled[:15]) == (b"four", b"HTTP/1.1 200 OK")
        assert (stats["accepted"], stats["forwarded"], stats["refused"]) == (2, 3, 1)
        assert stats["tunnels"] == [f"127.0.0.1:{server.port}"]


def test_a_server_ends_with_its_context() -> None:
    """No process is left behind."""
    with HttpServer() as server:
        pid = server.pid
        assert Path(f"/proc/{pid}").exists()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
