"""How fast HTTP clients are, side by side: the same work by each, asked of nginx.

Run: python benchmarks/peers.py [--case a,g-tls,...] [--clients fewports,urllib3,...] [--json]    (10 minutes)
     python benchmarks/peers.py --case a --rounds 15 --seconds 0.5    (one case, with less noise)

nginx, one process, has one core; the client has another one, and a process of its own for each case. All clients
take a turn in each round, and medians over the rounds are compared. A round makes the client anew, asks some hundred
times to warm it up, and looks at what came. CPU time is the figure to go by: time on the clock is the server's, too.

cases:
  a  one thread, one kept connection: GET, a body of 200 bytes, 8 fields in the response's head
  b  16 threads on one pool, manager or session, which is told to keep 16 connections if it has to be told;
     http.client, pycurl and sockets cannot be shared, and have one for each thread
  c  a over TLS, the certificate verified
  d  64 tasks on one async client, which may have 64 connections; on asyncio, and on trio where the name says so;
     fewports.AsyncTransport stands under httpx2.AsyncClient
  e  d over TLS and HTTP/2, all tasks on one connection
  f  16 or 64 threads over TLS and HTTP/2, all on one connection (f-16, f-64)
  h  10,000 requests launched at once, each in a task of its own, on a client that may have 100 connections; where the
     name says budget, it is the ledger that bounds them (budget=100), else the pool (maxsize=100, block=True)
  n  a with a new connection for each request (Connection: close)
  g  a download of 100 MB: in pieces of 64 KiB or of 1 MiB (g-64k, g-1m) or read at once (g-whole); and over TLS
     (g-tls-64k, g-tls-1m, g-tls-whole)
  j  a download of 100 MB over TLS and HTTP/2: in pieces of 64 KiB (j-64k), read at once (j-whole), or eight at once
     on one connection (j-8; the figures are those of one), by tasks of httpx, whose threads would time out, and by
     threads of ours
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
  KB each          what the first launch added to it, for each request: its task, and what the client needs
The reference is urllib3.PoolManager in a, b, c, n, g, u; for fewports.HTTPConnectionPool it is urllib3's, for
fewports.Session requests'. It is aiohttp in d and h, httpx2.AsyncClient in e, httpcore in f, httpx in j; for
fewports.AsyncTransport httpx2's own transport, and for what runs on trio httpx2 on trio.

A round in which a client fails is made again, three times at most, and told.

Needs Linux and nginx (Debian: apt-get install nginx-light), and trustme for TLS. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peer_bench import Bench
from peer_cases import CASES, Case, Kind, lacking, missing
from peer_tables import figures, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = {name: kind for case in CASES for name, kind in case.kinds.items()}
    known = f"any of: {', '.join(every)}; or the first part of such names"
    parser.add_argument("--case", type=listed, metavar="CASE,...", help="only these: a, g, g-tls, u-file, ...")
    parser.add_argument("--clients", type=listed, metavar="NAME,...", help=known)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=0.15, metavar="S", help="for a client in a round; default: %(default)s"
    )
    parser.add_argument(
        "--megabytes", type=int, default=100, metavar="MB", help="size of big bodies; default: %(default)s"
    )
    parser.add_argument(
        "--launched", type=int, default=10_000, metavar="N", help="requests at once in case h; default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("this needs Linux")
    cases = [case for case in CASES if case.name in choose(parser, arguments.case, [case.name for case in CASES], "-")]
    chosen = choose(parser, arguments.clients, list(every), ".")
    if min(arguments.rounds, arguments.megabytes, arguments.launched) < 1 or not arguments.seconds > 0:
        parser.error("--rounds, --megabytes, --launched and --seconds must be more than 0")
    kinds: dict[str, Kind] = {name: kind for case in cases for name, kind in case.kinds.items() if name in chosen}
    skipped = {name: why for name, kind in kinds.items() if (why := lacking(kind))}
    present = [name for name in kinds if name not in skipped]
    if not present:
        sys.exit(f"none of these clients is there: {', '.join(skipped) or ', '.join(chosen)}")
    if missing("trustme"):
        skipped |= {case.name: "pip install trustme" for case in cases if case.tls}
        cases = [case for case in cases if not case.tls]
    about = {
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "versions": versions([kinds[name] for name in present]),
        "skipped": skipped,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "megabytes": arguments.megabytes,
        "launched": arguments.launched,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave through each `with`: the files lie in memory
    with tempfile.TemporaryDirectory(prefix="fewports-peers-", dir=memory(arguments.megabytes)) as place:
        bench = Bench(Path(place), present, arguments)
        if not report(bench, [case for case in cases if set(case.kinds) & set(present)], about, as_json=arguments.json):
            sys.exit(1)


def listed(text: str) -> list[str]:
    return text.split(",")


def choose(parser: argparse.ArgumentParser, wanted: list[str] | None, names: list[str], end: str) -> list[str]:
    """Return those of *names* that are wanted, by the whole name or by what stands before *end*."""
    for part in wanted or ():
        if not any(name == part or name.startswith(part + end) for name in names):
            parser.error(f"there is no {part!r}; there are {', '.join(names)}")
    return [n for n in names if not wanted or any(n == part or n.startswith(part + end) for part in wanted)]


def versions(kinds: Sequence[Kind]) -> dict[str, str]:
    told = {}
    for library in dict.fromkeys(library for kind in kinds for library in kind.needs):
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
            told = {name: figures(case, name, outcomes, about["launched"]) for name in outcomes}
            collected["cases"][case.name] = {"text": case.text, "clients": told}
            if not as_json:
                print(f"\n{case.name}: {case.text}\n\n{table(case, told, bench.megabytes)}", flush=True)
    if as_json:
        print(json.dumps(collected, indent=2))
    return good


if __name__ == "__main__":
    main()
