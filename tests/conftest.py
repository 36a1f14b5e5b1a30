"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
import zlib
from collections.abc import Iterator

import hypothesis  # noqa: F401 - its plugins look at who refers to what, before the freeze below
import pytest
from support.ledgers import disagreements

for _name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # with requests they would go before a test's own certificates
    os.environ.pop(_name, None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is to run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


FULL = os.environ.get("FEWPORTS_FULL") == "1"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run everything in two processes, and what is named on the command line in this one."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take a sample, the same each time, if not all: what runs in several ways runs in fewer.

    Of threads and three loops, on threads and one of these; with httpx and httpx2, with one of them; of the others on
    uvloop, which is asyncio's to us, each fourth.
    """
    loops = "asyncio", "uvloop", "trio"

    def stays(item: pytest.Item) -> bool:
        parameters = getattr(item, "callspec", None)
        if FULL or parameters is None:
            return True
        way, library = parameters.params.get("each_way"), parameters.params.get("lib")
        if way is not None:
            return way == "threads" or way == loops[zlib.crc32(item.name.replace(way, "").encode()) % len(loops)]
        number = zlib.crc32(item.name.replace("httpx2", "httpx").encode())
        if library is not None and library.__name__ != ("httpx", "httpx2")[number % 2]:
            return False
        return "uvloop" not in item.name or number % 4 == 0

    items[:] = filter(stays, items)


def pytest_collection_finish() -> None:
    """Leave what was there before the tests out of the collection after each, which then takes 1 ms and not 50."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let plugins that look for references, as hypothesis does when it is imported, find them again."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _ledgers_tell_the_truth() -> Iterator[None]:
    """After every test each ledger is empty, or holds exactly what the kernel shows."""
    yield
    found = disagreements()

    assert not found, found
