"""What is known of each system beforehand: its port range and its TIME_WAIT. Asks nothing but the system's name."""

from __future__ import annotations

import platform
import sys
from functools import cache
from typing import NamedTuple


class System(NamedTuple):
    """A system's default range of local ports and its TIME_WAIT in seconds."""

    name: str
    low: int
    high: int
    time_wait: float


LINUX = System("Linux", 32768, 60999, 60.0)  # net.ipv4.ip_local_port_range; TCP_TIMEWAIT_LEN in net/tcp.h
# MaxUserPort defaults to 5000, TcpTimedWaitDelay to 240 s: msdn ms819739 (Server 2003).
WINDOWS_XP = System("Windows before Vista", 1025, 5000, 240.0)
# The range: netsh int ipv4 show dynamicport tcp. 120 s is twice the MSL that later versions use (no public document).
WINDOWS = System("Windows", 49152, 65535, 120.0)
MACOS = System("macOS", 49152, 65535, 30.0)  # net.inet.ip.portrange.first/last; net.inet.tcp.msl is 15,000 ms
FREEBSD = System("FreeBSD", 10000, 65535, 60.0)  # net.inet.ip.portrange.first/last; net.inet.tcp.msl is 30,000 ms
# IANA's dynamic ports (RFC 6335, section 6) and twice the MSL of two minutes (RFC 9293, section 3.4.1): the safe side.
OTHER = System("other", 49152, 65535, 240.0)

_VISTA = 6  # the major version that Windows Vista gives itself


@cache
def current(name: str = sys.platform, version: str | None = None) -> System:
    """Name the system that ``sys.platform`` and, for Windows, ``platform.version()`` tell of."""
    if name in ("linux", "android"):  # android: since Python 3.13
        return LINUX
    if name == "darwin":
        return MACOS
    if name.startswith("freebsd"):  # freebsd14
        return FREEBSD
    if name in ("win32", "cygwin"):
        major = (platform.version() if version is None else version).partition(".")[0]
        return WINDOWS_XP if major.isdigit() and int(major) < _VISTA else WINDOWS
    return OTHER
