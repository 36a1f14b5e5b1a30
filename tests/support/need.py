"""What a test needs and this host may not have: skipped here, a failure where CI=true."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """End the test: as skipped on a developer's host, as failed in CI, where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """Return the path of an installed program, or end the test with missing()."""
    # Debian keeps servers in /usr/sbin, which is not on every user's path.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or missing(f"no {name} here")
