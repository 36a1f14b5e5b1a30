"""One suite of cases over HTTP/2, the same against nginx, nghttpd and a Python server on h2, over TLS and without."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from faces import Aside, until
from http2_faces import PATIENT, Client, client, open_rows, running
from support.http_server import HELLO, SMALL
from support.servers import H2Server, HttpServer, Listening
from urllib3 import HTTPHeaderDict

import fewports
import fewports.requests

# nghttpd serves files only.
with_application = pytest.mark.parametrize("server", ["nginx", "h2"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def app() -> Iterator[HttpServer]:
    with HttpServer() as started:
        yield started


@pytest.fixture(scope="module", params=[True, False], ids=["tls", "plain"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module", params=["nginx", "nghttpd", "h2"])
def server(request: pytest.FixtureRequest, tls: bool, app: HttpServer) -> Iterator[Listening]:
    with running(request.param, tls=tls, app=app.url) as started:
        yield started


@pytest.fixture
def asked(server: Listening) -> Iterator[Client]:
    with client(server) as made:
        yield made


def test_a_response_is_one_of_urllib3(asked: Client) -> None:
    """Status, version 20 as urllib3's own HTTP/2 says, headers without regard to case, the body, and nothing active."""
    response = asked.get()

    assert (response.status, response.version, response.data) == (200, 20, HELLO)
    assert isinstance(response.headers, HTTPHeaderDict)
    assert response.headers["Content-Length"] == response.headers["content-length"] == "200"
    assert not any(name.startswith(":") for name in response.headers)
    assert response.json() == json.loads(HELLO)
    assert response.geturl().endswith("/hello")
    assert asked.counts == (0, 1, 0)


def test_requests_of_a_row_share_a_connection(asked: Client) -> None:
    """Ten requests, one after the other, take one port, which the kernel shows too."""
    assert {asked.get().status for _ in range(10)} == {200}

    assert asked.opened == 1
    assert open_rows(asked.server.port) == ["ESTABLISHED"]


def test_threads_share_a_connection(asked: Client) -> None:
    """Sixteen threads at once, all new to the origin, take one port between them."""
    asides = [Aside(lambda: [asked.get().data for _ in range(10)]) for _ in range(16)]

    assert [aside.result(PATIENT) for aside in asides] == [[HELLO] * 10] * 16
    assert asked.opened == 1
    assert asked.counts == (0, 1, 0)


def test_head_has_no_body(asked: Client) -> None:
    """HEAD gives the headers of GET, and no body; the connection goes on."""
    response = asked.request("HEAD", "/hello")

    assert (response.status, response.data) == (200, b"")
    assert response.headers["content-length"] == "200"
    assert asked.get().data == HELLO
    assert asked.opened == 1


def test_what_is_not_there(asked: Client) -> None:
    """A 404 is a response like any other."""
    assert asked.get("/missing").status == 404
    assert asked.get().status == 200
    assert asked.opened == 1


BODIES: dict[str, Any] = {
    "bytes": lambda: b"x" * 1000,
    "text": lambda: "x" * 1000,
    "nothing": lambda: b"",
    "large": lambda: b"x" * 3_000_000,
    "file": lambda: io.BytesIO(b"x" * 300_000),
    "iterator": lambda: itertools.repeat(b"x" * 10_000, 30),
}


@pytest.mark.parametrize("kind", BODIES)
def test_uploads_come_back(asked: Client, kind: str) -> None:
    """A body goes out whole, whatever it is, within the windows of the server, and comes back."""
    whole = BODIES[kind]()
    if kind == "file":
        whole = whole.read()
    elif kind == "iterator":
        whole = b"".join(whole)
    expected = whole.encode() if isinstance(whole, str) else whole

    assert asked.request("POST", "/echo", body=BODIES[kind]()).data == expected
    assert asked.get().status == 200
    assert asked.opened == 1


def test_uploads_at_once(asked: Client) -> None:
    """Eight uploads share the connection, and each gets its own back."""
    bodies = [bytes([65 + number]) * 400_000 for number in range(8)]
    asides = [Aside(lambda body=body: asked.request("POST", "/echo", body=body).data) for body in bodies]

    assert [aside.result(PATIENT) for aside in asides] == bodies
    assert asked.opened == 1


def test_a_download_in_pieces(asked: Client) -> None:
    """A large body is streamed; while it is, the port is active, and other requests go beside it."""
    response = asked.get("/big", preload_content=False)
    size = int(response.headers["content-length"])
    got = 0
    for number, piece in enumerate(response.stream(1 << 20)):
        got += len(piece)
        if number == 3:
            assert asked.get().data == HELLO
            assert asked.counts == (1, 0, 0)

    assert got == size
    assert asked.opened == 1
    assert until(lambda: asked.counts == (0, 1, 0))


