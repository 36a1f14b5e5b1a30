"""How long a request's body is by the header fields that its caller gave. Sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FRAMING = frozenset(("content-length", "transfer-encoding"))
UNCLEAR = -(1 << 62)  # the length of a body that two readers could understand differently: no sum of real ones


def own_length(headers: Mapping[Any, Any], chunked: bool) -> int | None:
    """Return the bytes that *headers* announce; None where urllib3 frames the body by itself, *chunked* or not."""
    said = [(name.lower(), value) for name, value in map(_plain, headers.items()) if name.lower() in FRAMING]
    if not said:
        return None
    if len(said) > 1:  # both, or one twice (RFC 9112, sections 6.1 and 6.3)
        return UNCLEAR
    ((name, value),) = said
    if name == "transfer-encoding":
        return None if value.lower() == "chunked" else UNCLEAR
    return int(value) if value.isdecimal() and not chunked else UNCLEAR


def size_of(data: Any) -> int:
    """Return the bytes that go out for *data*."""
    try:
        return memoryview(data).nbytes
    except TypeError:
        return UNCLEAR  # a file, or an iterable: given to http.client


def _plain(field: tuple[Any, Any]) -> tuple[str, str]:
    name, value = (part.decode("latin-1") if isinstance(part, bytes) else str(part) for part in field)
    return name, value.strip(" \t")
