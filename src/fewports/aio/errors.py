"""What goes wrong with an exchange, said so that each face can say it in its own words. The cause is in __cause__."""

from __future__ import annotations

from enum import Enum

from ..errors import FewportsError


class Stage(Enum):
    """What a time-out ended."""

    CONNECT = "the attempt to connect"
    TLS = "the TLS handshake"
    WRITE = "sending the request"
    READ = "the wait for the response"


class ExchangeError(FewportsError):
    """An exchange failed; its connection is closed."""


class NotResolved(ExchangeError):
    """The host name has no address."""


class NotConnected(ExchangeError):
    """No connection could be made."""


class TlsFailed(ExchangeError):
    """The TLS handshake failed, or the certificate is not the one that was asked for."""


class NotOffered(ExchangeError):
    """The server does not speak HTTP/2, and nothing else was to be spoken."""

    def __str__(self) -> str:
        return "The server does not offer HTTP/2, and http2=True takes nothing else."


class TunnelRefused(ExchangeError):
    """The proxy made no tunnel; ``status`` and ``reason`` are its answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason

    def __str__(self) -> str:
        return f"Tunnel connection failed: {self.status} {self.reason}"  # the words of http.client


class SocksRefused(ExchangeError):
    """The SOCKS proxy made no connection, and said why."""


class TimedOut(ExchangeError):
    """It took longer than allowed."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.stage = stage

    def __str__(self) -> str:
        return f"{self.stage.value} timed out"


class PlaceTimedOut(ExchangeError):
    """As many connections as the pool may have were in use for longer than the caller would wait."""


class Disconnected(ExchangeError):
    """The connection ended, or broke, before the response did; *answered* if any of that had come."""

    def __init__(self, answered: bool) -> None:
        super().__init__(answered)
        self.answered = answered

    def __str__(self) -> str:
        return "the connection broke in the middle of a response" if self.answered else "closed without response"


class LoopChanged(FewportsError, RuntimeError):
    """A client was used in another event loop than before: its connections belong to that one."""
