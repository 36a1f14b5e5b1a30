"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Iterator

import hypothesis  # noqa: F401 - its plugins look at who refers to what, before the freeze below
import pytest
from support.ledgers import disagreements

for _name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # with requests they would go before a test's own certificates
    os.environ.pop(_name, None)


FULL = os.environ.get("FEWPORTS_FULL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have each test that runs on threads and on three loops run on threads and on one of these, if not on all."""
    loops = "asyncio", "uvloop", "trio"

    def stays(item: pytest.Item) -> bool:
        parameters = getattr(item, "callspec", None)
        way = parameters.params.get("each_way", "threads") if parameters else "threads"
        name = item.name.replace(way, "")
        return FULL or way == "threads" or way == loops[zlib.crc32(name.encode()) % len(loops)]

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
