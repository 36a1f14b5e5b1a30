"""The clients that the demo sets to work: as everybody writes it, and fewports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import urllib3

from ...errors import FewportsError
from ...urllib3 import PoolManager
from .work import Get, Work

TIMEOUT = 5.0  # seconds; the server of a trial answers at once


class Unanswered(FewportsError):
    """The server answered, but not with 200."""


@contextmanager
def requests_get(work: Work) -> Iterator[Get]:
    """``requests.get`` for each request; it can bind no source."""
    import requests  # optional

    def get(url: str) -> None:
        check(requests.get(url, timeout=TIMEOUT).status_code)

    yield get


@contextmanager
def urllib3_each(work: Work) -> Iterator[Get]:
    """A new ``urllib3.PoolManager`` for each request: what ``requests.get`` does, without requests."""

    def get(url: str) -> None:
        with urllib3.PoolManager() as manager:
            check(manager.request("GET", url, timeout=TIMEOUT).status)

    yield get


@contextmanager
def fewports_manager(work: Work) -> Iterator[Get]:
    """One ``fewports.PoolManager``."""
    with PoolManager(sources=work.sources or None, budget=work.budget) as manager:

        def get(url: str) -> None:
            check(manager.request("GET", url, timeout=TIMEOUT).status)

        yield get


def check(status: int) -> None:
    """Raise Unanswered unless the status is 200."""
    if status != 200:
        raise Unanswered(f"the server answered {status}")
