"""The socket options that spare ports, one function each. Whether the kernel has them, `facts.features` knows.

Each is called for every connection that is opened: they check nothing, and an option that the kernel lacks raises
OSError (ENOPROTOOPT). The numbers are Linux's own, because Python 3.11 does not name them all. Elsewhere the same
numbers mean other options: call none of them there but `tcp_state`.
"""

from __future__ import annotations

import socket

from fewports.kernel import portable

IP_FREEBIND = 15  # include/uapi/linux/in.h
IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h; Linux 4.2
IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h; Linux 6.3
IPV6_FREEBIND = 78  # include/uapi/linux/in6.h; Linux 4.15
SO_BINDTODEVICE = 25  # include/uapi/asm-generic/socket.h
SO_BINDTOIFINDEX = 62  # include/uapi/asm-generic/socket.h; Linux 5.0
TCP_LINGER2 = 8  # include/uapi/linux/tcp.h
TCP_INFO = 11  # include/uapi/linux/tcp.h

# SOL_IP and SOL_TCP are the protocols' numbers (include/linux/socket.h); IP options serve AF_INET6 sockets too.
_IP, _TCP, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_TCP, socket.IPPROTO_IPV6
_LINUX = portable.current() is portable.LINUX


TO_DEVICE = frozenset((SO_BINDTODEVICE, SO_BINDTOIFINDEX))
DEFERRED_PORT = _IP, IP_BIND_ADDRESS_NO_PORT, 1


def limited_ports(low: int, high: int) -> tuple[int, int, int]:
    """Return what setsockopt() takes to let the kernel choose the port from *low* to *high* only.

    The window must overlap the system's range: a disjoint one is silently ignored.
    """
    # Python takes a signed C int; the same 32 bits as bytes cost three times as much.
    window = high << 16 | low
    return _IP, IP_LOCAL_PORT_RANGE, window - (1 << 32) if window >> 31 else window


def foreign_source(family: int) -> tuple[int, int, int]:
    """Return what setsockopt() takes to let bind() take an address that no interface carries."""
    return (_IPV6, IPV6_FREEBIND, 1) if family == socket.AF_INET6 else (_IP, IP_FREEBIND, 1)


def defer_port(sock: socket.socket) -> None:
    """Make bind((source, 0)) take an address only, so that connect() chooses the port within its port space."""
    sock.setsockopt(*DEFERRED_PORT)


def limit_ports(sock: socket.socket, low: int, high: int) -> None:
    """Let the kernel choose the port from *low* to *high* only.

    The window must overlap the system's range: a disjoint one is silently ignored.
    """
    sock.setsockopt(*limited_ports(low, high))


def allow_foreign_source(sock: socket.socket) -> None:
    """Let bind() take an address that no interface carries, such as one of a routed network."""
    sock.setsockopt(*foreign_source(sock.family))


def skip_time_wait(sock: socket.socket) -> None:
    """Give the port back as soon as the peer acknowledges our FIN; data are delivered and the peer reads a clean end.

    A negative value makes tcp_close() in net/ipv4/tcp.c drop the socket in place of FIN_WAIT2.
    """
    sock.setsockopt(_TCP, TCP_LINGER2, -1)


def tcp_state(sock: socket.socket) -> int:
    """Return the connection's state, a number of `diag.State`; 0, which is none, where the system cannot say."""
    # tcpi_state is the first byte of struct tcp_info, so one byte will do (0.9 us).
    return sock.getsockopt(_TCP, TCP_INFO, 1)[0] if _LINUX else 0
