"""The clients of threads that peers.py compares, each used as its documentation shows.

Each imports its library when it is made, and asks one server. Those that cannot be shared by threads are made once
for each thread.

Long, because there are eleven of them, and each is to be read beside the others.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, ClassVar, NamedTuple

Take = Callable[[bytes], object]  # is given each piece of a body
Body = IO[bytes] | Iterator[bytes]
MIB = 1 << 20


class Place(NamedTuple):
    """Where the server is, and how it is to be asked: over TLS with this CA, by so many threads or tasks, over so many
    connections at most, each time anew, or over HTTP/2."""

    host: str
    port: int
    ca: str | None = None
    threads: int = 1
    anew: bool = False
    http2: bool = False

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"} if self.anew else {}


class Client(ABC):
    """What a round does with a client. A body whose *length* is None is sent in chunks."""

    needs: ClassVar[tuple[str, ...]] = ()  # the libraries to import
    names: ClassVar[tuple[str, ...]] = ()  # what must be in them
    reference: ClassVar[str] = ""  # what it is compared to, where that takes part; else the case says
    shared: ClassVar[bool] = True  # by threads

    @abstractmethod
    def __init__(self, place: Place) -> None: ...

    @abstractmethod
    def get(self, path: str) -> bytes: ...

    @abstractmethod
    def stream(self, path: str, piece: int, take: Take) -> None: ...

    @abstractmethod
    def put(self, path: str, body: Body, length: int | None) -> int: ...

    @abstractmethod
    def close(self) -> None: ...


class Raw(Client):
    """A socket and the least that finds the end of a response: what no client can beat."""

    shared = False

    def __init__(self, place: Place) -> None:
        self._place = place
        self._sock: socket.socket | None = None
        self._tls = ssl.create_default_context(cafile=place.ca) if place.ca else None
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in place.headers.items())
        self._heads: dict[str, bytes] = {}
        self._buffer = memoryview(bytearray(MIB))

    def get(self, path: str) -> bytes:
        sock, start, length = self._ask(path)
        if len(start) < length:
            # As http.client does: it fills an object that is not cleared before, nor copied when it is full.
            start = io.BufferedReader(Rest(start, sock), MIB).read(length)
        if self._place.anew:
            self.close()
        return start

    def stream(self, path: str, piece: int, take: Take) -> None:
        sock, start, length = self._ask(path)
        take(start)
        length -= len(start)
        buffer = self._buffer[:piece]
        while length:
            got = sock.recv_into(buffer)
            take(buffer[:got])  # type: ignore[arg-type]
            length -= got

    def put(self, path: str, body: Body, length: int | None) -> int:
        sock = self._connected()
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        sock.sendall(self._head("PUT", path, f"{size}\r\n"))
        if length is None:
            for piece in body:
                sock.sendmsg([b"%x\r\n" % len(piece), piece, b"\r\n"])
            sock.sendall(b"0\r\n\r\n")
        else:
            sock.sendfile(body)  # type: ignore[arg-type]
        return int(sock.recv(65536)[9:12])

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connected(self) -> socket.socket:
        if self._sock is None:
            sock = socket.create_connection((self._place.host, self._place.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock = self._tls.wrap_socket(sock, server_hostname=self._place.host) if self._tls else sock
        return self._sock

    def _ask(self, path: str) -> tuple[socket.socket, bytes, int]:
        """Send a GET; return the start of the body, and how long all of it is."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head("GET", path, self._fields)
        sock = self._connected()
        sock.sendall(head)
        data = sock.recv(65536)
        end = data.find(b"\r\n\r\n")
        while end < 0:
            data += sock.recv(65536)
            end = data.find(b"\r\n\r\n")
        at = data.index(b"Content-Length: ") + 16
        return sock, data[end + 4 :], int(data[at : data.index(b"\r", at)])

    def _head(self, method: str, path: str, fields: str) -> bytes:
        return f"{method} {path} HTTP/1.1\r\nHost: {self._place.host}:{self._place.port}\r\n{fields}\r\n".encode()


