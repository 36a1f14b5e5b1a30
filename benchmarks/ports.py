"""What clients do to the local ports: the same work by each, in a network namespace with 200 of them.

Run: python benchmarks/ports.py [--scenario NAME ...] [--json | --markdown]
     python benchmarks/ports.py --svg docs

Each client has a fresh process, server and namespace (200 local ports; tcp_tw_reuse=0, so that a port
closed by the client is held for 60 s, as on any network but loopback). Needs root, or unprivileged
user namespaces.

columns:
  done, failed  requests. Where some failed, the client had run out of ports.
  ports         different local ports (per destination) that reached the server: consumed
  at once       most ports held at one time, as the kernel counts them
  TIME_WAIT     ports left when the client had gone, as the kernel counts them
  requests/s    until the last answer, so that failing costs nothing. In bursts the server takes 20 ms
                for an answer, so that all of a burst is under way at once.
  CPU us        microseconds of the client's process per request done, until the last answer
  -             the client cannot be told from which address to connect
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import port_clients
import port_picture

from fewports.cli.trial import clients
from fewports.cli.trial.namespace import NoNamespace
from fewports.cli.trial.run import Outcome, run
from fewports.cli.trial.work import Client, Work

PORTS = 200
PAUSE = 0.02  # seconds that the server takes for an answer in bursts: as a near service does
BOUND = ("127.0.0.2",)
THREE = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


class Scenario(NamedTuple):
    """The same work for each client, and how long the server takes for an answer."""

    name: str
    text: str
    work: Work
    pause: float = PAUSE


SCENARIOS = (
    Scenario("one-by-one", "1,000 requests, one by one", Work(1000, 1), 0.0),
    Scenario("bursts", "6 bursts of 40", Work(40, 40, 6)),
    Scenario("more-bursts", "25 bursts of 40", Work(40, 40, 25)),
    Scenario(
        "destinations",
        "6 bursts of 40 to each of 3 destinations, from one bound source address",
        Work(120, 120, 6, destinations=3, sources=BOUND),
    ),
    Scenario(
        "sources", "25 bursts of 120 to one destination, from 3 source addresses", Work(120, 120, 25, sources=THREE)
    ),
)

# Name, what a trial calls, and whether it can be told where to connect from.
CLIENTS: tuple[tuple[str, Client, bool], ...] = (
    ("requests.get", clients.requests_get, False),
    ("requests.Session", port_clients.session, True),
    ("urllib3.PoolManager", port_clients.manager, False),
    ("urllib3.PoolManager, source_address", port_clients.bound_manager, True),
    ("fewports.PoolManager", clients.fewports_manager, True),
    ("fewports.requests.Session", port_clients.fewports_session, True),
)

HEAD = ("client", "done", "failed", "ports", "at once", "TIME_WAIT", "requests/s", "CPU us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenario", action="append", choices=names, help="only this one; may be given again")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    output.add_argument(
        "--svg", type=Path, metavar="DIR", help="write the README's picture to ports-light.svg and ports-dark.svg"
    )
    arguments = parser.parse_args()
    try:
        if arguments.svg:
            port_picture.write(arguments.svg)
        else:
            chosen = [scenario for scenario in SCENARIOS if scenario.name in (arguments.scenario or names)]
            report(chosen, markdown=arguments.markdown, as_json=arguments.json)
    except NoNamespace as error:
        sys.exit(f"no network namespace can be made here: {error}")


def report(scenarios: list[Scenario], *, markdown: bool, as_json: bool) -> None:
    """Measure, and print each table as soon as it is there."""
    table = markdown_table if markdown else plain_table
    collected: dict[str, Any] = {"machine": machine(), "ports": PORTS, "scenarios": {}}
    if not as_json:
        print(machine())
    for scenario in scenarios:
        outcomes = dict(measure(scenario))
        if as_json:
            told = {name: outcome and figures(outcome) for name, outcome in outcomes.items()}
            collected["scenarios"][scenario.name] = {"text": scenario.text, "clients": told}
            continue
        print(f"\n{'### ' if markdown else ''}{scenario.text}\n")
        print(table([row(name, outcome) for name, outcome in outcomes.items()]), flush=True)
    if as_json:
        print(json.dumps(collected, indent=2))


def measure(scenario: Scenario, ports: int = PORTS) -> Iterator[tuple[str, Outcome | None]]:
    """Yield what became of each client; None for one that cannot be told where to connect from."""
    for name, client, binds in CLIENTS:
        if scenario.work.sources and not binds:
            yield name, None
        else:
            yield name, run(where(client), scenario.work, ports=ports, isolated=True, pause=scenario.pause, watch=0.2)


def where(client: Callable[..., object]) -> str:
    """Return the name by which a trial finds *client*."""
    return f"{client.__module__}:{client.__name__}"


def figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "done": outcome.done,
        "failed": outcome.failed,
        "error": outcome.error,
        "ports": outcome.opened,
        "at_once": outcome.peak,
        "time_wait": outcome.time_wait,
        "requests_per_second": round(outcome.rate),
        "cpu_us_per_request": round(outcome.cpu / outcome.done * 1e6) if outcome.done else None,
    }


def row(name: str, outcome: Outcome | None) -> tuple[str, ...]:
    if outcome is None:
        return (name, *["-"] * (len(HEAD) - 1))
    told = figures(outcome)
    del told["error"]
    return (name, *(f"{value:,}" for value in told.values()))


def plain_table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = []
    for first, *rest in (HEAD, *rows):
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *((f"`{name}`", *cells) for name, *cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("urllib3", "requests", "fewports"))
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, {libraries}"


if __name__ == "__main__":
    main()
