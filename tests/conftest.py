"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.ledgers import disagreements


@pytest.fixture(autouse=True)
def _ledgers_tell_the_truth() -> Iterator[None]:
    """After every test each ledger is empty, or holds exactly what the kernel shows."""
    yield
    found = disagreements()

    assert not found, found
