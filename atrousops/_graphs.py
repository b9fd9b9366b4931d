"""Functions that look at shapes: a graph traced by `optimize` calls them as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

WHOLE: list[Callable[..., Any]] = []


def whole(function: F) -> F:
    """Marks a function as one that is not looked into."""
    WHOLE.append(function)
    return function
