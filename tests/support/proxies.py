"""The proxies of the tests, as they run in their own process: SOCKS5 (RFC 1928, 1929), and HTTP forward and CONNECT.

servers.SocksProxy and servers.HttpProxy start them. Each client connection serves one tunnel, or forwarded requests
one after the other, each of those over an upstream connection of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import socket
import ssl
import struct
from typing import Any
from urllib.parse import urlsplit

from support.listeners import listen

OK, REFUSED, UNSUPPORTED = 0, 5, 7  # SOCKS5 replies


class Proxy:
    """What both kinds share: the listener, the counts, and copying bytes."""

    def __init__(self, *, address: str, tls: tuple[str, str] | None, credentials: tuple[str, str] | None) -> None:
        self._address, self._tls = address, tls
        self._credentials = tuple(credentials) if credentials else None
        self._server: asyncio.Server | None = None
        self.accepted = self.open = self.refused = self.forwarded = 0
        self.tunnels: list[str] = []

    async def start(self) -> dict[str, Any]:
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
        (listener,) = listen([self._address])
        # What it accepts inherits this. Copied bytes are small writes: each would wait for the client's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = await asyncio.start_server(self._serve, sock=listener, ssl=context, backlog=8192)
        return {"addresses": [listener.getsockname()[:2]]}

    def stats(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "open": self.open,
            "refused": self.refused,
            "forwarded": self.forwarded,
            "tunnels": self.tunnels,
        }

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, granted: bytes
    ) -> None:
        """Connect to the host and copy bytes until both sides have ended; raises OSError if nobody is there."""
        far_reader, far_writer = await asyncio.open_connection(host, port)
        self.tunnels.append(f"{host}:{port}")
        writer.write(granted)
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            far_writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self.converse(reader, writer)
        finally:
            self.open -= 1
            writer.close()


class Socks(Proxy):
    """SOCKS5 with CONNECT only."""

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, number = await reader.readexactly(2)
        methods = await reader.readexactly(number)
        method = 2 if self._credentials else 0
        if method not in methods:
            self.refused += 1
            writer.write(b"\x05\xff")
            return
        writer.write(bytes((5, method)))
        if self._credentials and not await self._authenticated(reader, writer):
            return
        _, command, _, kind = await reader.readexactly(4)
        host = await _socks_host(reader, kind)
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        if command != 1:
            writer.write(_socks_reply(UNSUPPORTED))
            return
        try:
            await self.tunnel(reader, writer, host, port, _socks_reply(OK))
        except ConnectionRefusedError:
            writer.write(_socks_reply(REFUSED))

    async def _authenticated(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, length = await reader.readexactly(2)
        user = await reader.readexactly(length)
        (length,) = await reader.readexactly(1)
        password = await reader.readexactly(length)
        known = (user.decode(), password.decode()) == self._credentials
        self.refused += not known
        writer.write(bytes((1, not known)))
        return known


class Http(Proxy):
    """Forwards requests with an absolute URL; tunnels for CONNECT."""

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            method, target, _ = first.split(" ")
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            known = {name.lower(): value for name, value in headers}
            if not self._allowed(known.get("proxy-authorization", "")):
                self.refused += 1
                await reader.readexactly(int(known.get("content-length", 0)))
                demand = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="fewports"\r\n'
                writer.write(demand + b"Content-Length: 0\r\n\r\n")
            elif method == "CONNECT":
                host, _, port = target.rpartition(":")
                await self._connect(reader, writer, host.strip("[]"), int(port))
                return
            elif not await self._forward(reader, writer, (method, target), headers):
                return

    def _allowed(self, given: str) -> bool:
        if not self._credentials:
            return True
        return given == "Basic " + base64.b64encode(":".join(self._credentials).encode()).decode()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        try:
            await self.tunnel(reader, writer, host, port, b"HTTP/1.1 200 Connection established\r\n\r\n")
        except ConnectionRefusedError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: tuple[str, str],
        headers: list[tuple[str, str]],
    ) -> bool:
        """Pass one request on; say whether the client's connection can carry another."""
        method, target = request
        parts = urlsplit(target)
        assert parts.hostname
        known = {name.lower(): value for name, value in headers}
        length = int(known.get("content-length", 0))
        body = await reader.readexactly(length) if "transfer-encoding" not in known else await _chunks(reader)
        try:
            far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        except ConnectionRefusedError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return True
        self.forwarded += 1
        path = parts._replace(scheme="", netloc="").geturl() or "/"
        kept = [pair for pair in headers if pair[0].lower() not in ("connection", "proxy-authorization")]
        lines = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in kept),
            "Connection: close",
            "",
            "",
        ]
        far_writer.write("\r\n".join(lines).encode("latin-1") + body)
        try:
            answer = (await far_reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            answer = [line for line in answer if not line.lower().startswith("connection:")]
            writer.write("\r\n".join([*answer, "Via: 1.1 fewports-test", "", ""]).encode("latin-1"))
            await _copy(far_reader, writer, end=False)
        finally:
            far_writer.close()
        framed = any(line.lower().startswith(("content-length:", "transfer-encoding:")) for line in answer)
        return framed or method == "HEAD" or answer[0].split(" ")[1] in ("204", "304")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, end: bool = True) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if end and writer.can_write_eof():
            writer.write_eof()
        elif end:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a chunked body as it is, framing included; trailers are not expected."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if not size:
            return body


async def _socks_host(reader: asyncio.StreamReader, kind: int) -> str:
    if kind == 3:
        (length,) = await reader.readexactly(1)
        return (await reader.readexactly(length)).decode()
    return str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))


def _socks_reply(code: int) -> bytes:
    return bytes((5, code, 0, 1)) + socket.inet_aton("0.0.0.0") + bytes(2)
