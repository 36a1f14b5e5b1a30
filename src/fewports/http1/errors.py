"""What goes wrong with HTTP; http2 has more of it."""

from __future__ import annotations

from ..errors import FewportsError


class ProtocolError(FewportsError):
    """HTTP was broken, by us or by the peer."""


class LocalProtocolError(ProtocolError, ValueError):
    """A request that must not be sent, or a reader or stream used out of turn: a mistake of the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules: ``what`` is wrong, ``where``, and the bytes in question (``data``).

    The connection cannot be used again, unless it is one stream of HTTP/2 only that was broken.
    """

    def __init__(self, what: str, where: str, data: bytes = b"") -> None:
        self.what, self.where, self.data = what, where, data
        super().__init__(what, where, data)

    def __str__(self) -> str:
        return f"{self.what} in {self.where}" + (f": {self.data!r}" if self.data else "")


class Truncated(RemoteProtocolError):
    """The peer closed before the end: ``got`` bytes of body came, ``expected`` more were announced (or None)."""

    def __init__(self, where: str, got: int, expected: int | None) -> None:
        more = "" if expected is None else f", {expected} more expected"
        super().__init__(f"the peer closed after {got} bytes of body{more}", where)
        self.got, self.expected = got, expected
        self.args = where, got, expected  # for pickle
