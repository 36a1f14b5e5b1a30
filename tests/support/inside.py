"""The process in the namespace: sets the network up, calls the function, tells how it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import pickle
import resource
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import cast

import pytest

from support import need, rtnetlink
from support.ledgers import disagreements
from support.ns import Call, Network, Outcome

# The default routes of drop_all leave through a cable that nobody listens at.
HOLE = "hole0"
HOLE_ADDRESSES = ("10.200.0.1", "fd00:200::1")


def main(directory: str) -> None:
    """Carry out the call that lies in *directory* and leave the outcome beside it."""
    place = Path(directory)
    with (place / "call").open("rb") as file:
        sys.path[:] = pickle.load(file)
        call: Call = pickle.load(file)
    faulthandler.dump_traceback_later(call.timeout * 0.95)
    outcome = _outcome(call)
    try:
        data = pickle.dumps(outcome)
    except Exception:
        data = pickle.dumps(Outcome("raised", text=f"the result cannot be pickled: {outcome.result!r}"))
    (place / "outcome.part").write_bytes(data)
    (place / "outcome.part").rename(place / "outcome")


def set_up(network: Network) -> None:
    """Make the namespace what *network* says."""
    rtnetlink.set_up("lo")
    _sysctl("net.ipv4.ip_local_port_range", f"{network.low} {network.high}")
    for name, value in network.sysctls.items():
        _sysctl(name, str(value))
    for address in network.addresses:
        rtnetlink.add_address(address, "lo")
    for prefix in network.local_prefixes:
        rtnetlink.add_local_prefix(prefix)
    if network.drop_all:
        _drop_all()
    # 500 connections need more than the usual soft limit leaves.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _drop_all() -> None:
    try:
        rtnetlink.add_pair(HOLE, "hole1")
    except OSError as error:
        need.missing(f"no veth link here: {error}")
    rtnetlink.set_up("hole1")
    # Without ARP a packet leaves at once, with no station's address on it: the other end drops it unanswered. With
    # ARP the connect would end with EHOSTUNREACH after 3 s.
    rtnetlink.set_up(HOLE, arp=False)
    for address, family in zip(HOLE_ADDRESSES, (socket.AF_INET, socket.AF_INET6), strict=True):
        if family == socket.AF_INET or Path("/proc/sys/net/ipv6").exists():
            rtnetlink.add_address(address, HOLE)
            rtnetlink.add_default_route(HOLE, family)


def _sysctl(name: str, value: str) -> None:
    Path("/proc/sys", *name.split(".")).write_text(value)


def _outcome(call: Call) -> Outcome:
    late: list[str] = []
    sys.unraisablehook = lambda lost: late.append(_told(lost.exc_value, f"not raised, in {lost.object!r}"))
    threading.excepthook = lambda lost: late.append(_told(lost.exc_value, f"not raised, in {lost.thread!r}"))
    try:
        set_up(call.network)
        result = _function(call)(*call.args, **call.kwargs)
    except pytest.skip.Exception as skip:
        return Outcome("skipped", text=str(skip))
    except BaseException as error:
        return Outcome("raised", text=_told(error, ""))
    gc.collect()  # an unclosed socket warns, and so fails, when it is collected
    late += disagreements()
    return Outcome("raised", text="\n".join(late)) if late else Outcome("returned", result)


def _function(call: Call) -> Callable[..., object]:
    module = importlib.import_module(call.module)
    found: object = functools.reduce(getattr, call.name.split("."), module)
    # The name may be bound to what in_namespace() made of it.
    return cast(Callable[..., object], getattr(found, "__wrapped__", found))


def _told(error: BaseException | None, where: str) -> str:
    """Return the traceback with the local variables of the frames, as nobody rewrites our asserts in here."""
    if error is None:
        return where
    trace: TracebackType | None = error.__traceback__
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    told = traceback.TracebackException(type(error), error, trace, capture_locals=True)
    with contextlib.suppress(Exception):
        return "".join([where, *told.format()])
    return f"{where}{error!r}"
