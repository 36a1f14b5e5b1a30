"""What goes wrong, in the classes of the library that asked; where it is ours to say, in a class that is both."""

from __future__ import annotations

from ssl import SSLError
from typing import TYPE_CHECKING

from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from .. import errors, http1, http2
from .libraries import Library, of_each

if TYPE_CHECKING:
    from httpx2 import ConnectError, PoolTimeout
else:
    PoolTimeout = type("PoolTimeout", of_each("PoolTimeout"), {})
    ConnectError = type("ConnectError", of_each("ConnectError"), {})

NO_RESPONSE = "Server disconnected without sending a response."  # the words of the libraries, here and below
CUT_SHORT = "peer closed connection without sending complete message body"
_TUNNEL = "Tunnel connection failed: "  # http.client


class BudgetExhausted(errors.BudgetExhausted, PoolTimeout):
    """No port, or no connection, within the budget or max_connections; a PoolTimeout of the library, too."""

    def __init__(self, error: errors.BudgetExhausted) -> None:
        errors.BudgetExhausted.__init__(self, error.usage, next_due=error.next_due, waited=error.waited)
        self._request = None

    def __reduce__(self) -> tuple[object, ...]:
        plain = errors.BudgetExhausted(self.usage, next_due=self.next_due, waited=self.waited)
        return type(self), (plain,)


class NoUsableSource(errors.NoUsableSource, ConnectError):
    """No source address reaches the destination; a ConnectError of the library, too."""

    def __init__(self, error: errors.NoUsableSource) -> None:
        errors.NoUsableSource.__init__(self, error.destination, error.reasons)
        self._request = None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (errors.NoUsableSource(self.destination, self.reasons),)


def in_connecting(library: Library, error: Exception) -> Exception:
    """Return what the library would raise where a connection could not be made."""
    if isinstance(error, errors.BudgetExhausted):
        return BudgetExhausted(error)
    if isinstance(error, errors.NoUsableSource):
        return NoUsableSource(error)
    if isinstance(error, SSLError) and isinstance(error.__cause__, http2.ConnectionFailed):
        return in_receiving(library, error)  # after the handshake
    cause = error.__cause__ if isinstance(error, HTTPError) else None
    message = str(cause or error)
    refused = isinstance(error, NewConnectionError)  # a ConnectTimeoutError in urllib3's eyes
    if isinstance(error, (TimeoutError, ConnectTimeoutError)) and not refused:
        return library.error("ConnectTimeout")(message)
    if isinstance(error, OSError) and message.startswith(_TUNNEL):
        return library.error("ProxyError")(message.removeprefix(_TUNNEL))
    if isinstance(error, http1.RemoteProtocolError):
        return library.error("RemoteProtocolError")(message)
    if _refused_by_socks(error):
        return library.error("ProxyError")(message)
    return library.error("ConnectError")(message)


def in_sending(library: Library, error: OSError) -> Exception:
    """Return what the library would raise where a request could not be sent."""
    return library.error("WriteTimeout" if isinstance(error, TimeoutError) else "WriteError")(str(error))


def is_unconnected(library: Library, error: Exception) -> bool:
    """Say whether another attempt to connect may do better: the network or the peer said no, and not we."""
    kinds = (library.error("ConnectError"), library.error("ConnectTimeout"))
    return isinstance(error, kinds) and not isinstance(error, errors.FewportsError)


def in_receiving(library: Library, error: Exception) -> Exception:
    """Return what the library would raise where no response came, or it broke off."""
    if isinstance(error, http1.Truncated):
        return library.error("RemoteProtocolError")(NO_RESPONSE)
    if isinstance(error, http1.LocalProtocolError):
        return library.error("LocalProtocolError")(str(error))
    if isinstance(error, http1.ProtocolError):
        return library.error("RemoteProtocolError")(str(error))
    return library.error("ReadTimeout" if isinstance(error, TimeoutError) else "ReadError")(str(error))


def cut_short(library: Library, got: int, length: int | None) -> Exception:
    """Return what the library would raise where the body ended early."""
    how = "incomplete chunked read" if length is None else f"received {got} bytes, expected {length}"
    return library.error("RemoteProtocolError")(f"{CUT_SHORT} ({how})")


def _refused_by_socks(error: Exception) -> bool:
    """Say whether a SOCKS proxy answered, and would not."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__module__ == "socks":
            return type(cause).__name__ != "ProxyConnectionError"
        cause = cause.__cause__
    return False
