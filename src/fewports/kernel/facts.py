"""What the system says: its ports, how long TIME_WAIT holds one, its addresses, its features. Judges none of it.

Sysctls are those of the calling thread's network namespace. What is cheap to ask again is; the rest is read again
after 5 s, so that a change by the operator is noticed.
"""

from __future__ import annotations

import array
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Generic, NamedTuple, TypeVar

from fewports.address import Destination, from_sockaddr, is_loopback, sockaddr
from fewports.kernel import diag, options, portable
from fewports.kernel.netlink import HEADER, Netlink

T = TypeVar("T")

_FRESH = 5.0  # seconds; reading a sysctl takes some 20 us, an operator does not see 5 s


class PortRange(NamedTuple):
    """The ports that the kernel chooses from: *low* to *high*, less the reserved spans, which never overlap."""

    low: int
    high: int
    reserved: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many ports are usable."""
        spans = ((max(first, self.low), min(last, self.high)) for first, last in self.reserved)
        return self.high - self.low + 1 - sum(last - first + 1 for first, last in spans if first <= last)

    def includes(self, port: int) -> bool:
        """Say whether the kernel may choose *port*."""
        return self.low <= port <= self.high and not any(first <= port <= last for first, last in self.reserved)

    def within(self, low: int, high: int) -> PortRange:
        """Return the part of the range that lies in a window; raise ValueError if it has no usable port."""
        part = PortRange(max(self.low, low), min(self.high, high), self.reserved)
        if part.low > part.high or not part.size:
            raise ValueError(f"no usable port in {low}-{high}: the system's range is {self}")
        return part

    def __str__(self) -> str:
        reserved = ", ".join(f"{first}-{last}" for first, last in self.reserved)
        return f"{self.low}-{self.high}" + (f" without {reserved}" if reserved else "")


class LocalAddress(NamedTuple):
    """An address of this host. scope: host, link or global. prefix: the length of its network's prefix in bits."""

    address: str
    interface: str
    scope: str
    prefix: int


@dataclass(frozen=True, slots=True)
class Features:
    """What the kernel can do to spare ports."""

    no_port: bool
    local_port_range: bool
    linger2: bool
    freebind: bool
    sock_diag: bool

    def missing(self) -> list[str]:
        """Return, for each absent feature, a sentence on what that costs."""
        return [_COSTS[field.name] for field in fields(self) if not getattr(self, field.name)]


_COSTS = {
    "no_port": "No IP_BIND_ADDRESS_NO_PORT (Linux 4.2): a bound source address takes each port for all destinations.",
    "local_port_range": "No IP_LOCAL_PORT_RANGE (Linux 6.3): the kernel does not enforce a budget between processes, "
    "and connecting is some 50 times slower once half of the ports are held.",
    "linger2": "No TCP_LINGER2 = -1: a connection closed under pressure holds its port in TIME_WAIT.",
    "freebind": "No IP_FREEBIND: only addresses that an interface carries can be sources, not a routed network.",
    "sock_diag": "No NETLINK_SOCK_DIAG: the ports that are held are read from /proc/net/tcp, which takes milliseconds.",
}