@pytest.mark.parametrize("end", ["close", "drop", "with"])
def test_leaving_a_response_early_keeps_the_connection(asked: Client, end: str) -> None:
    """Whoever leaves before the end gives the stream back; nobody reads the rest, and the connection goes on."""
    for _ in range(5):
        response = asked.get("/big", preload_content=False)
        assert len(response.read(1000)) == 1000
        if end == "close":
            response.close()
        elif end == "with":
            with contextlib.closing(response):
                pass
        del response

    assert until(lambda: asked.counts == (0, 1, 0))
    assert asked.get().data == HELLO
    assert asked.opened == 1


def test_reading_by_other_means(asked: Client) -> None:
    """read() to the end, readinto, readline and iteration give what data gives."""
    response = asked.get("/hello", preload_content=False)
    assert response.read(10) + response.read() == HELLO
    assert response.read() == b""
    response = asked.get("/hello", preload_content=False)
    buffer = bytearray(300)
    assert response.readinto(buffer) == 200
    assert buffer[:200] == HELLO
    response.close()
    response = asked.get("/hello", preload_content=False)
    assert b"".join(response) == HELLO

    assert until(lambda: asked.counts == (0, 1, 0))


def test_requests_over_http2(server: Listening) -> None:
    """The same with requests: only the session is another."""
    book = fewports.Ledger()
    with fewports.requests.Session(http2="auto" if server.ca_path else True, ledger=book) as session:
        session.verify = server.ca_path or True
        response = session.get(server.url + "/hello")
        assert (response.status_code, response.content) == (200, HELLO)
        assert response.raw.version == 20
        assert response.headers["content-length"] == "200"
        assert session.post(server.url + "/echo", data=b"x" * 100_000).content == b"x" * 100_000
        assert session.post(server.url + "/echo", data=(b"x" * 10 for _ in range(10))).content == b"x" * 100
        with session.get(server.url + "/big", stream=True) as streamed:
            assert len(next(streamed.iter_content(5000))) == 5000
        assert session.get(server.url + "/missing").status_code == 404

        assert [usage.held for usage in book.usage() if usage.scope == "ledger"] == [1]
    assert until(lambda: not open_rows(server.port))


# Below: what needs an application behind the server.


@with_application
def test_redirects_are_followed(asked: Client) -> None:
    """Three steps lead to the end on the same connection."""
    response = asked.get("/redirect?n=3&to=/hello", retries=None)

    assert (response.status, response.data) == (200, HELLO)
    assert asked.get("/redirect?to=/hello", redirect=False).status == 302
    assert asked.opened == 1


@with_application
def test_retries_on_a_status(asked: Client) -> None:
    """status_forcelist asks again, as often as it says, on the same connection."""
    retry = urllib3.Retry(2, status_forcelist=[503], backoff_factor=0)
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        asked.get("/status?code=503", retries=retry)

    assert asked.get().status == 200
    assert asked.opened == 1


@with_application
def test_slow_responses_run_at_once(asked: Client) -> None:
    """Thirty responses that take 0.3 s each take little more than that together, on one port."""
    asides = [Aside(lambda: asked.get("/slow?s=0.3").status) for _ in range(30)]

    assert [aside.result(5) for aside in asides] == [200] * 30  # one after the other they would take 9 s
    assert asked.opened == 1


@with_application
def test_a_time_out_leaves_the_others_alone(asked: Client) -> None:
    """One caller's read time-out ends its own stream; its siblings on the connection are served."""
    siblings = [Aside(lambda: asked.get("/slow?s=0.6").status) for _ in range(3)]
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        asked.get("/slow?s=5", timeout=urllib3.Timeout(connect=5, read=0.2))

    assert [sibling.result() for sibling in siblings] == [200] * 3
    assert asked.opened == 1
    assert until(lambda: asked.counts == (0, 1, 0))


@with_application
def test_a_body_without_a_length(asked: Client) -> None:
    """A response that does not say how long it is ends where its stream ends."""
    assert asked.get("/chunked?n=100000").data == bytes(100_000)


@with_application
def test_many_status_codes(asked: Client) -> None:
    """204 and 304 have no body; 500 is a response."""
    for code in (200, 201, 204, 304, 400, 500):
        assert asked.get(f"/status?code={code}").status == code

    assert asked.opened == 1


@with_application
def test_what_the_server_sees(asked: Client) -> None:
    """Method, path, query and header fields arrive; what HTTP/2 has no use for does not (RFC 9113, section 8.2.2)."""
    fields = {"X-Some": "thing", "Connection": "keep-alive, x-gone", "Keep-Alive": "timeout=5", "TE": "trailers"}
    told = asked.get("/headers?a=b%20c", headers=fields).json()
    headers = {name.lower(): value for name, value in told["headers"]}

    assert (told["method"], told["path"], told["query"]) == ("GET", "/headers", {"a": "b c"})
    assert headers["x-some"] == "thing"
    assert "keep-alive" not in headers
    if type(asked.server) is H2Server:
        assert "connection" not in headers
        assert "host" not in headers


@with_application
def test_json_goes_out(asked: Client) -> None:
    """json= and fields= are urllib3's."""
    assert asked.request("POST", "/echo", json=SMALL).json() == SMALL
    assert b"value" in asked.request("POST", "/echo", fields={"name": "value"}).data
