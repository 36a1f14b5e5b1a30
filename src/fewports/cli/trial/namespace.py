"""A network namespace of our own, in which local ports are few. A process enters it for good, and it ends with it.

A port that is closed in it stays in TIME_WAIT for 60 s, as everywhere but on loopback, where Linux lets it
be used again after 1 s (tcp_tw_reuse). Nothing outside is touched; no privilege is needed where the
system lets users make namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

from ...errors import FewportsError

# include/uapi/linux/sched.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# include/uapi/linux/sockios.h, if.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


class NoNamespace(FewportsError):
    """This system lets us make no network namespace; the message says why."""


def enter(low: int, high: int) -> None:
    """Move this process, which has no other thread, into a new namespace with the local ports *low* to *high*.

    Raises NoNamespace; the process may then be in a namespace that is of no use, and should end.
    """
    if sys.platform != "linux":
        raise NoNamespace("only Linux has network namespaces")
    step = "unshare"
    try:
        _unshare()
        step = "bringing the loopback interface up"
        _raise_loopback()
        for name, value in (("ip_local_port_range", f"{low} {high}"), ("tcp_tw_reuse", "0")):
            step = f"setting net.ipv4.{name}"
            _write(f"/proc/sys/net/ipv4/{name}", value)
    except OSError as error:
        # unshare(2): ENOSPC says that a limit in /proc/sys/user is reached.
        why = "the limit in /proc/sys/user is reached" if error.errno == errno.ENOSPC else error.strerror
        raise NoNamespace(f"{step} failed: {why}") from error


def _unshare() -> None:
    """Leave the network namespace, as root at once, as a user within a new user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare came with Python 3.12
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # We stay who we are; what we may do in there, we may until the next exec().
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def _raise_loopback() -> None:
    import fcntl  # not on every system that imports this file

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
