"""Any TCP client through the gate: a stand-in for socket.create_connection."""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
from collections.abc import Iterable

from .address import Origin
from .dial import To
from .errors import InvalidOption, NoUsableSource
from .ledger.local import Ledger
from .ledger.shared import shared_ledger
from .source import Sources
from .sync.dial import dial, resolve

FAILED = "create_connection failed"  # as the socket module says

# The mark that http.client and smtplib pass on from their own callers.
_DEFAULT_TIMEOUT: object = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


def create_connection(
    address: tuple[str, int],
    timeout: float | object | None = _DEFAULT_TIMEOUT,
    source_address: tuple[str, int] | None = None,
    *,
    all_errors: bool = False,
    sources: Iterable[str] | str | Sources | None = None,
    ledger: Ledger | None = None,
) -> socket.socket:
    """Connect to *address*, a host name and a port, on a port that the ledger's budget allows.

    In place of ``socket.create_connection``, whose arguments come first and mean the same. The port is
    given back when the socket is closed or garbage-collected. Wrapped by ``SSLContext.wrap_socket``,
    the connection counts until the kernel is seen to have let go of it.
    Raises OSError as ``socket.create_connection`` does, and BudgetExhausted or NoUsableSource.
    """
    host, port = address
    seconds: float | None = socket.getdefaulttimeout() if timeout is _DEFAULT_TIMEOUT else timeout  # type: ignore[assignment]
    ledger = ledger or shared_ledger()
    chosen, source_port = ledger.sources, 0
    if source_address is not None or sources is not None:
        chosen, source_port = pick_sources(ledger, sources, source_address)
    to = To(Origin("tcp", host, port), ledger, chosen, None, None, source_port)
    failures: list[Exception] = []
    destinations = resolve(host, port)
    try:
        return dial(to, destinations, timeout=seconds, failures=failures)
    except NoUsableSource as error:
        if source_address is None:
            raise
        fault = OSError(errno.EADDRNOTAVAIL, str(error))  # the stock argument has the stock exception
        raise (ExceptionGroup(FAILED, [fault]) if all_errors else fault) from error
    except OSError as error:
        if all_errors:
            raise ExceptionGroup(FAILED, failures or [error]) from None
        raise


def pick_sources(
    ledger: Ledger, sources: Iterable[str] | str | Sources | None, source_address: tuple[str, int] | None
) -> tuple[Sources, int]:
    """Return the sources to use, and the source port where *source_address* insists on one."""
    if source_address is None:
        return (ledger.sources if sources is None else _sources(sources)), 0
    if sources is not None:
        raise InvalidOption("give source_address= or sources=, not both")
    host, port = source_address[:2]
    if host in ("", "0.0.0.0", "::"):
        return _kept("system"), port
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = str(socket.getaddrinfo(host, None, 0, socket.SOCK_STREAM)[0][4][0])
    return _kept((host,)), port


def _sources(value: Iterable[str] | str | Sources) -> Sources:
    if isinstance(value, Sources):
        return value
    return _kept(value if isinstance(value, str) else tuple(value))


@functools.lru_cache(maxsize=256)
def _kept(value: str | tuple[str, ...]) -> Sources:
    # The same object for each call: it knows which of its addresses failed, and whose turn it is.
    return Sources(value)
