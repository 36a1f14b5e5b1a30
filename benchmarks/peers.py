"""How fast HTTP/1.1 clients are, side by side: the same work by each, asked of nginx.

Run: python benchmarks/peers.py [--case a,g-tls,...] [--clients fewports,urllib3,...] [--json]    (3 to 4 minutes)
     python benchmarks/peers.py --case a --rounds 15 --seconds 0.5    (one case, with less noise)

nginx, one process, has one core; the client has another one, and a process of its own for each case. All clients
take a turn in each round, and medians over the rounds are compared. A round makes the client anew, asks some hundred
times to warm it up, and looks at what came. CPU time is the figure to go by: time on the clock is the server's, too.

cases:
  a  one thread, one kept connection: GET, a body of 200 bytes, 8 fields in the response's head
  b  16 threads on one pool, manager or session, which is told to keep 16 connections if it has to be told;
     http.client, pycurl and sockets cannot be shared, and have one for each thread
  c  a over TLS, the certificate verified
  n  a with a new connection for each request (Connection: close)
  g  a download of 100 MB: in pieces of 64 KiB or of 1 MiB (g-64k, g-1m) or read at once (g-whole); and over TLS
     (g-tls-64k, g-tls-1m, g-tls-whole)
  u  an upload of 100 MB: a file with known length (u-file), an iterable that yields 64 KiB, in chunks (u-chunks)

columns:
  CPU us, CPU ms   of the client's process, user and system, per request: the median of the rounds
  least            the least of them, which other programs on the machine have disturbed least
  faster           the CPU time of the reference divided by that of this client; below 1 it is slower
  by least         the same by the least of both, for a machine that others use, too
  by round         the least and the most that it was in a single round
  requests/s       by the clock; MB/s where a body of 100 MB moves
  ports            local ports taken: the connections that nginx accepted in a round, those of the warm-up too
  requests         in a round, in the warm-up too: to compare the ports with
  MB more          what the first transfer in the process added to the peak of its memory
The reference is urllib3.PoolManager; for fewports.HTTPConnectionPool it is urllib3's, for fewports.Session requests'.

Needs Linux and nginx (Debian: apt-get install nginx-light), and trustme for TLS. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import http.client
import importlib.util
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Self

from peer_clients import CLIENTS, Place
from peer_work import Failed, Task, Worker

START = 10.0  # seconds for nginx to listen
LIMIT = 60.0  # seconds for a round beyond those that it measures, before the client is taken for stuck
SMALL = '{"message": "%s"}' % ("x" * 185)  # 200 bytes: a small answer of an API
STATUS = "127.0.1.254"  # where nginx says how many connections there have been; clients have 127.0.1.1 and so on
SERVER_PORTS = range(10000, 30000)  # below Linux's own range for clients, which a listener would take a port from


class Case(NamedTuple):
    """One kind of work; *action* and *piece* are those of a Task."""

    name: str
    text: str
    action: str = "get"
    threads: int = 1
    tls: bool = False
    anew: bool = False
    piece: int = 0


CASES = (
    Case("a", "one thread, one kept connection"),
    Case("b", "16 threads on one pool", threads=16),
    Case("c", "one thread, one kept connection over TLS", tls=True),
    Case("n", "one thread, a new connection for each request", anew=True),
    Case("g-64k", "download, in pieces of 64 KiB", "stream", piece=1 << 16),
    Case("g-1m", "download, in pieces of 1 MiB", "stream", piece=1 << 20),
    Case("g-whole", "download, read at once", "whole"),
    Case("g-tls-64k", "download over TLS, in pieces of 64 KiB", "stream", piece=1 << 16, tls=True),
    Case("g-tls-1m", "download over TLS, in pieces of 1 MiB", "stream", piece=1 << 20, tls=True),
    Case("g-tls-whole", "download over TLS, read at once", "whole", tls=True),
    Case("u-file", "upload of a file with known length", "file"),
    Case("u-chunks", "upload of an iterable, in chunks", "chunks"),
)


class Measured(NamedTuple):
    """The rounds of one client in one case."""

    cpu: list[float]  # seconds per request
    wall: list[float]  # seconds per request
    ports: list[int]
    requests: list[int]  # all of them, as the ports are
    memory: float | None


Outcome = Measured | str  # or what went wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = f"any of: {', '.join(CLIENTS)}; or the first part of such names"
    parser.add_argument("--case", type=listed, metavar="CASE,...", help="only these: a, g, g-tls, u-file, ...")
    parser.add_argument("--clients", type=listed, metavar="NAME,...", help=known)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=0.15, metavar="S", help="for a client in a round; default: %(default)s"
    )
    parser.add_argument(
        "--megabytes", type=int, default=100, metavar="MB", help="size of big bodies; default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("this needs Linux")
    cases = [case for case in CASES if case.name in choose(parser, arguments.case, [case.name for case in CASES], "-")]
    names = choose(parser, arguments.clients, list(CLIENTS), ".")
    if arguments.rounds < 1 or arguments.megabytes < 1 or not arguments.seconds > 0:
        parser.error("--rounds, --megabytes and --seconds must be more than 0")
    skipped = {name: f"pip install {lacking}" for name in names if (lacking := missing(*CLIENTS[name].needs))}
    present = [name for name in names if name not in skipped]
    if not present:
        sys.exit(f"none of these clients is installed: {', '.join(skipped)}")
    if missing("trustme"):
        skipped |= {case.name: "pip install trustme" for case in cases if case.tls}
        cases = [case for case in cases if not case.tls]
    about = {
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "versions": versions(present),
        "skipped": skipped,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "megabytes": arguments.megabytes,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave through each `with`: the files lie in memory
    with tempfile.TemporaryDirectory(prefix="fewports-peers-", dir=memory(arguments.megabytes)) as place:
        bench = Bench(Path(place), present, arguments)
        if not report(bench, cases, about, as_json=arguments.json):
            sys.exit(1)


def listed(text: str) -> list[str]:
    return text.split(",")


def choose(parser: argparse.ArgumentParser, wanted: list[str] | None, names: list[str], end: str) -> list[str]:
    """Return those of *names* that are wanted, by the whole name or by what stands before *end*."""
    for part in wanted or ():
        if not any(name == part or name.startswith(part + end) for name in names):
            parser.error(f"there is no {part!r}; there are {', '.join(names)}")
    return [n for n in names if not wanted or any(n == part or n.startswith(part + end) for part in wanted)]


def missing(*libraries: str) -> str:
    """Return those that cannot be imported, with a space between."""
    return " ".join(library for library in libraries if not importlib.util.find_spec(library))


def versions(clients: Sequence[str]) -> dict[str, str]:
    told = {}
    for library in dict.fromkeys(library for name in clients for library in CLIENTS[name].needs):
        with contextlib.suppress(PackageNotFoundError):  # on the path, but not installed
            told[library] = version(library)
    return told


def memory(megabytes: int) -> str | None:
    """Return where files are kept in memory, if there is room for the body, its upload, and the one before that."""
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4_000_000 * megabytes:
        return "/dev/shm"
    return None


def report(bench: Bench, cases: Sequence[Case], about: dict[str, Any], *, as_json: bool) -> bool:
    """Measure, and print each table as soon as it is there; return whether all clients came to a result."""
    note = sys.stderr if as_json else sys.stdout
    if bench.cores[0] is None:
        print("one core only: the client shares it with the server", file=note)
    for name, how in about["skipped"].items():
        print(f"{name} is left out: {how}", file=note)
    if not as_json:
        print(f"{about['machine']}; {', '.join(' '.join(pair) for pair in about['versions'].items())}")
    collected: dict[str, Any] = {**about, "cases": {}}
    good = True
    with bench:
        for case in cases:
            outcomes = bench.measure(case)
            good = good and not any(isinstance(outcome, str) for outcome in outcomes.values())
            told = {name: figures(name, outcomes) for name in outcomes}
            collected["cases"][case.name] = {"text": case.text, "clients": told}
            if not as_json:
                print(f"\n{case.name}: {case.text}\n\n{table(case, told, bench.megabytes)}", flush=True)
    if as_json:
        print(json.dumps(collected, indent=2))
    return good


def figures(name: str, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return what is told of one client; the ratio is how many times faster it is than its reference."""
    outcome, reference = outcomes[name], CLIENTS[name].reference
    if isinstance(outcome, str):
        return {"error": outcome}
    told: dict[str, Any] = {
        "cpu_us": round(1e6 * statistics.median(outcome.cpu), 2),
        "cpu_us_rounds": [round(1e6 * cpu, 2) for cpu in outcome.cpu],
        "requests_per_second": round(1 / statistics.median(outcome.wall), 2),
        "ports": statistics.median(outcome.ports),
        "requests": statistics.median(outcome.requests),
        "memory_mb": outcome.memory and round(outcome.memory, 1),
        "reference": reference,
        "ratio": None,
        "ratio_least": None,
        "ratio_rounds": None,
    }
    against = outcomes.get(reference)
    if isinstance(against, Measured):
        ratios = [theirs / own for theirs, own in zip(against.cpu, outcome.cpu, strict=True)]
        told["ratio"] = round(statistics.median(against.cpu) / statistics.median(outcome.cpu), 3)
        told["ratio_least"] = round(min(against.cpu) / min(outcome.cpu), 3)
        told["ratio_rounds"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return told


def table(case: Case, told: dict[str, dict[str, Any]], megabytes: int) -> str:
    big = case.action != "get"
    unit, cpu = (1000, "CPU ms") if big else (1, "CPU us")
    head = ["client", cpu, "least", "faster", "by least", "by round", "MB/s" if big else "requests/s"]
    head += ["MB more"] if big else ["ports", "requests"]
    rows = [head]
    failed = []
    for name, figure in told.items():
        if "error" in figure:
            failed.append(f"{name} failed: {figure['error']}")
            continue
        low, high = figure["ratio_rounds"] or (None, None)
        row = [
            name,
            f"{figure['cpu_us'] / unit:.1f}",
            f"{min(figure['cpu_us_rounds']) / unit:.1f}",
            f"{figure['ratio']:.2f}" if low else "-",
            f"{figure['ratio_least']:.2f}" if low else "-",
            f"{low:.2f} to {high:.2f}" if low else "-",
            f"{figure['requests_per_second'] * (megabytes if big else 1):,.0f}",
        ]
        row += [f"{figure['memory_mb']:.1f}"] if big else [f"{figure['ports']:,.0f}", f"{figure['requests']:,.0f}"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *failed])


