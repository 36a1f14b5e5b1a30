"""What is asked of the engine: a request, and how long it may take."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from typing import NamedTuple

from ..http1 import Field, Preset
from ..http2.message import header_fields

PRESETS, REMEMBERED = 64, 2048  # sets of fields that are remembered as bytes, and their size at most

Fields = tuple[Field, ...]
Body = bytes | Iterable[bytes] | AsyncIterable[bytes]


class Times(NamedTuple):
    """How long things may take, in seconds: each wait for the peer, and the one in line; *deadline* is monotonic."""

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None
    deadline: float | None = None

    def within(self, seconds: float | None, now: float) -> float | None:
        """Return *seconds*, or less if the deadline is nearer."""
        if self.deadline is None:
            return seconds
        left = max(0.0, self.deadline - now)
        return left if seconds is None else min(left, seconds)


class Request(NamedTuple):
    """What is asked for; *fields* are all that are sent, Host among them; *upgrade*: another protocol, if it may be."""

    method: str
    target: str
    fields: Fields = ()
    body: Body | None = None
    upgrade: bool = False


class Presets(dict[Fields, Preset]):
    """Sets of fields as bytes, for the requests to one origin."""

    def __missing__(self, fields: Fields) -> Preset:
        preset = Preset(fields)
        if len(preset.lines) <= REMEMBERED:
            if len(self) >= PRESETS:
                self.clear()
            self[fields] = preset
        return preset


class FieldSets(dict[Fields, Fields]):
    """Sets of fields as HTTP/2 has them, for the requests to one origin."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def __missing__(self, fields: Fields) -> Fields:
        found = header_fields(fields)
        if len(self) >= PRESETS:
            self.clear()
        self[fields] = found
        return found


async def each(body: Body, put: Callable[[bytes], Awaitable[bool]]) -> bool:
    """Have *put* take the pieces of *body* until it says False; say whether it took all."""
    if isinstance(body, AsyncIterable):
        pieces = aiter(body)
        try:
            async for piece in pieces:
                if not await put(piece):
                    return False
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()  # it was begun here; trio warns of those that nobody ends
    else:
        for piece in (body,) if isinstance(body, bytes) else body:
            if not await put(piece):
                return False
    return True
