"""What HTTP/2 costs in bytes alone: a small GET on one connection, with 8 response fields; h2 itself beside it.

Run: python benchmarks/http2.py [--json]
CPU microseconds, no socket; each figure is the least and the median of many short rounds in rotation. The peer's bytes
are made beforehand, in the three ways in which servers write header blocks:

same       nginx: each block brings its fields again, and refers to the static table only
indexed    Go, nghttp2: after the first response each block refers to the dynamic table only
different  nginx, where one field of each response is another (and each path): every block is decoded and encoded
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived
from h2.settings import SettingCodes
from hpack import Encoder

from fewports.http2 import Connection

ROUNDS = 60
BATCH = 64  # requests of a round
BODY = b"x" * 200
HEAD = [
    (b":status", b"200"),
    (b"server", b"nginx/1.22.1"),
    (b"date", b"Fri, 20 Nov 2026 10:20:51 GMT"),
    (b"content-type", b"application/json"),
    (b"content-length", b"200"),
    (b"last-modified", b"Fri, 20 Nov 2026 08:20:51 GMT"),
    (b"etag", b'"6740f1a3-c8"'),
    (b"accept-ranges", b"bytes"),
    (b"vary", b"accept-encoding"),
]
FIELDS = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "example.org:8443"),
    (":path", "/some/path?x=1"),
    ("accept-encoding", "gzip"),
    ("accept", "application/json"),
    ("user-agent", "python-urllib3/2.8.0"),
]
GREETING = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\x00\x80"  # SETTINGS_MAX_CONCURRENT_STREAMS = 128
KINDS = ("same", "indexed", "different")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Script:
    """What the peer sends, for one stream after the other."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.number = -1
        self.encoder = Encoder()
        if kind != "indexed":
            self.encoder.header_table_size = 0  # so it finds in the static table only
            self.encoder.header_table.resized = False

    def responses(self, count: int) -> list[bytes]:
        made = []
        for _ in range(count):
            self.number += 2
            head = HEAD
            if self.kind == "different":
                head = [*HEAD, (b"x-request-id", b"%016x" % self.number)]
            block = self.encoder.encode(head)
            made.append(frame(1, 4, self.number, block) + frame(0, 1, self.number, BODY))
        return made


def paths(kind: str, count: int, number: int) -> list[list[tuple[str, str]]]:
    """Return the fields of so many requests."""
    if kind != "different":
        return [list(FIELDS) for _ in range(count)]
    return [[*FIELDS[:3], (":path", f"/item/{number}/{index}"), *FIELDS[4:]] for index in range(count)]


def ours() -> Callable[[list[list[tuple[str, str]]], list[bytes]], None]:
    connection = Connection()
    connection.receive(GREETING)

    def run(requests: list[list[tuple[str, str]]], responses: list[bytes]) -> None:
        for fields, response in zip(requests, responses, strict=True):
            seat = connection.reserve()
            assert seat is not None
            stream = seat.open(fields, end=True)
            connection.pending()
            connection.receive(response)
            connection.woken()
            assert stream.take() == BODY
            assert stream.closed
            assert stream.head is not None

    return run


def stock() -> Callable[[list[list[tuple[str, str]]], list[bytes]], None]:
    connection = H2Connection(H2Configuration(client_side=True))
    connection.local_settings[SettingCodes.ENABLE_PUSH] = 0
    connection.initiate_connection()
    connection.increment_flow_control_window(2**24)
    connection.receive_data(GREETING)

    def run(requests: list[list[tuple[str, str]]], responses: list[bytes]) -> None:
        for fields, response in zip(requests, responses, strict=True):
            number = connection.get_next_available_stream_id()
            connection.send_headers(number, fields, end_stream=True)
            connection.data_to_send()
            head = body = None
            for event in connection.receive_data(response):
                if isinstance(event, ResponseReceived):
                    head = event.headers
                elif isinstance(event, DataReceived):
                    body = event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, number)
            assert head is not None
            assert body == BODY

    return run


def download_on(connection: Connection) -> Callable[[list[bytes]], None]:
    def run(frames: list[bytes]) -> None:
        seat = connection.reserve()
        assert seat is not None
        stream = seat.open(FIELDS, end=True)
        connection.receive(frame(1, 4, stream.id, b"\x88"))
        for data in frames:
            connection.receive(data[:5] + stream.id.to_bytes(4, "big") + data[9:])
            stream.take()
        stream.reset()
        connection.pending()
        connection.woken()

    return run


def measure(rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    times: dict[str, list[float]] = {}
    sides = {}
    for kind in KINDS:
        sides[f"GET, header blocks {kind}: fewports"] = (kind, ours(), Script(kind))
        sides[f"GET, header blocks {kind}: h2"] = (kind, stock(), Script(kind))
    connection = Connection()
    connection.receive(GREETING)
    download = download_on(connection)
    frames = [frame(0, 0, 1, b"y" * 16384)] * BATCH
    for number in range(rounds):
        for name, (kind, run, script) in sides.items():
            requests, responses = paths(kind, BATCH, number), script.responses(BATCH)
            began = time.process_time_ns()
            run(requests, responses)
            times.setdefault(name, []).append((time.process_time_ns() - began) / 1000 / BATCH)
        began = time.process_time_ns()
        download(frames)
        times.setdefault("DATA of 16 KiB: fewports", []).append((time.process_time_ns() - began) / 1000 / BATCH)
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
    print(f"{'µs':40}   least  median")
    for name, (least, median) in figures.items():
        print(f"{name:40}  {least:6.2f}  {median:6.2f}")


if __name__ == "__main__":
    main()
