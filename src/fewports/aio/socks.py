"""SOCKS5 (RFC 1928, RFC 1929), the client's side of the handshake: the proxy connects us, and looks names up."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from ..errors import InvalidOption
from ..events import CloseReason
from .errors import SocksRefused
from .seam import Link, Tls

_NONE, _PASSWORD = 0, 2  # RFC 1928, section 3: methods
_V4, _NAME, _V6 = 1, 3, 4  # section 5: kinds of address
_SIZES = {_V4: 4, _V6: 16}
LONGEST = 255  # bytes of a name, a user or a password, whose length is one byte
_REASONS = {  # section 6
    1: "general SOCKS server failure",
    2: "connection not allowed by ruleset",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


class Socks(NamedTuple):
    """How a proxy is asked for a connection to *host* and *port*, and by whom."""

    host: str
    port: int
    user: bytes | None = None
    password: bytes = b""
    tls: Tls | None = None  # towards the proxy, which is what is dialled


class Conversation:
    """What is said before the protocol proper begins, as a Receiver of *link*."""

    answered = False

    def __init__(self, link: Link) -> None:
        self._link = link
        self._came = bytearray()
        self._ended = False
        link.receiver = self

    def received(self, data: bytes) -> None:
        self._came += data
        self._link.wake()

    def ended(self, error: Exception | None) -> None:
        self._ended = True
        self._link.wake()

    def abandon(self) -> None:
        """Close: the loop ends."""
        self._link.close(CloseReason.DONE)

    async def tell(self, data: bytes) -> None:
        """Send *data*."""
        if not self._link.write(data):
            await self._link.flush()

    async def hear(self, count: int) -> bytes:
        """Return the next *count* bytes; raise SocksRefused if the peer closes before."""
        while len(self._came) < count:
            if self._ended:
                raise SocksRefused("the proxy closed the connection")
            await self._link.wait()
        data = bytes(self._came[:count])
        del self._came[:count]
        return data


async def shake(link: Link, socks: Socks) -> None:
    """Have the proxy at the other end of *link* connect us; raises SocksRefused, TimeoutError, OSError."""
    talk = Conversation(link)
    await talk.tell(b"\x05\x01\x00" if socks.user is None else b"\x05\x02\x00\x02")
    version, method = await talk.hear(2)
    if version != 5:
        raise SocksRefused("the proxy speaks no SOCKS5")
    if method == _PASSWORD and socks.user is not None:
        await talk.tell(b"\x01" + _counted(socks.user, "user") + _counted(socks.password, "password"))
        if (await talk.hear(2))[1]:
            raise SocksRefused("the proxy does not accept the user or the password")
    elif method != _NONE:
        raise SocksRefused("the proxy wants credentials, or others")
    await talk.tell(b"\x05\x01\x00" + _address(socks.host) + socks.port.to_bytes(2, "big"))
    _, reply, _, kind = await talk.hear(4)
    if reply:
        raise SocksRefused(_REASONS.get(reply, f"reply {reply}"))
    size = _SIZES.get(kind)
    await talk.hear((size if size is not None else (await talk.hear(1))[0]) + 2)


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return bytes((_NAME,)) + _counted(host.encode("idna"), "host name")
    return bytes((_V4 if address.version == 4 else _V6,)) + address.packed


def _counted(data: bytes, what: str) -> bytes:
    if len(data) > LONGEST:
        raise InvalidOption(f"a {what} of {len(data)} bytes is longer than SOCKS5 can say: {LONGEST}")
    return bytes((len(data),)) + data