class _Kept(Generic[T]):
    """A reading that is taken again when it is 5 s old."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self.kept: tuple[float, T] | None = None

    def at(self, now: float) -> T:
        # One reference is read and one is written: threads may read twice, but none sees half of it.
        kept = self.kept
        if kept is None or not 0 <= now - kept[0] < _FRESH:
            kept = self.kept = (now, self._read())
        return kept[1]

    def forget(self) -> None:
        self.kept = None


class _Reuse(NamedTuple):
    """How soon a port in TIME_WAIT can be used again, in seconds: to or from a loopback address, and otherwise."""

    loopback: float
    elsewhere: float


def port_range(now: float) -> PortRange:
    """Return the ports that the kernel chooses from, read again when older than 5 s; *now* is monotonic."""
    kept = _ports.kept  # as at() does: this is asked for each connection
    return kept[1] if kept and 0 <= now - kept[0] < _FRESH else _ports.at(now)


def time_wait_hold(source: str, destination: str, now: float) -> float:
    """Return for how many seconds a flow between two addresses cannot be used again when we closed it first.

    Shorter than TIME_WAIT where tcp_tw_reuse applies, and then only for peers that send TCP timestamps: for others,
    and for FIN_WAIT2 (the peer has not closed), the kernel's own timer counts (`diag.look_up`).
    """
    reuse = _reuse.at(now)
    return reuse.loopback if is_loopback(source) or is_loopback(destination) else reuse.elsewhere


def forget() -> None:
    """Drop all that is kept, as after a change of network namespace."""
    global _features
    _ports.forget()
    _reuse.forget()
    _features = None
    diag.reset()
    _routes.reset()


def route_source(destination: Destination) -> str:
    """Return the source address that the kernel would choose; raise its OSError where there is no route."""
    with socket.socket(destination.family, socket.SOCK_DGRAM) as probe:  # connecting UDP sends no packet
        probe.connect(sockaddr(destination.address, destination.port))
        return from_sockaddr(probe.getsockname())[0]


def reaches(source: str, destination: Destination) -> bool:
    """Say whether *source* is an address of this host from which there is a route to *destination*."""
    try:
        name = sockaddr(source, 0)
        if (len(name) == 4) != (destination.family == socket.AF_INET6):
            return False
        with socket.socket(destination.family, socket.SOCK_DGRAM) as probe:
            probe.bind(name)
            probe.connect(sockaddr(destination.address, destination.port))
    except OSError:
        return False
    return True


def features() -> Features:
    """Return what the kernel can do, found once by setting each option on a socket and reading it back.

    Raises OSError where no socket can be had for that.
    """
    global _features
    if _features is None:
        found = _probe()
        if not found.sock_diag and diag.undecided():
            return found  # no descriptor for the question: it is put again
        _features = found
    return _features


def local_addresses() -> tuple[LocalAddress, ...]:
    """Return the addresses of this host that can be bound and are not about to go.

    Deprecated, tentative and duplicate IPv6 addresses are left out. Where the system is not Linux, they are those to
    which the host's name resolves, without their interface.
    """
    if portable.current() is not portable.LINUX:
        return tuple(_resolved_addresses())
    try:
        return tuple(_netlink_addresses())
    except OSError:  # refused by a sandbox
        return (*_ioctl_addresses(), *_proc_addresses())


def _sysctl(name: str) -> str | None:
    try:
        with open(f"/proc/sys/net/ipv4/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # an older kernel, a sandbox without /proc, or no Linux
        return None


def _read_ports() -> PortRange:
    system = portable.current()
    limits = _sysctl("ip_local_port_range") if system is portable.LINUX else None
    if limits is None:
        return PortRange(system.low, system.high, ())
    low, high = map(int, limits.split())
    reserved = []
    for span in (_sysctl("ip_local_reserved_ports") or "").split(","):  # 8080,9148-9200
        first, _, last = span.partition("-")
        if first and int(last or first) >= low and int(first) <= high:
            reserved.append((max(int(first), low), min(int(last or first), high)))
    return PortRange(low, high, tuple(reserved))


def _read_reuse() -> _Reuse:
    """Follow tcp_twsk_unique() in net/ipv4/tcp_ipv4.c."""
    full = portable.current().time_wait
    if portable.current() is not portable.LINUX or _sysctl("tcp_timestamps") in (None, "0"):
        return _Reuse(full, full)
    mode = _sysctl("tcp_tw_reuse")
    milliseconds = _sysctl("tcp_tw_reuse_delay")
    # Before that sysctl existed (Linux 6.14), the clock had to reach the next second.
    delay = 1.0 if milliseconds is None else int(milliseconds) / 1000
    return _Reuse(delay if mode in ("1", "2") else full, delay if mode == "1" else full)


# include/uapi/linux/rtnetlink.h, if_addr.h
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_UNUSABLE = 0x08 | 0x20 | 0x40  # IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE
_SCOPES = {254: "host", 253: "link"}  # RT_SCOPE_HOST, RT_SCOPE_LINK; any other is wider
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_NETLINK_ROUTE = 0  # include/uapi/linux/netlink.h


def _netlink_addresses() -> Iterator[LocalAddress]:
    for data, starts in _routes.dump(_RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        for start in starts:
            _, prefix, flags, scope, index = _ADDRESS.unpack_from(data, start)
            attributes = dict(_attributes(data, start))
            packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)  # _ADDRESS is the peer's, if any
            if _IFA_FLAGS in attributes:
                flags = int.from_bytes(attributes[_IFA_FLAGS], sys.byteorder)
            if packed is None or flags & _UNUSABLE:
                continue
            try:
                interface = socket.if_indextoname(index)
            except OSError:  # gone since
                continue
            yield _local(packed, interface, index, _SCOPES.get(scope, "global"), prefix)


def _attributes(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    end = start - HEADER.size + HEADER.unpack_from(data, start - HEADER.size)[0]
    at = start + _ADDRESS.size
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3  # RTA_ALIGN


def _local(packed: bytes, interface: str, index: int, scope: str, prefix: int) -> LocalAddress:
    if len(packed) == 4:
        return LocalAddress(socket.inet_ntop(socket.AF_INET, packed), interface, scope, prefix)
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return LocalAddress(f"{text}%{index}" if scope == "link" else text, interface, scope, prefix)


_SIOCGIFCONF, _SIOCGIFNETMASK = 0x8912, 0x891B  # include/uapi/linux/sockios.h
_IFCONF = struct.Struct("@iP")  # struct ifconf: length and address of a buffer
_IFREQ = 32 if struct.calcsize("P") == 4 else 40  # sizeof(struct ifreq)
_IFREQ_ADDRESS = 20  # offset of sin_addr in it: a name of 16 bytes, then sockaddr_in
_INTERFACES = 1024  # addresses that the buffer has room for


def _ioctl_addresses() -> Iterator[LocalAddress]:
    """Yield the IPv4 addresses as netdevice(7) tells them."""
    import fcntl  # not on every system that imports this file

    buffer = array.array("B", bytes(_IFREQ * _INTERFACES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        conf = fcntl.ioctl(asking, _SIOCGIFCONF, _IFCONF.pack(len(buffer), buffer.buffer_info()[0]))
        for at in range(0, _IFCONF.unpack(conf)[0], _IFREQ):
            entry = buffer[at : at + _IFREQ].tobytes()
            packed = entry[_IFREQ_ADDRESS : _IFREQ_ADDRESS + 4]
            mask = fcntl.ioctl(asking, _SIOCGIFNETMASK, entry)[_IFREQ_ADDRESS : _IFREQ_ADDRESS + 4]
            interface = entry[:16].rstrip(b"\0").decode().partition(":")[0]  # eth0:1 is a label of eth0
            scope = "host" if packed[0] == 127 else "link" if packed[:2] == b"\xa9\xfe" else "global"  # RFC 3927
            yield _local(packed, interface, 0, scope, int.from_bytes(mask, "big").bit_count())


def _proc_addresses() -> Iterator[LocalAddress]:
    """Yield the IPv6 addresses of /proc/net/if_inet6; none where there is no IPv6."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            lines = file.readlines()
    except OSError:
        return
    scopes = {0x10: "host", 0x20: "link"}  # IPV6_ADDR_LOOPBACK, IPV6_ADDR_LINKLOCAL in include/net/ipv6.h
    for digits, index, prefix, scope, flags, interface in map(str.split, lines):
        if not int(flags, 16) & _UNUSABLE:
            kind = scopes.get(int(scope, 16), "global")
            yield _local(bytes.fromhex(digits), interface, int(index, 16), kind, int(prefix, 16))


