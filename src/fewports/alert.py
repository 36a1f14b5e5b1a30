"""What TLS says where it ends a connection, told apart from an end without a word."""

from __future__ import annotations

import copy
import ssl


def alert_in(error: object) -> ssl.SSLError | None:
    """Return what TLS said as an error for one caller more; None if it said nothing but that this is the end.

    With TLS 1.3 a server refuses the client's certificate when the handshake is over for us: whoever reads next is told
    (RFC 8446, section 4.4.2.4).
    """
    if not isinstance(error, ssl.SSLError) or isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return None
    return copy.copy(error)
