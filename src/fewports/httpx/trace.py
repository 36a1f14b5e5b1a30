"""The ``trace`` extension: what a request tells of its steps, under the names of httpcore."""

from __future__ import annotations

from typing import Any, NamedTuple

from .libraries import Library


class Step(NamedTuple):
    """One event as the callback is to see it."""

    name: str
    info: dict[str, Any]


def started(name: str, info: dict[str, Any]) -> Step:
    return Step(f"{name}.started", info)


def complete(name: str, value: object) -> Step:
    return Step(f"{name}.complete", {"return_value": value})


def failed(name: str, error: BaseException) -> Step:
    return Step(f"{name}.failed", {"exception": error})


def core_request(library: Library, request: Any, target: bytes) -> Any:
    """Return *request* as httpcore has it, for those who read it in an event."""
    core, url = library.core, request.url
    return core.Request(
        method=request.method,
        url=core.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=target),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )
