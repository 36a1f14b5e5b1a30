"""Tell whether a function of another library is still its own: then work that comes to nothing may be left out."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any


def own(package: str, owner: object, name: str) -> Any:
    """Return *package*'s function of that name in *owner*; if another is in its place, what equals nothing."""
    found = getattr(owner, name, None)
    function = found.fget if isinstance(found, property) else found
    if type(function) is not FunctionType or function.__code__.co_name != name:
        return object()
    home = str(function.__module__)
    # A wrapper has the globals of its maker.
    same = home.partition(".")[0] == package and function.__globals__ is vars(sys.modules[home])
    return found if same else object()


def is_own(method: Any, function: object) -> bool:
    """Say whether *method*, of a class or an instance, is still *function*, as own() gave it."""
    return getattr(method, "__func__", method) is function
