"""What the gate costs: ledger operations, memory, a new connection, a reused one, a crowded range.

Run: python benchmarks/gate.py [--json]
CPU time of this process, medians over interleaved rounds, so that a noisy machine harms both sides alike.
The part about a crowded range needs a network namespace of its own: root, or unprivileged user namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import urllib3

import fewports
import fewports.urllib3
from fewports.address import Destination, Flow, PortSpace
from fewports.kernel import options
from fewports.ledger.account import Lease, Waiter

HELD, DESTINATIONS, ROUNDS = 28_000, 1_000, 21


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--crowded", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.crowded:
        print(json.dumps(crowded()))
        return
    figures: dict[str, object] = {"machine": machine(), **ledger(), **connections(), **apart()}
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:58} {value}")


def machine() -> str:
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def ledger() -> dict[str, object]:
    """Reserve and release with many ports held over many destinations."""
    book = fewports.Ledger()
    destinations = [Destination(f"203.0.{number // 250}.{number % 250 + 1}", 443) for number in range(DESTINATIONS)]
    spaces = [PortSpace("10.0.0.5", destination) for destination in destinations]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    now = time.monotonic()
    leases = []
    for number in range(HELD):
        lease = reserve(book, spaces[number % DESTINATIONS], now)
        flow = Flow("10.0.0.5", 32768 + number, lease.space.destination)
        book.opened(lease, flow, now)
        leases.append(lease)
    size = (tracemalloc.get_traced_memory()[0] - before) / HELD
    tracemalloc.stop()

    def pair() -> None:
        now = time.monotonic()
        book.release(reserve(book, spaces[7], now), now)

    return {
        f"reserve and release, {HELD} held, {DESTINATIONS} destinations, us": cpu({"pair": pair}, 2000)["pair"],
        "memory per held port, bytes": round(size),
    }


def reserve(book: fewports.Ledger, space: PortSpace, now: float) -> Lease:
    waiter = Waiter(int)
    book.reserve(waiter, (book.want(space, now),), now)
    lease = waiter.outcome
    assert isinstance(lease, Lease)
    return lease


def connections() -> dict[str, object]:
    """A new connection, plain and through the gate; a request on a kept one, urllib3's and ours."""
    with Server() as server:
        address = ("127.0.0.1", server.port)
        book = fewports.Ledger()
        new = cpu(
            {
                "plain": lambda: socket.create_connection(address).close(),
                "gate": lambda: fewports.create_connection(address, ledger=book).close(),
            },
            200,
        )
        url = f"http://127.0.0.1:{server.port}/"
        stock, ours = urllib3.PoolManager(), fewports.urllib3.PoolManager(ledger=book)
        kept = cpu({"urllib3": lambda: stock.request("GET", url), "gate": lambda: ours.request("GET", url)}, 200)
        stock.clear()
        ours.clear()
    return {
        "new connection, socket.create_connection, us": new["plain"],
        "new connection, fewports.create_connection, us": new["gate"],
        "the gate adds to a new connection, us": round(new["gate"] - new["plain"], 1),
        "request on a kept connection, urllib3, us": kept["urllib3"],
        "request on a kept connection, fewports, us": kept["gate"],
        "ratio": round(kept["gate"] / kept["urllib3"], 3),
    }


def cpu(work: dict[str, Callable[[], object]], number: int) -> dict[str, float]:
    """Return the median CPU microseconds of each piece of *work*, in turn over ROUNDS rounds."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        for _ in range(number):
            call()
    for _ in range(ROUNDS):
        for name, call in work.items():
            began = time.thread_time()
            for _ in range(number):
                call()
            taken[name].append((time.thread_time() - began) / number * 1e6)
    return {name: round(statistics.median(times), 2) for name, times in taken.items()}


def apart() -> dict[str, object]:
    """Run crowded() in a process of its own, which leaves this network namespace."""
    command = [sys.executable, __file__, "--crowded"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        return {"connect() in a crowded range": f"not measured: {done.stderr.strip().splitlines()[-1]}"}
    figures: dict[str, object] = json.loads(done.stdout)
    return figures


def crowded() -> dict[str, object]:
    """Compare connect() with an empty range and with 90 % of it filled, plain and through the gate."""
    unshare()
    # Nobody accepts: the kernel answers for the listener, and no process needs 25,000 descriptors for it.
    for name, value in (("core/somaxconn", "200000"), ("ipv4/tcp_syncookies", "0")):
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write(value)
    with socket.create_server(("127.0.0.1", 8001), backlog=200_000) as listener:
        address = listener.getsockname()
        book = fewports.Ledger(budget="100%")
        work = {
            "plain": lambda: reset(socket.create_connection(address)),
            "gate": lambda: reset(fewports.create_connection(address, ledger=book)),
        }
        empty = cpu(work, 50)
        filled = fill(address, 0.9)
        full = cpu(work, 50)
    return {
        "ports filled by other programs": filled,
        "connect and close, empty, plain, us": empty["plain"],
        "connect and close, 90 % filled, plain, us": full["plain"],
        "connect and close, empty, fewports, us": empty["gate"],
        "connect and close, 90 % filled, fewports, us": full["gate"],
        "ratio, plain": round(full["plain"] / empty["plain"], 2),
        "ratio, fewports": round(full["gate"] / empty["gate"], 2),
    }


def reset(sock: socket.socket) -> None:
    """Close and leave no port behind, so that the filling stays what it was."""
    options.skip_time_wait(sock)
    sock.close()


def fill(address: tuple[str, int], share: float) -> int:
    """Take that share of the range towards *address*, in children that end with this process."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    wanted = int((high - low + 1) * share)
    for _ in range(0, wanted, 9000):  # files are capped at 20,000 a process, and each connection has two ends
        number = min(9000, wanted)
        wanted -= number
        reader, writer = os.pipe()
        if os.fork() == 0:
            keep = [socket.create_connection(address) for _ in range(number)]
            assert len(keep) == number
            os.write(writer, b"x")
            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
            time.sleep(600)
            os._exit(0)
        os.read(reader, 1)
    return int((high - low + 1) * share)


def unshare() -> None:
    """Enter a network namespace of our own, with the loopback interface up."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Server:
    """An HTTP server in its own process, which answers every request alike."""

    BODY = b'{"ok": true, "items": [1, 2, 3]}'

    def __enter__(self) -> Server:
        listener = socket.create_server(("127.0.0.1", 8001), backlog=4096)
        self.port = listener.getsockname()[1]
        self.child = os.fork()
        if self.child == 0:
            try:
                asyncio.run(self.serve(listener))
            finally:
                os._exit(0)
        listener.close()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)

    async def serve(self, listener: socket.socket) -> None:
        server = await asyncio.get_running_loop().create_server(Answer, sock=listener)
        await server.serve_forever()


class Answer(asyncio.Protocol):
    REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(self.REPLY % (len(Server.BODY), Server.BODY))


if __name__ == "__main__":
    main()
