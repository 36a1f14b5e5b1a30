"""The parts of benchmarks/ports.py and peers.py work, in a tiny setting: what they measure is no matter of tests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from support import need

from fewports.cli.trial.namespace import NoNamespace
from fewports.cli.trial.run import Outcome
from fewports.cli.trial.work import Work

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ports

    return ports


@pytest.fixture
def port_picture(ports: ModuleType) -> ModuleType:
    import port_picture

    return port_picture


def measured(ports: ModuleType, work: Work) -> dict[str, Outcome | None]:
    try:
        return dict(ports.measure(ports.Scenario("tiny", "", work), 20))
    except NoNamespace as error:
        need.missing(str(error))


def outcome(done: int, failed: int, peak: int) -> Outcome:
    """Make up what four bursts of ten came to."""
    bursts = tuple((float(burst), 10 if 10 * burst < done else 0, 0 if 10 * burst < done else 10) for burst in range(4))
    error = "[Errno 99] Cannot assign requested address" if failed else None
    return Outcome(done, failed, error, 3.0, 0.01, peak, peak, peak, ((0.0, 0), (0.1, peak), (4.0, peak)), bursts)


def test_clients_do_the_same_work(ports: ModuleType) -> None:
    """Each client does all the requests where ports suffice; those of fewports leave no TIME_WAIT."""
    outcomes = {name: outcome for name, outcome in measured(ports, Work(2, 2, bursts=2)).items() if outcome}

    assert list(outcomes) == [name for name, *_ in ports.CLIENTS]
    assert {(outcome.done, outcome.failed) for outcome in outcomes.values()} == {(4, 0)}
    assert outcomes["requests.get"].opened == outcomes["requests.get"].time_wait == 4
    assert {outcome.time_wait for name, outcome in outcomes.items() if "fewports" in name} == {0}


def test_source_addresses_and_destinations(ports: ModuleType) -> None:
    """Clients that take a source address use each of them towards each destination; the others are left out."""
    work = Work(12, 12, destinations=2, sources=("127.0.0.2", "127.0.0.3", "127.0.0.4"))
    outcomes = measured(ports, work)

    assert [name for name, outcome in outcomes.items() if outcome is None] == ["requests.get", "urllib3.PoolManager"]
    assert {(outcome.done, outcome.failed) for outcome in outcomes.values() if outcome} == {(12, 0)}
    assert all(4 <= outcome.opened <= 12 for outcome in outcomes.values() if outcome)


def test_tables(ports: ModuleType) -> None:
    """Both tables have a line for each client; one that cannot take part has dashes."""
    rows = [ports.row("a", outcome(30, 10, 1200)), ports.row("b", None)]

    assert ports.plain_table(rows).split("\n")[2].split() == ["a", "30", "10", "1,200", "1,200", "1,200", "10", "333"]
    assert ports.plain_table(rows).split("\n")[3].split() == ["b", *"-------"]
    assert ports.markdown_table(rows).split("\n")[2] == "| `a` | 30 | 10 | 1,200 | 1,200 | 1,200 | 10 | 333 |"


@pytest.mark.parametrize("number", [0, 1])
def test_picture(port_picture: ModuleType, number: int) -> None:
    """The picture is well-formed SVG within its bounds; it names the clients and says who ran out."""
    outcomes = [outcome(20, 20, 200), outcome(30, 10, 200), outcome(40, 0, 10)]
    theme = port_picture.THEMES[number]
    root = ElementTree.fromstring(port_picture.draw(outcomes, Work(10, 10, bursts=4, every=1.0), theme))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    places = [(float(part.get("x", "0")), float(part.get("y", "0"))) for part in root.iter()]

    assert {"requests.get is out of ports", "requests.Session is out of ports"} < set(texts)
    assert "fewports: 10 ports, used again and again" in texts
    assert {"20 of 40", "30 of 40", "40 of 40"} < set(texts)
    assert all(0 <= x <= port_picture.WIDTH and 0 <= y <= port_picture.HEIGHT for x, y in places)


def test_picture_of_real_clients(port_picture: ModuleType) -> None:
    """What the picture shows is measured: three clients side by side, burst by burst."""
    try:
        outcomes = port_picture.measure(Work(2, 2, bursts=2, every=0.1))
    except NoNamespace as error:
        need.missing(str(error))

    assert [outcome.done for outcome in outcomes] == [4, 4, 4]
    assert [len(outcome.bursts) for outcome in outcomes] == [2, 2, 2]
    assert all(0.1 <= outcome.bursts[1][0] < 1 for outcome in outcomes)
    assert all(outcome.series for outcome in outcomes)


def test_command_line() -> None:
    """The help is the module's documentation, and names the scenarios."""
    run: subprocess.CompletedProcess[Any] = subprocess.run(
        [sys.executable, str(BENCHMARKS / "ports.py"), "--help"], capture_output=True, text=True
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert "tcp_tw_reuse=0" in run.stdout
    assert "{one-by-one,bursts,more-bursts,destinations,sources}" in run.stdout


def peers(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "peers.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def test_peers() -> None:
    """Clients are measured side by side: each one's figures, and how many times it is faster than its reference."""
    need.program("nginx")
    run = peers(
        "--case", "a", "--clients", "urllib3.PoolManager,fewports", "--rounds", "1", "--seconds", "0.05", "--json"
    )

    assert (run.returncode, run.stderr) == (0, "")
    told = json.loads(run.stdout)
    assert {"machine", "versions", "skipped", "rounds", "seconds", "megabytes", "launched", "cases"} == set(told)
    clients = told["cases"]["a"]["clients"]
    assert list(clients) == [
        "urllib3.PoolManager",
        "fewports.PoolManager",
        "fewports.HTTPConnectionPool",
        "fewports.Session",
    ]
    assert {client["ports"] for client in clients.values()} == {1}
    assert all(client["cpu_us"] > 0 and client["requests_per_second"] > 0 for client in clients.values())
    ours = clients["fewports.PoolManager"]
    assert ours["reference"] == "urllib3.PoolManager"
    assert [ours["ratio_least"], *ours["ratio_rounds"]] == [ours["ratio"]] * 3
    assert clients["urllib3.PoolManager"]["ratio"] == 1
    assert clients["fewports.Session"]["ratio"] is None  # requests takes no part


def test_peers_with_big_bodies() -> None:
    """What moves arrives whole, with the memory that it took; the table has a line for each client."""
    need.program("nginx")
    few = ("--clients", "socket,urllib3.PoolManager", "--rounds", "1", "--seconds", "0.01", "--megabytes", "2")
    run = peers("--case", "g-1m,g-whole,u", *few)

    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("\nurllib3.PoolManager ") == run.stdout.count("\nsocket ") == 4


def test_peers_with_tasks() -> None:
    """Clients of an event loop are measured side by side, those that there are; a crowd with the memory of each."""
    need.program("nginx")
    if not all(map(importlib.util.find_spec, ("aiohttp", "httpx2", "anyio"))):
        need.missing("no aiohttp, httpx2 or anyio here")
    few = ("--clients", "aiohttp,httpx2,fewports", "--rounds", "1", "--seconds", "0.01", "--launched", "200")
    run = peers("--case", "d,h", *few, "--json")

    assert run.returncode == 0, run.stderr + run.stdout
    cases = json.loads(run.stdout)["cases"]
    assert {"aiohttp.ClientSession", "httpx2.AsyncClient"} <= set(cases["d"]["clients"])
    assert {client["ports"] for client in cases["d"]["clients"].values()} == {64}
    assert {client["ports"] for client in cases["h"]["clients"].values()} == {100}
    assert all(client["kb_each"] > 0 for client in cases["h"]["clients"].values())


def test_peers_with_http2() -> None:
    """Over HTTP/2 the threads of a client take one port."""
    need.program("nginx")
    run = peers("--case", "f-16,j-64k", "--clients", "fewports", "--rounds", "1", "--megabytes", "2", "--json")

    assert run.returncode == 0, run.stderr + run.stdout
    cases = json.loads(run.stdout)["cases"]
    assert list(cases["f-16"]["clients"]) == ["fewports.PoolManager", "fewports.Session"]
    assert {client["ports"] for client in cases["f-16"]["clients"].values()} == {1}
    assert all(client["memory_mb"] >= 0 for client in cases["j-64k"]["clients"].values())


def test_peers_names() -> None:
    """A client or a case that there is not is refused, with the names of those that there are."""
    unknown = peers("--clients", "urllib4")

    assert unknown.returncode == 2
    assert "there is no 'urllib4'; there are socket, http.client" in unknown.stderr


def test_peers_without_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nginx it says how to come by it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers

    monkeypatch.setattr(peers.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["peers.py", "--clients", "socket", "--megabytes", "1"])

    with pytest.raises(SystemExit, match="apt-get install nginx-light"):
        peers.main()
