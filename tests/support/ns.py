"""Run test code in a fresh network namespace with a small ephemeral range.

The code runs in a new interpreter, so that nothing of the test process (sockets, ledgers, cached facts about the
kernel) is in it. The namespace ends with it, and with it every TIME_WAIT.
"""

from __future__ import annotations

import functools
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import pytest

from support import need

P = ParamSpec("P")
T = TypeVar("T")

# Loopback frees a TIME_WAIT after 1 s by default (tcp_tw_reuse=2), every other network after 60 s. Ours shall be like
# the others.
TW_REUSE = "net.ipv4.tcp_tw_reuse"


@dataclass(frozen=True)
class Network:
    """What the namespace is like. Routes and addresses come on top of 127/8 and ::1."""

    low: int = 40000
    high: int = 40049
    sysctls: Mapping[str, int | str] = field(default_factory=dict)
    drop_all: bool = False
    addresses: Sequence[str] = ()
    local_prefixes: Sequence[str] = ()


@dataclass(frozen=True)
class Call:
    """What the inner process shall do; found again by name, hence module-level functions only."""

    module: str
    name: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    network: Network
    timeout: float


@dataclass(frozen=True)
class Outcome:
    """How the call ended: kind is "returned", "raised" or "skipped"; text is the traceback or the reason."""

    kind: str
    result: object = None
    text: str = ""


def run_in_namespace(
    function: Callable[..., T],
    *args: object,
    low: int = 40000,
    high: int = 40049,
    sysctls: Mapping[str, int | str] | None = None,
    drop_all: bool = False,
    addresses: Sequence[str] = (),
    local_prefixes: Sequence[str] = (),
    timeout: float = 50.0,
) -> T:
    """Call a module-level function in a new network namespace and return what it returns.

    Whatever it raises, leaves unraised in a thread or a finalizer, or warns of, fails the test with the inner
    traceback. *drop_all* adds 10.200.0.1, fd00:200::1 and default routes that swallow everything, so that connects to
    foreign addresses time out. *local_prefixes* are networks whose every address is local. *timeout* is in seconds.
    """
    network = Network(low, high, {TW_REUSE: 0, **(sysctls or {})}, drop_all, tuple(addresses), tuple(local_prefixes))
    return _run(function, args, {}, network=network, timeout=timeout)


def in_namespace(
    *,
    low: int = 40000,
    high: int = 40049,
    sysctls: Mapping[str, int | str] | None = None,
    drop_all: bool = False,
    addresses: Sequence[str] = (),
    local_prefixes: Sequence[str] = (),
    timeout: float = 50.0,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Run the decorated test in a namespace, as run_in_namespace() does; its arguments must be picklable."""
    network = Network(low, high, {TW_REUSE: 0, **(sysctls or {})}, drop_all, tuple(addresses), tuple(local_prefixes))

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def outside(*args: P.args, **kwargs: P.kwargs) -> T:
            return _run(function, args, kwargs, network=network, timeout=timeout)

        return outside

    return decorate


def _run(
    function: Callable[..., T],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    network: Network,
    timeout: float,
) -> T:
    call = Call(function.__module__, function.__qualname__, args, kwargs, network, timeout)
    with tempfile.TemporaryDirectory(prefix="fewports-ns-") as directory:
        place = Path(directory)
        # Two pickles: the second can be loaded once the path is known.
        (place / "call").write_bytes(pickle.dumps(sys.path) + pickle.dumps(call))
        code = _spend(place, timeout)
        try:
            outcome = cast(Outcome, pickle.loads((place / "outcome").read_bytes()))
        except FileNotFoundError:
            pytest.fail(_no_outcome(call, code), pytrace=False)
    if outcome.kind == "skipped":
        need.missing(outcome.text)
    if outcome.kind == "raised":
        pytest.fail(f"in the namespace of {call.name}:\n{outcome.text}", pytrace=False)
    return cast(T, outcome.result)


def _spend(place: Path, timeout: float) -> int | None:
    """Run the inner process; return its exit code, or None if it had to be killed for its time."""
    start = "import sys; sys.path[:0] = [sys.argv[2]]; from support.inside import main; main(sys.argv[1])"
    command = [*_unshare(), sys.executable, "-W", "error", "-c", start, str(place), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ended = False
    pidfd = os.pidfd_open(process.pid)
    try:
        ended = bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)
        # Before the leader is reaped, so that the number of the group cannot be another's yet.
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code if ended else None


def _no_outcome(call: Call, code: int | None) -> str:
    what = f"was killed after {call.timeout} s" if code is None else f"ended with exit code {code}"
    return f"the process in the namespace of {call.name} {what}; see the captured stderr"


@functools.cache
def _namespaces() -> list[str] | str:
    """Return the command that makes a network namespace, or why there is none."""
    unshare = need.program("unshare")
    command = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--user", "--map-root-user", "--net"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    return command if tried.returncode == 0 else f"no network namespace here: {tried.stderr.strip()}"


def _unshare() -> list[str]:
    command = _namespaces()
    return need.missing(command) if isinstance(command, str) else command
