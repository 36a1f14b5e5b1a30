"""Links, addresses and routes of the own network namespace, without iproute2.

The messages of rtnetlink(7), each sent once and acknowledged. Refuses to be more than the tests need.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct

NETLINK_ROUTE = 0  # linux/netlink.h
NLMSG_ERROR = 2
REQUEST_ACK, CREATE_EXCL = 0x5, 0x600  # NLM_F_REQUEST | NLM_F_ACK; NLM_F_CREATE | NLM_F_EXCL
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24  # linux/rtnetlink.h
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 3, 18, 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 0x02
RTA_DST, RTA_OIF = 1, 4
RT_TABLE_MAIN, RT_TABLE_LOCAL, RTPROT_STATIC, RTN_UNICAST, RTN_LOCAL = 254, 255, 4, 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
IFF_UP, IFF_NOARP = 0x1, 0x80


def set_up(link: str, *, arp: bool = True) -> None:
    """Bring a link up; without *arp* it sends at once, and to nobody."""
    flags = IFF_UP | (0 if arp else IFF_NOARP)
    _ask(RTM_NEWLINK, _link(socket.if_nametoindex(link), flags))


def add_pair(link: str, peer: str) -> None:
    """Add two virtual links joined by a cable (veth); raise OSError where the kernel has none."""
    other = _attribute(VETH_INFO_PEER, _link(0, 0) + _attribute(IFLA_IFNAME, peer.encode() + b"\0"))
    info = _attribute(IFLA_INFO_KIND, b"veth") + _attribute(IFLA_INFO_DATA, other)
    name = _attribute(IFLA_IFNAME, link.encode() + b"\0")
    _ask(RTM_NEWLINK, _link(0, 0) + name + _attribute(IFLA_LINKINFO, info), CREATE_EXCL)


def add_address(address: str, link: str) -> None:
    """Make one address local, usable at once (no duplicate address detection)."""
    packed = ipaddress.ip_address(address).packed
    index = socket.if_nametoindex(link)
    head = struct.pack("=BBBBI", _family(packed), len(packed) * 8, IFA_F_NODAD, RT_SCOPE_UNIVERSE, index)
    _ask(RTM_NEWADDR, head + _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed), CREATE_EXCL)


def add_local_prefix(prefix: str) -> None:
    """Make every address of a network local, as ``ip route add local PREFIX dev lo`` does."""
    network = ipaddress.ip_network(prefix)
    family = _family(network.network_address.packed)
    kind = (RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL)
    head = struct.pack("=BBBBBBBBI", family, network.prefixlen, 0, 0, *kind, 0)
    _ask(RTM_NEWROUTE, head + _attribute(RTA_DST, network.network_address.packed) + _out("lo"), CREATE_EXCL)


def add_default_route(link: str, family: socket.AddressFamily) -> None:
    """Send through *link* whatever has no better route."""
    kind = (RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST)
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, *kind, 0)
    _ask(RTM_NEWROUTE, head + _out(link), CREATE_EXCL)


def _ask(kind: int, body: bytes, flags: int = 0) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST_ACK | flags, 1, 0) + body)
        answer = netlink.recv(65536)
    answered, error = struct.unpack_from("=4xH10xi", answer)
    if answered != NLMSG_ERROR or error:
        raise OSError(-error, f"rtnetlink message {kind}: {os.strerror(-error)}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _out(link: str) -> bytes:
    return _attribute(RTA_OIF, struct.pack("=I", socket.if_nametoindex(link)))


def _family(packed: bytes) -> int:
    return socket.AF_INET if len(packed) == 4 else socket.AF_INET6
