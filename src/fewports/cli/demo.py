"""``fewports demo``: a client as everybody writes it runs out of ports; the same work through fewports does not."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import dataclass
from typing import Any

from .picture import ASCII, AXIS, BRAILLE, LIMIT, Curve, draw
from .screen import Screen, screen
from .trial import clients
from .trial.namespace import NoNamespace
from .trial.run import FIRST_PORT, SERVER_PORT, Outcome, TrialFailed, run
from .trial.work import Work

THREADS = 8
SECONDS = 7.0  # for each client: two of them, and what is around, stay under 20 s
WATCH = 0.7  # seconds to look at the ports after a client has gone
MOST_PORTS, MOST_REQUESTS = 20_000, 100_000
HEIGHT = 12  # rows of the picture

HELP = "run a plain client out of local ports, and fewports not; no network, no root"
DESCRIPTION = f"""\
Set two clients to the same work: {THREADS} threads against a local HTTP server, in a
network namespace with few local ports. requests.get runs out of them (a new
urllib3.PoolManager for each request, if requests is not installed);
fewports.PoolManager does not. Each has {SECONDS:g} seconds. Nothing outside of the
namespace is touched, and nothing is left.

Where the system allows no network namespace, the host's own ports are used, of
which there are too many to run out. Then --ports is the budget of fewports, and
the other client is only counted.
"""
EPILOG = """\
the JSON object:
  ok            whether fewports did all requests
  reason        why not, or null
  namespace     whether there was a network namespace
  no_namespace  why not, or null
  requests, threads
                the work of each client
  ports         the local ports of the namespace; null without one
  budget        the budget of fewports; null for the default, 80 % of the ports
  clients       the two of them, each with
    client, done, failed
    error               what the system said to the first that failed, or null
    seconds             until the last answer
    requests_per_second
    cpu_us_per_request  of the client's process
    ports_opened        how many different ones, as the server saw them
    ports_at_most       held at one time, as the kernel counts them
    ports_in_time_wait  left when the client had gone, as the kernel counts them
    series              [seconds, ports held] at each change

