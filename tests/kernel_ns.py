"""A network namespace of one's own with a few ports, and what tests do in it. Needs no iproute2."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import listeners

from fewports.address import Destination, Flow, family_of, from_sockaddr, sockaddr
from fewports.kernel import diag, options

PRELUDE = "import json, os, socket, struct, time\nfrom kernel_ns import *\n"


def in_namespace(code: str, ports: tuple[int, int] = (40000, 40049), sysctls: dict[str, object] | None = None) -> Any:
    """Run *code* in a new network namespace with lo up; return what it passed to ``answer``."""
    settings = {"ip_local_port_range": f"{ports[0]} {ports[1]}", **(sysctls or {})}
    setup = f"{PRELUDE}raise_lo()\nfor name, value in {settings!r}.items(): sysctl(name, value)\n"
    program = [*_unshare(), sys.executable, "-W", "error", "-c", setup + textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    run = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=30)

    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return json.loads(run.stdout)


@functools.cache
def _unshare() -> tuple[str, ...]:
    reason = ""
    for kinds in (("--net",), ("--user", "--map-root-user", "--net")):
        try:
            run = subprocess.run(["unshare", *kinds, "true"], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no unshare(1) to make a network namespace with")
        if run.returncode == 0:
            return ("unshare", *kinds)
        reason = run.stderr.strip()
    pytest.skip(f"no network namespace: {reason}")


def answer(value: object) -> None:
    """Hand *value* to the test, as JSON."""
    print(json.dumps(value))


def raise_lo() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        flags = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(asking, 0x8914, struct.pack("16sh14x", b"lo", flags))  # SIOCSIFFLAGS


def add_address(address: str, label: str = "lo:1") -> None:
    """Give lo another address."""
    if ":" in address:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
            request = struct.pack("=16sIi", socket.inet_pton(socket.AF_INET6, address), 64, 1)
            fcntl.ioctl(asking, 0x8916, request)  # SIOCSIFADDR with struct in6_ifreq
        while True:  # until the kernel's worker has found that it is nobody else's, some milliseconds
            table = Path("/proc/net/if_inet6").read_text().split("\n")
            flags = [int(row.split()[4], 16) for row in table if row.startswith(request[:16].hex())]
            if flags and not flags[0] & 0x40:  # IFA_F_TENTATIVE
                return
            time.sleep(0.001)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sHH4s16x", label.encode(), socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(asking, 0x8916, request)  # SIOCSIFADDR


def sysctl(name: str, value: object) -> bool:
    """Write a sysctl of net.ipv4; say whether this kernel has it."""
    path = Path("/proc/sys/net/ipv4", name)
    if path.exists():
        path.write_text(str(value))
        return True
    return False


def deny_netlink() -> bool:
    """Forbid this process AF_NETLINK sockets as systemd's RestrictAddressFamilies= does; say whether that worked."""
    number = {"x86_64": 41, "aarch64": 198}.get(platform.machine())  # socket(2)
    if number is None:
        return False
    code = [
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 3, number),
        (0x20, 0, 0, 16),  # load its first argument
        (0x15, 0, 1, socket.AF_NETLINK),
        (0x06, 0, 0, 0x00050000 | 97),  # SECCOMP_RET_ERRNO, EAFNOSUPPORT
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(packed)))
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP


def listen(address: str, port: int | None = None, backlog: int = 128) -> socket.socket:
    """Listen on the port given, or on one that nobody had before (support.listeners)."""
    if port is None:
        return listeners.listen([address], backlog=backlog)[0]
    listener = socket.socket(family_of(address), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(sockaddr(address, port))
    listener.listen(backlog)
    return listener


def end_of(listener: socket.socket) -> Destination:
    return Destination(*from_sockaddr(listener.getsockname()))


def flow_of(client: socket.socket) -> Flow:
    return Flow(*from_sockaddr(client.getsockname()), Destination(*from_sockaddr(client.getpeername())))


def dial(
    destination: Destination, *, source: str | None = None, window: tuple[int, int] | None = None
) -> socket.socket | None:
    """Connect, with the source's port deferred; None if the kernel has no port left."""
    client = socket.socket(destination.family, socket.SOCK_STREAM)
    try:
        if window is not None:
            options.limit_ports(client, *window)
        if source is not None:
            options.defer_port(client)
            client.bind(sockaddr(source, 0))
        client.connect(sockaddr(*destination))
    except OSError as error:
        client.close()
        if error.errno != 99:  # EADDRNOTAVAIL
            raise
        return None
    return client


def fill(destination: Destination, **how: Any) -> list[socket.socket]:
    """Connect until the kernel has no port left."""
    clients = []
    while client := dial(destination, **how):
        clients.append(client)
    return clients


@contextlib.contextmanager
def connection(address: str) -> Iterator[tuple[socket.socket, socket.socket, Flow]]:
    """Yield both ends of a connection between two sockets of *address*, and the client's flow."""
    with listen(address) as listener:
        client = dial(end_of(listener))
        assert client is not None
        with client, listener.accept()[0] as server:
            yield client, server, flow_of(client)


@contextlib.contextmanager
def unanswered(address: str) -> Iterator[Flow]:
    """Yield a flow whose SYN is dropped, because the listener's queue of one is full."""
    with listen(address, backlog=0) as listener:
        first, second = (socket.socket(listener.family, socket.SOCK_STREAM) for _ in range(2))
        with first, second:
            first.connect(listener.getsockname())
            second.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                second.connect(listener.getsockname())
            assert options.tcp_state(second) == diag.State.SYN_SENT
            yield Flow(*from_sockaddr(second.getsockname()), end_of(listener))