def _resolved_addresses() -> Iterator[LocalAddress]:
    try:
        resolved = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:  # a host whose own name does not resolve
        resolved = []
    names = [str(name[0]) for family, *_, name in resolved if family in (socket.AF_INET, socket.AF_INET6)]
    for text in dict.fromkeys(["127.0.0.1", *names]):
        address = ipaddress.ip_address(text)
        scope = "host" if address.is_loopback else "link" if address.is_link_local else "global"
        yield LocalAddress(text, "", scope, address.max_prefixlen)


def _probe() -> Features:
    if portable.current() is not portable.LINUX:
        return Features(False, False, False, False, False)  # the numbers mean other options there
    tcp = socket.IPPROTO_TCP
    return Features(
        no_port=_takes(options.defer_port, options.IP_BIND_ADDRESS_NO_PORT, 1),
        local_port_range=_takes(lambda probe: options.limit_ports(probe, 1, 2), options.IP_LOCAL_PORT_RANGE, 0x20001),
        linger2=_takes(options.skip_time_wait, options.TCP_LINGER2, -1, level=tcp),
        freebind=_takes(options.allow_foreign_source, options.IP_FREEBIND, 1),
        sock_diag=diag.netlink_granted(),
    )


def _takes(
    set_option: Callable[[socket.socket], None], option: int, value: int, *, level: int = socket.IPPROTO_IP
) -> bool:
    """Say whether an option has its value after it was set: some sandboxes accept one and ignore it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            set_option(probe)
            return probe.getsockopt(level, option) == value
        except OSError:
            return False


_ports = _Kept(_read_ports)
_reuse = _Kept(_read_reuse)
_features: Features | None = None
_routes = Netlink(_NETLINK_ROUTE)
