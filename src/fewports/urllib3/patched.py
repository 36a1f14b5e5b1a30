"""Whether somebody, such as an APM agent, has put something in the place of what http.client sends with."""

from __future__ import annotations

import http.client
from operator import attrgetter

from .._own import own

# Where one of them is not as it came, requests go its way.
_SENDING = ("request", "putrequest", "putheader", "endheaders", "send", "getresponse")
_sending = attrgetter(*_SENDING)
_stock_sending = tuple(own("http", http.client.HTTPConnection, step) for step in _SENDING)


def untouched() -> bool:
    """Say whether nobody has."""
    return _sending(http.client.HTTPConnection) == _stock_sending
