"""TLS within TLS for a connection that many threads use: through an HTTPS proxy, to an HTTPS origin.

urllib3's SSLTransport makes the two handshakes. After those this stands in its place, because SSLTransport loses what
the socket has no room for. Like a socket that does not block: recv() and send() raise SSLWantReadError and the like.

State: ``_held`` are the records that the proxy's socket did not take yet, those of the first ``_taken`` bytes of what
send() was given; ``_decoded`` says whether more may be had of what came.
"""

from __future__ import annotations

import ssl
from typing import cast

from urllib3.util.ssltransport import SSLTransport

RECORDS = 65536  # bytes read from the proxy's socket at once


class Nested:
    """What SharedWire needs of a socket, on an SSLTransport whose handshake is done."""

    def __init__(self, transport: SSLTransport) -> None:
        self.socket = cast(ssl.SSLSocket, transport.socket)
        self._tls = transport.sslobj
        self._incoming, self._outgoing = transport.incoming, transport.outgoing
        self._held = b""
        self._taken = 0
        self._decoded = True  # what came with the end of the handshake

    def fileno(self) -> int:
        return self.socket.fileno()

    def settimeout(self, timeout: float | None) -> None:
        self.socket.settimeout(timeout)

    def close(self) -> None:
        self.socket.close()

    def pending(self) -> int:
        """Say whether recv() may have something although the kernel has not."""
        return int(self._decoded) or self.socket.pending()

    def recv(self, size: int) -> bytes:
        """Return *size* bytes at most, b"" at the end."""
        while True:
            try:
                data = self._tls.read(size)
            except ssl.SSLWantReadError:
                self._decoded = False
            except ssl.SSLEOFError:  # the proxy's connection ended without a farewell
                return b""
            else:
                self._decoded = True
                return data
            if came := self.socket.recv(RECORDS):
                self._incoming.write(came)
            else:
                self._incoming.write_eof()

    def send(self, data: bytes) -> int:
        """Send and return how many bytes it took. If it raises, the next call is to begin with the same bytes."""
        if not self._taken:
            self._taken = self._tls.write(data)
        self._held += self._outgoing.read()
        while self._held:
            self._held = self._held[self.socket.send(self._held) :]
        taken, self._taken = self._taken, 0
        return taken


def unblocked(sock: object) -> object:
    """Return what moves the bytes of *sock* without blocking: itself, but for TLS within TLS."""
    return Nested(sock) if isinstance(sock, SSLTransport) else sock
