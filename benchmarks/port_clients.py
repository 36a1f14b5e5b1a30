"""The clients that ports.py compares, beside those of `fewports demo`. Each is used as its documentation shows.

With source addresses to connect from, the stock ones have one adapter or manager for each and take them in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

import fewports.requests
from fewports.cli.trial.clients import TIMEOUT, check
from fewports.cli.trial.work import Get, Work


class Bound(HTTPAdapter):
    """What the web tells one to write for a source address."""

    def __init__(self, source: str) -> None:
        self._source = source
        super().__init__()

    def init_poolmanager(self, *args: Any, **keywords: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._source, 0), **keywords)


@contextmanager
def session(work: Work) -> Iterator[Get]:
    """One ``requests.Session`` for all threads, or one for each source."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(requests.Session()) for _ in work.sources or [""]]
        for one, source in zip(sessions, work.sources, strict=False):
            one.mount("http://", Bound(source))
        yield _in_turn([_session_get(one) for one in sessions])


@contextmanager
def manager(work: Work) -> Iterator[Get]:
    """One ``urllib3.PoolManager``; the kernel chooses the source."""
    with urllib3.PoolManager() as one:
        yield _manager_get(one)


@contextmanager
def bound_manager(work: Work) -> Iterator[Get]:
    """One ``urllib3.PoolManager`` with ``source_address``, or one for each source."""
    with ExitStack() as stack:
        sources = work.sources or ("127.0.0.1",)
        managers = [stack.enter_context(urllib3.PoolManager(source_address=(source, 0))) for source in sources]
        yield _in_turn([_manager_get(one) for one in managers])


@contextmanager
def fewports_session(work: Work) -> Iterator[Get]:
    """One ``fewports.requests.Session``, which is given all sources."""
    with fewports.requests.Session(sources=work.sources or None) as one:
        yield _session_get(one)


def _session_get(one: requests.Session) -> Get:
    return lambda url: check(one.get(url, timeout=TIMEOUT).status_code)


def _manager_get(one: urllib3.PoolManager) -> Get:
    return lambda url: check(one.request("GET", url, timeout=TIMEOUT).status)


def _in_turn(gets: list[Callable[[str], None]]) -> Get:
    numbers = itertools.count()
    return lambda url: gets[next(numbers) % len(gets)](url)