exit codes:
  0    fewports did all requests
  1    it did not, or nothing could be run; the standard error says why
  2    wrong arguments
  130  interrupted
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What both clients did, and where."""

    no_namespace: str | None
    naive: Outcome
    ours: Outcome


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help=HELP,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--requests", type=_number(MOST_REQUESTS), default=2000, metavar="N", help="requests of each client (2000)"
    )
    parser.add_argument(
        "--ports", type=_number(MOST_PORTS), default=200, metavar="N", help="local ports of the namespace (200)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, described below, and nothing else")
    parser.set_defaults(run=command)


def command(arguments: argparse.Namespace) -> int:
    """Run the demo, print it, and return the exit code."""
    requests, ports = arguments.requests, arguments.ports
    out = None if arguments.json else screen()
    try:
        result = _both(requests, ports, out)
    except TrialFailed as error:
        print(f"fewports demo: {error}", file=sys.stderr)
        return 1
    reason = _reason(result.ours, requests)
    if out is None:
        print(json.dumps(_told(result, requests, ports, reason)))
    else:
        _show(result, ports, out)
    if reason:
        print(f"fewports demo: {reason}", file=sys.stderr)
    return 1 if reason else 0


def naive() -> tuple[str, str]:
    """Return the client that everybody writes, as it is called and as a trial finds it."""
    if importlib.util.find_spec("requests"):
        return "requests.get", clients.requests_get.__name__
    return "urllib3, a pool per request", clients.urllib3_each.__name__


OURS = "fewports.PoolManager", clients.fewports_manager.__name__


def _both(requests: int, ports: int, out: Screen | None) -> Result:
    name, client = naive()
    no_namespace = None
    if out:
        out.say(f"{requests:,} requests from {THREADS} threads to one server, twice: by {name}, and by {OURS[0]}.")
    try:
        first = _run(client, requests, ports, None)
    except NoNamespace as error:
        no_namespace = str(error)
        first = _run(client, requests, ports, ports)
    if out:
        out.say()
        out.say(_place(no_namespace, ports))
    return Result(no_namespace, first, _run(OURS[1], requests, ports, ports if no_namespace else None))


def _run(client: str, requests: int, ports: int, budget: int | None) -> Outcome:
    work = Work(requests, THREADS, budget=budget, limit=SECONDS)
    return run(f"{clients.__name__}:{client}", work, ports=ports, isolated=budget is None, watch=WATCH)


def _place(no_namespace: str | None, ports: int) -> str:
    if no_namespace is None:
        last = FIRST_PORT + ports - 1
        return (
            f"Each has a network namespace of its own, with {_ports(ports)} ({FIRST_PORT} to {last}) towards "
            f"127.0.0.1:{SERVER_PORT}. A port that a client closes is held for 60 s more (TIME_WAIT), as on any "
            "network but loopback."
        )
    return (
        f"No network namespace can be made here ({no_namespace}). So the host's own ports are used, and nobody runs "
        f"out: the first client is only counted, fewports is held to a budget of {ports:,}. The ports that the first "
        "one leaves in TIME_WAIT are free again in a minute, and until then lost to the demo's own server only."
    )


def _reason(ours: Outcome, requests: int) -> str | None:
    if ours.failed:
        return f"fewports failed {ours.failed:,} of {requests:,} requests: {ours.error}"
    if ours.done < requests:
        return f"the time was up after {SECONDS:g} s, with {ours.done:,} of {requests:,} requests done: ask for fewer"
    return None


def _told(result: Result, requests: int, ports: int, reason: str | None) -> dict[str, Any]:
    isolated = result.no_namespace is None
    return {
        "ok": reason is None,
        "reason": reason,
        "namespace": isolated,
        "no_namespace": result.no_namespace,
        "requests": requests,
        "threads": THREADS,
        "ports": ports if isolated else None,
        "budget": None if isolated else ports,
        "clients": [_client(naive()[0], result.naive), _client(OURS[0], result.ours)],
    }


def _client(name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "client": name,
        "done": outcome.done,
        "failed": outcome.failed,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 4),
        "requests_per_second": round(outcome.rate, 1),
        "cpu_us_per_request": round(outcome.cpu / outcome.done * 1e6, 1) if outcome.done else None,
        "ports_opened": outcome.opened,
        "ports_at_most": outcome.peak,
        "ports_in_time_wait": outcome.time_wait,
        "series": [[round(at, 3), number] for at, number in outcome.series],
    }


def _show(result: Result, ports: int, out: Screen) -> None:
    both = ((naive()[0], result.naive), (OURS[0], result.ours))
    out.say()
    out.table(
        ("client", "done", "failed", "ports at most", "in TIME_WAIT", "requests/s"),
        [
            (
                name,
                f"{outcome.done:,}",
                f"{outcome.failed:,}",
                "?" if outcome.peak is None else f"{outcome.peak:,}",
                "?" if outcome.time_wait is None else f"{outcome.time_wait:,}",
                f"{outcome.rate:,.0f}",
            )
            for name, outcome in both
        ],
    )
    out.say()
    if not all(outcome.series for _, outcome in both):
        out.say("This system does not tell which ports are held, so there is no picture.")
    else:
        out.say("Local ports held, as the kernel counts them every 10 ms:")
        out.picture(_picture(result, ports, out), COLOURS)
    out.say()
    out.say(_summary(result, ports))


COLOURS = {"naive": "bright_red", "ours": "bright_cyan", LIMIT: "yellow", AXIS: "dim"}


def _picture(result: Result, ports: int, out: Screen) -> list[list[tuple[str, str]]]:
    naive_label = f"{naive()[0].split(',')[0]}: {result.naive.peak:,}"
    curves = [
        Curve("naive", naive_label, "#", result.naive.series),
        Curve("ours", f"fewports: {result.ours.peak:,}", "o", result.ours.series),
    ]
    limit = f"the budget: {_ports(ports)}" if result.no_namespace else f"all there are: {_ports(ports)}"
    return draw(curves, ports, limit, width=out.width, height=HEIGHT, style=BRAILLE if out.unicode else ASCII)


def _summary(result: Result, ports: int) -> str:
    first, ours, name = result.naive, result.ours, naive()[0]
    if first.failed:
        opening = f"{name} opened a connection for each request, until connect() failed: {first.error}."
    elif result.no_namespace:
        opening = f"{name} took {_ports(first.opened)}; with {ports:,} it would have died on the way."
    else:
        opening = f"{name} took {first.opened:,} of {_ports(ports)}, and came through: give it more --requests."
    return f"{opening} fewports made do with {_ports(ours.opened)}."


def _ports(number: int) -> str:
    return "1 port" if number == 1 else f"{number:,} ports"


def _number(most: int) -> Any:
    """Return what reads an option: a number from 1 to *most*."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else 0
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return value

    return read