class Bench:
    """The server and what it serves. *place* is a directory for all files."""

    def __init__(self, place: Path, clients: Sequence[str], arguments: argparse.Namespace) -> None:
        self.megabytes: int = arguments.megabytes
        cores = sorted(os.sched_getaffinity(0))
        self.cores = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)  # the server's, the client's
        self._place, self._clients = place, clients
        self._rounds: int = arguments.rounds
        self._seconds: float = arguments.seconds
        self._big = place / "big"

    def __enter__(self) -> Self:
        self._checksum = 0
        with self._big.open("wb") as file:
            for _ in range(self.megabytes):
                data = os.urandom(1_000_000)
                file.write(data)
                self._checksum = zlib.crc32(data, self._checksum)
        # A destination for each client: the ports that one leaves in TIME_WAIT are none of the next one's.
        addresses = {name: f"127.0.1.{number}" for number, name in enumerate(self._clients, 1)}
        self._nginx = Nginx(self._place, addresses, self.cores[0])
        self._nginx.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._nginx.stop()

    def measure(self, case: Case) -> dict[str, Outcome]:
        """Have each client do a round in turn, until all rounds are done."""
        outcomes: dict[str, Outcome] = {}
        with contextlib.ExitStack() as stack:
            workers = {name: stack.enter_context(Worker(self._task(case, name))) for name in self._clients}
            for name, worker in workers.items():
                try:
                    worker.await_start()
                except Failed as error:
                    outcomes[name] = str(error)
            for number in range(self._rounds):
                for name in turned(self._clients, number):
                    before = outcomes.get(name, Measured([], [], [], [], None))
                    if isinstance(before, Measured):
                        outcomes[name] = self._round(workers[name], name, before)
        return {name: outcomes[name] for name in self._clients}

    def _task(self, case: Case, name: str) -> Task:
        address, plain, tls = self._nginx.where(name)
        return Task(
            client=name,
            place=Place(
                address, tls if case.tls else plain, self._nginx.ca if case.tls else None, case.threads, case.anew
            ),
            action=case.action,
            seconds=self._seconds,
            piece=case.piece,
            small=SMALL,
            big=str(self._big),
            checksum=self._checksum,
            core=self.cores[1],
            limit=LIMIT + self._seconds,
        )

    def _round(self, worker: Worker, name: str, before: Measured) -> Outcome:
        accepted = self._nginx.accepted()
        try:
            told = worker.round()
        except Failed as error:
            return str(error)
        if (sent := self._place / "put" / name).exists():
            if not before.cpu and not filecmp.cmp(sent, self._big, shallow=False):
                return "the server has received something else"
            sent.unlink()
        return Measured(
            [*before.cpu, told["cpu"] / told["requests"]],
            [*before.wall, told["wall"] / told["requests"]],
            [*before.ports, self._nginx.accepted() - accepted],
            [*before.requests, told["total"]],
            before.memory if before.cpu else told["memory"],
        )


