"""The pytest plugin of run.py: puts fewports' classes in the place of the stock ones before any test is imported.

FEWPORTS_UPSTREAM says what to replace (the name of a suite, or nothing for a stock run), FEWPORTS_PACKAGE where the
replacements are. Also writes down how each test ended, as FEWPORTS_OUTCOMES.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import dummy_server
import pytest

# Every module of urllib3 in which a name is looked up when it is used.
HOMES = ("urllib3", "urllib3.connection", "urllib3.connectionpool", "urllib3.poolmanager")
NAMES = (
    *("HTTPConnection", "HTTPSConnection", "HTTPConnectionPool", "HTTPSConnectionPool"),
    *("PoolManager", "ProxyManager"),
)
# urllib3's modules that subclass what was replaced; whoever imports them again gets subclasses of ours.
HEIRS = ("urllib3.contrib.socks", "urllib3.http2.connection")

outcomes: dict[str, str] = {}
reasons: dict[str, str] = {}
replaced: list[str] = []


def replace_urllib3(ours: ModuleType) -> None:
    """Bind the names of the stock classes to ours."""
    import urllib3

    stock = {name: getattr(urllib3.connectionpool, name, None) or getattr(urllib3, name) for name in NAMES}
    for home in map(importlib.import_module, HOMES):
        for name, value in list(vars(home).items()):
            for known, old in stock.items():
                if value is old:  # VerifiedHTTPSConnection is another name of HTTPSConnection
                    _bind(home, name, getattr(ours, known))
    schemes = {"http": ours.HTTPConnectionPool, "https": ours.HTTPSConnectionPool}
    urllib3.poolmanager.pool_classes_by_scheme.update(schemes)
    urllib3._DEFAULT_POOL = ours.PoolManager()
    for heir in HEIRS:
        if sys.modules.pop(heir, None):
            parent, _, name = heir.rpartition(".")
            vars(sys.modules[parent]).pop(name, None)


def replace_requests(ours: ModuleType) -> None:
    """Bind the names of the stock classes to ours."""
    import requests

    for home in (requests, requests.sessions, requests.adapters):
        for name, new in (("Session", ours.Session), ("HTTPAdapter", ours.Adapter)):
            if hasattr(home, name):
                _bind(home, name, new)


def replace_httpx(ours: ModuleType, name: str) -> None:
    """Bind the names of the stock transports of httpx or httpx2 to ours."""
    for module in ("", "._client", "._transports", "._transports.default"):
        home = importlib.import_module(name + module)
        for old, new in (("HTTPTransport", "Transport"), ("AsyncHTTPTransport", "AsyncTransport")):
            if hasattr(home, old) and hasattr(ours, new):
                _bind(home, old, getattr(ours, new))


def speak_http_1_1(ours: ModuleType) -> None:
    """Have http2=False where nothing was said: many tests look at a connection's socket, or say what ALPN offers."""
    made = ours.Gate.__init__

    def make(self: object, *args: object, **options: object) -> None:
        made(self, *[False if value == "auto" else value for value in args], **options)

    ours.Gate.__init__ = make


def _bind(home: ModuleType, name: str, new: type) -> None:
    setattr(home, name, new)
    replaced.append(f"{home.__name__}.{name} = {new.__module__}.{new.__qualname__}")


def pytest_report_header() -> list[str]:
    return replaced or ["stock classes"]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        if outcomes.get(report.nodeid) != "failed":  # a failed teardown after a passed call counts
            outcomes[report.nodeid] = outcome
    if report.outcome != "passed":
        reasons[report.nodeid] = _reason(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[report.nodeid] = "failed"
        reasons[report.nodeid] = _reason(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # xdist: only the process that hears of all tests
        told = {"outcomes": outcomes, "reasons": reasons, "replaced": replaced}
        Path(os.environ["FEWPORTS_OUTCOMES"]).write_text(json.dumps(told, indent=1))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).strip()[:2000]


def _replace() -> None:
    suite = os.environ.get("FEWPORTS_UPSTREAM")
    if suite:
        package = os.environ["FEWPORTS_PACKAGE"]
        ours = importlib.import_module(f"{package}.{suite.removesuffix('2')}")
        if suite.startswith("httpx"):
            replace_httpx(ours, suite)
            return
        if package == "fewports":
            speak_http_1_1(importlib.import_module("fewports.urllib3"))
        {"urllib3": replace_urllib3, "requests": replace_requests}[suite](ours)


_replace()
dummy_server.complete()