class Rest(io.RawIOBase):
    """The start of a body, and then what the socket has."""

    def __init__(self, start: bytes, sock: socket.socket) -> None:
        self._start, self._sock = start, sock

    def readable(self) -> bool:
        return True

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        if not self._start:
            return self._sock.recv_into(room)
        portion, self._start = self._start[: len(room)], self._start[len(room) :]
        room[: len(portion)] = portion
        return len(portion)


class HttpClient(Client):
    shared = False

    def __init__(self, place: Place) -> None:
        self._headers = place.headers
        self._connection: http.client.HTTPConnection
        if place.ca:
            context = ssl.create_default_context(cafile=place.ca)
            self._connection = http.client.HTTPSConnection(place.host, place.port, context=context)
        else:
            self._connection = http.client.HTTPConnection(place.host, place.port)

    def get(self, path: str) -> bytes:
        self._connection.request("GET", path, headers=self._headers)
        return self._connection.getresponse().read()

    def stream(self, path: str, piece: int, take: Take) -> None:
        self._connection.request("GET", path, headers=self._headers)
        response = self._connection.getresponse()
        while data := response.read(piece):
            take(data)

    def put(self, path: str, body: Body, length: int | None) -> int:
        headers = {} if length is None else {"Content-Length": str(length)}
        self._connection.request("PUT", path, body, headers, encode_chunked=length is None)
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


class Urllib3Manager(Client):
    needs = ("urllib3",)

    def __init__(self, place: Place) -> None:
        options: dict[str, Any] = {"headers": place.headers, "maxsize": place.threads}
        if place.ca:
            options["ca_certs"] = place.ca
        self._url = place.url
        self._made = self._make(place, options)

    def get(self, path: str) -> bytes:
        data: bytes = self._made.request("GET", self._url + path).data
        return data

    def stream(self, path: str, piece: int, take: Take) -> None:
        response = self._made.request("GET", self._url + path, preload_content=False)
        for data in response.stream(piece):
            take(data)
        response.release_conn()

    def put(self, path: str, body: Body, length: int | None) -> int:
        headers = None if length is None else {"Content-Length": str(length)}
        status: int = self._made.request("PUT", self._url + path, body=body, headers=headers).status
        return status

    def close(self) -> None:
        self._made.clear()

    def _make(self, place: Place, options: dict[str, Any]) -> Any:
        import urllib3

        return urllib3.PoolManager(**options)


