"""What HTTP/1.1 costs in bytes alone: a request head, a response head with 8 fields, a chunk; http.client beside it.

Run: python benchmarks/http1.py [--json]
CPU microseconds, no socket; each figure is the least and the median of many short rounds in rotation, so that a noisy
machine harms both sides alike. http.client reads from memory, through the buffered file that it always reads from.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

from fewports.http1 import Preset, Reader, request_head

ROUNDS = 150

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 20 Nov 2026 10:20:51 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 200\r\nLast-Modified: Fri, 20 Nov 2026 08:20:51 GMT\r\n"
    b'Connection: keep-alive\r\nETag: "6740f1a3-c8"\r\nAccept-Ranges: bytes\r\n\r\n'
)
SMALL = HEAD + b"x" * 200
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PREPARED = [("Host", "example.org:8080"), ("Accept-Encoding", "identity"), ("User-Agent", "python-urllib3/2.8.0")]
FIELDS = [("Accept", "application/json"), ("X-Request-Id", "0123456789abcdef"), ("Content-Type", "text/plain")]


class Memory:
    """What http.client takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self.data))  # type: ignore[arg-type]


class Unsent(http.client.HTTPConnection):
    """http.client's connection without a socket."""

    def send(self, data: object) -> None:
        self.data = data


def chunks(size: int, number: int) -> bytes:
    return CHUNKED + (b"%x\r\n" % size + b"y" * size + b"\r\n") * number + b"0\r\n\r\n"


def ours(data: bytes) -> Callable[[], object]:
    reader = Reader()

    def read() -> object:
        reader.begin("GET")
        reader.receive(data)
        return b"".join(iter(reader.take, b""))

    return read


def theirs(data: bytes) -> Callable[[], object]:
    def read() -> object:
        response = http.client.HTTPResponse(Memory(data), method="GET")  # type: ignore[arg-type]
        response.begin()
        return response.read()

    return read


def one_read(reader: Reader, method: str, data: bytes) -> object:
    reader.begin(method)
    reader.receive(data)
    return reader.take()


def head_by_http_client() -> object:
    response = http.client.HTTPResponse(Memory(HEAD), method="HEAD")  # type: ignore[arg-type]
    response.begin()
    return response


def dribble(data: bytes) -> Callable[[], object]:
    """Give a head to the reader byte by byte."""
    pieces = [data[at : at + 1] for at in range(len(data))]

    def read() -> object:
        reader = Reader()
        reader.begin("HEAD")
        for piece in pieces:
            reader.receive(piece)
        return reader.head

    return read


def work() -> dict[str, tuple[Callable[[], object], int, int]]:
    """Return what is measured: a call, how often in a round, and how many things one call does."""
    preset = Preset(PREPARED)
    connection = Unsent("example.org", 8080)

    def stock(headers: dict[str, str]) -> object:
        connection._HTTPConnection__state = "Idle"  # type: ignore[attr-defined]
        connection.request("GET", "/some/path?x=1", None, headers)
        return connection.data

    reader = Reader()
    reader.begin("GET")
    reader.receive(SMALL)
    reader.take()
    head = reader.head
    assert head is not None
    big, small = chunks(8192, 100), chunks(100, 1000)
    long = b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * 30000 + b"\r\n\r\n"
    return {
        "request head, 3 prepared fields": (lambda: request_head("GET", "/some/path?x=1", (), preset), 300, 1),
        "request head, 3 prepared fields, 3 more": (
            lambda: request_head("GET", "/some/path?x=1", FIELDS, preset),
            200,
            1,
        ),
        "request head, 3 + 3 fields, http.client": (lambda: stock(dict([PREPARED[2], *FIELDS])), 60, 1),
        "response head with 8 fields, framing": (lambda: one_read(reader, "HEAD", HEAD), 200, 1),
        "response head with 8 fields, http.client": (head_by_http_client, 40, 1),
        "response head, framing, 200-byte body": (lambda: one_read(reader, "GET", SMALL), 200, 1),
        "response head, body, http.client": (theirs(SMALL), 40, 1),
        "its 8 fields as names and values": (head.fields, 200, 1),
        "a chunk of 100 bytes": (ours(small), 1, 1000),
        "a chunk of 100 bytes, http.client": (theirs(small), 1, 1000),
        "a chunk of 8 KiB": (ours(big), 2, 100),
        "a chunk of 8 KiB, http.client": (theirs(big), 2, 100),
        "a byte of a head of 30 KB that comes byte by byte": (dribble(long), 1, len(long)),
    }


def measure(rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    items = list(work().items())
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (call, often, things) in items:
            began = time.process_time_ns()
            for _ in range(often):
                call()
            times.setdefault(name, []).append((time.process_time_ns() - began) / 1000 / often / things)
    return {name: (min(values), statistics.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    print(f"{'µs':50}   least  median")
    for name, (least, median) in figures.items():
        print(f"{name:50}  {least:6.2f}  {median:6.2f}")


if __name__ == "__main__":
    main()
