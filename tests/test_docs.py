"""The examples of the README and the docs run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import HttpServer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with HttpServer("127.0.0.1", "::1") as running:
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, server: HttpServer) -> None:
    """Each page's examples run one after the other, against a server that stands for theirs, with no warning."""
    code = "\n".join(EXAMPLE.findall(page.read_text())).replace("8080", str(server.port))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page is to a file that is there."""
    targets = [found[0] or found[1] for found in LINK.findall(page.read_text())]

    assert [target for target in targets if not (page.parent / target).exists()] == []