class Urllib3Pool(Urllib3Manager):
    """Without a manager: the host is told once."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._url = ""

    def close(self) -> None:
        self._made.close()

    def _make(self, place: Place, options: dict[str, Any]) -> Any:
        import urllib3

        kind = urllib3.HTTPSConnectionPool if place.ca else urllib3.HTTPConnectionPool
        return kind(place.host, place.port, **options)


class FewportsManager(Urllib3Manager):
    needs = ("fewports",)

    def _make(self, place: Place, options: dict[str, Any]) -> Any:
        import fewports

        return fewports.PoolManager(**options)


class FewportsPool(Urllib3Pool):
    needs = ("fewports",)
    reference = "urllib3.HTTPConnectionPool"

    def _make(self, place: Place, options: dict[str, Any]) -> Any:
        import fewports.urllib3

        kind = fewports.urllib3.HTTPSConnectionPool if place.ca else fewports.urllib3.HTTPConnectionPool
        return kind(place.host, place.port, **options)


class RequestsSession(Client):
    needs: ClassVar[tuple[str, ...]] = ("requests",)
    reference = "requests.Session"

    def __init__(self, place: Place) -> None:
        self._url = place.url
        self._session = self._make(max(10, place.threads))  # requests' own pool_maxsize is 10
        self._session.headers.update(place.headers)
        if place.ca:
            self._session.verify = place.ca

    def get(self, path: str) -> bytes:
        content: bytes = self._session.get(self._url + path).content
        return content

    def stream(self, path: str, piece: int, take: Take) -> None:
        with self._session.get(self._url + path, stream=True) as response:
            for data in response.iter_content(piece):
                take(data)

    def put(self, path: str, body: Body, length: int | None) -> int:
        status: int = self._session.put(self._url + path, data=body).status_code
        return status

    def close(self) -> None:
        self._session.close()

    def _make(self, maxsize: int) -> Any:
        import requests

        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=maxsize))
        return session


class FewportsSession(RequestsSession):
    needs = ("fewports", "requests")

    def _make(self, maxsize: int) -> Any:
        import fewports.requests

        return fewports.requests.Session(pool_maxsize=maxsize)


class HttpxClient(Client):
    needs = ("httpx",)

    def __init__(self, place: Place) -> None:
        self._url = place.url
        verify = ssl.create_default_context(cafile=place.ca) if place.ca else True
        self._client = self._make(headers=place.headers, verify=verify, http2=place.http2)

    def get(self, path: str) -> bytes:
        content: bytes = self._client.get(self._url + path).content
        return content

    def stream(self, path: str, piece: int, take: Take) -> None:
        with self._client.stream("GET", self._url + path) as response:
            for data in response.iter_bytes(piece):
                take(data)

    def put(self, path: str, body: Body, length: int | None) -> int:
        status: int = self._client.put(self._url + path, content=body).status_code
        return status

    def close(self) -> None:
        self._client.close()

    def _make(self, **options: Any) -> Any:
        import httpx

        return httpx.Client(**options)


class Httpx2Client(HttpxClient):
    needs = ("httpx2",)

    def _make(self, **options: Any) -> Any:
        import httpx2

        return httpx2.Client(**options)


class Pycurl(Client):
    needs = ("pycurl",)
    shared = False

    def __init__(self, place: Place) -> None:
        import pycurl  # type: ignore[import-untyped]

        self._url = place.url
        self._curl = pycurl.Curl()
        self._curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in place.headers.items()])
        if place.ca:
            self._curl.setopt(pycurl.CAINFO, place.ca)

    def get(self, path: str) -> bytes:
        self._curl.setopt(self._curl.URL, self._url + path)
        data: bytes = self._curl.perform_rb()
        return data

    def stream(self, path: str, piece: int, take: Take) -> None:
        curl = self._curl
        curl.setopt(curl.URL, self._url + path)
        curl.setopt(curl.BUFFERSIZE, piece)

        def write(data: bytes) -> None:
            take(data)  # what is returned would be a number of bytes

        curl.setopt(curl.WRITEFUNCTION, write)
        curl.perform()

    def put(self, path: str, body: Body, length: int | None) -> int:
        curl = self._curl
        curl.setopt(curl.URL, self._url + path)
        curl.setopt(curl.UPLOAD, 1)
        if length is None:
            curl.setopt(curl.HTTPHEADER, ["Transfer-Encoding: chunked"])
            curl.setopt(curl.READFUNCTION, _portions(body))
        else:
            curl.setopt(curl.INFILESIZE_LARGE, length)
            curl.setopt(curl.READFUNCTION, body.read)  # type: ignore[union-attr]
        curl.perform_rb()
        status: int = curl.getinfo(curl.RESPONSE_CODE)
        return status

    def close(self) -> None:
        self._curl.close()


def _portions(pieces: Iterable[bytes]) -> Callable[[int], bytes]:
    """Return a function that reads on, as of a file: libcurl says how much it takes."""
    rest = memoryview(b"")
    source = iter(pieces)

    def read(size: int) -> bytes:
        nonlocal rest
        if not rest:
            with suppress(StopIteration):
                rest = memoryview(next(source))
        portion, rest = rest[:size], rest[size:]
        return bytes(portion)

    return read


CLIENTS: dict[str, type[Client]] = {
    "socket": Raw,
    "http.client": HttpClient,
    "pycurl.Curl": Pycurl,
    "urllib3.PoolManager": Urllib3Manager,
    "fewports.PoolManager": FewportsManager,
    "urllib3.HTTPConnectionPool": Urllib3Pool,
    "fewports.HTTPConnectionPool": FewportsPool,
    "requests.Session": RequestsSession,
    "fewports.Session": FewportsSession,
    "httpx.Client": HttpxClient,
    "httpx2.Client": Httpx2Client,
}
