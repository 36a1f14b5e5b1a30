"""What holds for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import hypothesis  # noqa: F401 - its plugins look at who refers to what, before the freeze below
import pytest
from support.ledgers import disagreements

for _name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # with requests they would go before a test's own certificates
    os.environ.pop(_name, None)


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
