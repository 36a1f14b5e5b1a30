"""TLS over memory: bytes in, bytes out."""

from __future__ import annotations

import ssl

from .seam import Tls

RECORD = 16384  # bytes that are opened at once (RFC 8446, section 5.1)
PORTION = 65536  # bytes that go into a BIO at once: it keeps the memory that it once took, however long it is idle


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
        self.kept: list[bytes] = []  # to be sealed once the peer has had the session negotiated anew (TLS 1.2)

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
        """Return the records of *data*; what cannot be sealed now is ``kept``, and comes with the reply to open()."""
        if len(data) <= PORTION:
            self._put(data)
            return self.out.read()
        view, records = memoryview(data), []
        for start in range(0, len(data), PORTION):
            self._put(view[start : start + PORTION])
            records.append(self.out.read())
        return b"".join(records)

    def open(self, data: bytes | memoryview = b"") -> bytes:
        """Take in *data*, and return all that is readable."""
        if len(data) <= PORTION:
            self.take_in(data)
            opened = self._open()
        else:
            pieces = []
            for start in range(0, len(data), PORTION):
                self.take_in(data[start : start + PORTION])
                pieces.append(self._open())
            opened = b"".join(pieces)
        if self.kept and not self.ended:
            kept, self.kept = self.kept, []
            try:
                for piece in kept:
                    self._put(piece)
            except OSError as error:
                self.ended, self.failure = True, error
        return opened

    def _put(self, data: bytes | memoryview) -> None:
        if not self.kept:
            try:
                self.object.write(data)
                return
            except ssl.SSLWantReadError:  # the answer of the peer first, which asked for a handshake
                pass
        self.kept.append(bytes(data))

    def _open(self) -> bytes:
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
        self.stuck = False  # nothing can be sealed before something comes

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
            if session.kept:
                self.stuck = True
        return data

    def open(self, data: bytes | memoryview) -> bytes:
        """Return what *data* means, and what was read ahead."""
        for session in self._all:
            data = session.open(data)
            if session.ended:
                self.ended, self.failure = True, self.failure or session.failure
        if self.stuck:
            self.stuck = any(session.kept for session in self._all)
        return bytes(data)

    def reply(self) -> bytes | memoryview:
        """Return what TLS itself is to send after open(), such as a key update."""
        data: bytes | memoryview = b""
        for session in reversed(self._all):
            data = session.seal(data) if data else session.out.read()
        return data
