"""TLS over memory: bytes in, bytes out."""

from __future__ import annotations

import ssl

from .seam import Tls

RECORD = 16384  # bytes that are opened at once (RFC 8446, section 5.1)


class Session:
    """One session. All that was taken in is opened at once, so that nothing is left unseen.

    ``ended``: the peer has said goodbye, or broken a rule; ``failure`` says which. What came before that is given
    out first.
    """

    def __init__(self, tls: Tls) -> None:
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = tls.prepare().wrap_bio(self.into, self.out, server_hostname=tls.hostname)
        self.ended = False
        self.failure: OSError | None = None

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

    def take_in(self, data: bytes | memoryview) -> None:
        if data:
            self.into.write(data)

    def seal(self, data: bytes | memoryview) -> bytes:
        self.object.write(data)
        return self.out.read()

    def open(self) -> bytes:
        """Return all that is readable."""
        pieces = []
        into, read = self.into, self.object.read
        try:
            while not self.ended:
                data = read(RECORD)
                if not data:
                    self.ended = True
                    break
                pieces.append(data)
                if not into.pending and not self.object.pending():
                    break  # to ask costs less than the exception that says so
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except OSError as error:
            self.ended, self.failure = True, error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Sessions:
    """The sessions on one link, the outer one first: TLS within TLS, where the proxy speaks it too."""

    def __init__(self) -> None:
        self._all: list[Session] = []
        self.ended = False
        self.failure: OSError | None = None

    def add(self, session: Session) -> None:
        self._all.append(session)

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def ahead(self) -> bool:
        return any(session.ahead for session in self._all)

    def seal(self, data: bytes | memoryview) -> bytes | memoryview:
        for session in reversed(self._all):
            data = session.seal(data)
        return data

    def open(self, data: bytes | memoryview) -> bytes:
        """Return what *data* means, and what was read ahead."""
        for session in self._all:
            session.take_in(data)
            data = session.open()
            if session.ended:
                self.ended, self.failure = True, self.failure or session.failure
        return bytes(data)

    def reply(self) -> bytes | memoryview:
        """Return what TLS itself is to send after open(), such as a key update."""
        for position, session in enumerate(self._all):
            if session.out.pending:
                data: bytes | memoryview = session.out.read()
                for outer in reversed(self._all[:position]):
                    data = outer.seal(data)
                return data
        return b""