def turned(names: Sequence[str], number: int) -> Iterator[str]:
    """Yield all names, in each round from another one on: nobody always follows the same one after the same time."""
    for at in range(len(names)):
        yield names[(number + at) % len(names)]


class Nginx:
    """nginx with a configuration of ours, one process, on one core; with an address for each client.

    *place* is the directory of all its files; "big" in it is served, and "put" takes what is uploaded. *ca* is the
    file of the CA, None where trustme is not installed.
    """

    def __init__(self, place: Path, addresses: dict[str, str], core: int | None) -> None:
        self._place, self._addresses, self._core = place, addresses, core
        self._status, self._plain, self._tls = random.sample(SERVER_PORTS, 3)
        self.ca = self._certify()

    def start(self) -> None:
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"  # where Debian keeps servers
        program = shutil.which("nginx", path=path)
        if program is None:
            sys.exit("nginx is not installed: apt-get install nginx-light, or put it on the PATH")
        config = self._place / "nginx.conf"
        config.write_text(self._config())
        # The kernel kills it when we die (PR_SET_PDEATHSIG = 1); this and the core survive exec.
        begin = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); core = sys.argv[1]; "
        begin += "core and os.sched_setaffinity(0, {int(core)}); os.execv(sys.argv[2], sys.argv[2:])"
        core = "" if self._core is None else str(self._core)
        command = [
            sys.executable,
            "-c",
            begin,
            core,
            program,
            "-p",
            str(self._place),
            "-c",
            str(config),
            "-e",
            "stderr",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._asking = http.client.HTTPConnection(STATUS, self._status, timeout=START)
        deadline = time.monotonic() + START
        while True:
            try:
                self.accepted()
                return
            except ConnectionRefusedError:
                self._asking.close()
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                sys.exit(f"nginx does not start (exit code {self._process.returncode}); what it says stands above")
            time.sleep(0.01)

    def stop(self) -> None:
        self._asking.close()
        self._process.kill()
        self._process.wait()

    def where(self, client: str) -> tuple[str, int, int]:
        """Return the address for *client*, and the ports, plain and TLS."""
        return self._addresses[client], self._plain, self._tls

    def accepted(self) -> int:
        """Return how many connections there have been; asked over one that is kept, so that the asking adds none."""
        self._asking.request("GET", "/")
        text = self._asking.getresponse().read().decode()
        found = re.search(r"requests\n (\d+) ", text)
        assert found, text
        return int(found[1])

    def _certify(self) -> str | None:
        try:
            import trustme  # optional
        except ImportError:
            return None
        authority = trustme.CA()
        leaf = authority.issue_cert(*self._addresses.values())
        authority.cert_pem.write_to_path(self._place / "ca.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(self._place / "server.pem")
        return str(self._place / "ca.pem")

    def _config(self) -> str:
        place, addresses = self._place, self._addresses.values()
        root = os.geteuid() == 0
        listen = [f"listen {address}:{self._plain} backlog=4096;" for address in addresses]
        if self.ca:
            listen += [f"listen {address}:{self._tls} ssl backlog=4096;" for address in addresses]
            listen.append(f"ssl_certificate {place}/server.pem; ssl_certificate_key {place}/server.pem;")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        fields = {"Cache-Control": "no-cache", "X-Request-Id": "5f0c9a7e41d24b6d", "Vary": "Accept-Encoding"}
        return "\n".join(
            [
                f"daemon off; master_process off; worker_processes 1; error_log stderr; pid {place}/nginx.pid;",
                "user root;" if root else "",
                "events { worker_connections 16384; }",
                "worker_rlimit_nofile 20000;" if root else "",
                "http {",
                *(f"{kind}_temp_path {place}/{kind};" for kind in kinds),
                "access_log off; keepalive_timeout 3600; keepalive_requests 100000000; sendfile on; tcp_nodelay on;",
                "ssl_protocols TLSv1.2 TLSv1.3; output_buffers 4 256k;",
                "client_max_body_size 0; client_body_buffer_size 1m;",
                f"server {{ listen {STATUS}:{self._status}; location / {{ stub_status; }} }}",
                "server {",
                *listen,
                "location /small { default_type application/json;",
                *(f"add_header {name} '{value}';" for name, value in fields.items()),
                f"return 200 '{SMALL}'; }}",
                f"location /big {{ root {place}; default_type application/octet-stream; }}",
                # PUT reads a body to its end, as `return 200` does not.
                f"location /put/ {{ root {place}; dav_methods PUT; create_full_put_path on; }}",
                "}}",
            ]
        )


if __name__ == "__main__":
    main()
