"""The house keeps its floors: who imports whom, who asks the system, who reads a clock, and how long a file is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src" / "fewports"
# Inside a floor the order is that of building: dial needs what gated opens, requests and socks build on urllib3's face.
FLOORS = {
    "address": 0.0,
    "usage": 0.0,
    "errors": 1.0,
    "alert": 1.0,
    "events": 1.0,
    "kernel": 2.0,
    "budget": 2.0,
    "source": 2.0,
    "ledger": 3.0,
    "sharing": 3.9,
    "http1": 4.0,
    "http2": 4.1,
    "gated": 4.0,
    "pool": 4.0,
    "dial": 4.1,
    "standing": 4.15,
    "dialing": 4.2,
    "sync": 5.0,
    "aio": 5.1,
    "tcp": 6.0,
    "_own": 6.0,
    "urllib3": 6.1,
    "socks": 6.2,
    "_prepared": 6.2,
    "requests": 6.3,
    "httpx": 6.3,
    "cli": 7.0,
    "testing": 7.0,
    "__main__": 8.0,
    "__init__": 9.0,
}
# gated: a socket is closed by whoever has it, who could not pass the time. ledger: usage() is for people.
CLOCKS = {
    *("gated", "ledger", "sync", "aio", "tcp", "urllib3", "socks", "_prepared", "requests", "httpx", "cli", "testing"),
}
MODULES = sorted(HOUSE.rglob("*.py"))


def part(path: Path) -> str:
    """Return the module or package of the first level that *path* belongs to."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return which parts of the house a module imports; "" is the root."""
    found: set[str] = set()
    package = path.relative_to(HOUSE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level]
            names = node.module.split(".") if node.module else []
            target = [*base, *names]
            found |= {target[0]} if target else {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fewports":
            found.add([*node.module.split("."), ""][1])
        elif isinstance(node, ast.Import):
            found |= {[*alias.name.split("."), ""][1] for alias in node.names if alias.name.split(".")[0] == "fewports"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_module_imports_from_lower_floors_only(path: Path) -> None:
    """Each module imports from lower floors and its own package; nobody imports the root."""
    here = part(path)
    for other in imported(path) - {here}:
        assert other in FLOORS, f"{path} imports {other or 'the root'}"
        assert FLOORS[other] < FLOORS[here], f"{here} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_only_the_kernel_package_asks_the_system(path: Path) -> None:
    """/proc, sysctls and netlink are read in kernel/; cli/ sets up the namespace of the demo, a system of its own."""
    text = path.read_text()
    if part(path) not in ("kernel", "cli"):
        code = "".join(
            ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Call, ast.Name))
        )

        assert "/proc" not in code
        assert "AF_NETLINK" not in code


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_clocks_are_read_where_somebody_waits(path: Path) -> None:
    """Time is an argument below the floor that waits, but for the places that say why."""
    if part(path) not in CLOCKS:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}

        assert not names & {"monotonic", "time", "sleep", "perf_counter"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_long_module_says_why(path: Path) -> None:
    """A module past 400 lines justifies itself in its header, and the longest, the ledger, grows no more."""
    lines = len(path.read_text().splitlines())

    assert lines <= 600
    if lines > 400:
        assert "Long" in (ast.get_docstring(ast.parse(path.read_text())) or "")
