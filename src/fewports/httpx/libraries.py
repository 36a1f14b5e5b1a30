"""Which of httpx and httpx2 are installed, and the classes of each; the two are alike but for their name."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..errors import InvalidOption

NAMES = {"httpx2": "httpcore2", "httpx": "httpcore"}  # and where what they trace comes from


class Library(NamedTuple):
    """One of the two: its module, and what is needed of it for each request."""

    name: str
    module: ModuleType
    request: type[Any]
    response: type[Any]
    bytes: type[Any]

    def error(self, name: str) -> type[Exception]:
        """Return the exception class called *name*."""
        return cast("type[Exception]", getattr(self.module, name))

    @property
    def core(self) -> ModuleType:
        """The package that the library's own transport stands on."""
        return importlib.import_module(NAMES[self.name])


def _installed() -> list[Library]:
    found = []
    for name in NAMES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found.append(Library(name, module, module.Request, module.Response, module.ByteStream))
    if not found:
        raise ImportError("fewports.httpx needs httpx2 or httpx: pip install fewports[httpx2], or fewports[httpx]")
    return found


LIBRARIES = _installed()
_by_type: dict[type, Library] = {}

if TYPE_CHECKING:
    import httpx2

    AsyncBaseTransport = httpx2.AsyncBaseTransport
    AsyncByteStream = httpx2.AsyncByteStream
    BaseTransport = httpx2.BaseTransport
    SyncByteStream = httpx2.SyncByteStream
else:

    def _joined(name: str) -> type:
        """Make one class of those called *name*: its subclasses are at home in each library."""
        return type(name, tuple(getattr(library.module, name) for library in LIBRARIES), {})

    AsyncBaseTransport = _joined("AsyncBaseTransport")
    AsyncByteStream = _joined("AsyncByteStream")
    BaseTransport = _joined("BaseTransport")
    SyncByteStream = _joined("SyncByteStream")


def of_each(name: str) -> tuple[type[Exception], ...]:
    """Return the exception class called *name* of each library."""
    return tuple(library.error(name) for library in LIBRARIES)


def library_of(request: object) -> Library:
    """Return the library whose Request this is."""
    kind = type(request)
    found = _by_type.get(kind)
    if found is None:
        found = next((library for library in LIBRARIES if isinstance(request, library.request)), None)
        if found is None:
            raise InvalidOption(f"a request of {' or '.join(NAMES)} is wanted, not {kind.__module__}.{kind.__name__}")
        _by_type[kind] = found
    return found
