"""TLS over memory: bytes in, bytes out."""

from __future__ import annotations

import ssl

from .seam import RECEIVE, Tls


class Session:
    """One session. All that was taken in is opened at once, so that nothing is left unseen."""

    def __init__(self, tls: Tls) -> None:
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = tls.prepare().wrap_bio(self.into, self.out, server_hostname=tls.hostname)
        self.ended = False

    @property
    def ahead(self) -> bool:
        """Say whether something was read that nobody has seen."""
        return bool(self.object.pending() or self.into.pending)

    def shake(self) -> bool:
        """Go on with the handshake; say whether it is done."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take_in(self, data: bytes) -> None:
        if data:
            self.into.write(data)

    def seal(self, data: bytes | memoryview) -> bytes:
        self.object.write(data)
        return self.out.read()

    def open(self) -> bytes:
        """Return all that is readable; ``ended`` when the peer has said goodbye."""
        pieces = []
        try:
            while data := self.object.read(RECEIVE):
                pieces.append(data)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
