"""Entry points of other installed packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from atrousops.common.checks import ArgumentError, bad_value


def names(group: str) -> tuple[str, ...]:
    """The sorted names of a group, such as "atrousops.networks"; nothing is imported."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """The object that an installed package provides under that name.

    Raises:
        ArgumentError: no package or more than one provides it, or its import fails; the message names the package.
    """
    points = [*{(p.value, _package(p)): p for p in entry_points(group=group, name=name)}.values()]
    if len(points) != 1:
        found = ", ".join(f"{p.value} of {_package(p)}" for p in points) or "none"
        bad_value(group, repr(name), "be the entry point of one installed package", found)
    point = points[0]
    try:
        return point.load()
    except Exception as error:
        # The code of another package may raise anything.
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = f"{group}: {name!r} is {point.value} of the package {_package(point)}, whose import fails: {why}."
        raise ArgumentError(f"{text} Repair or uninstall {_package(point)}.") from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"
