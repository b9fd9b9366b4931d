"""The only place that imports matplotlib, which is an optional dependency."""

from __future__ import annotations

from typing import Any

from atrousops.common.checks import ArgumentError

# Okabe and Ito's colours, distinguishable with colour blindness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000", "#999999")


class NoFigures(ArgumentError):
    """matplotlib is not installed."""


def new_figure(what: str, extra: str, width: float, height: float) -> Any:
    """An empty figure of a size in inches, with automatic layout.

    Args:
        what: the feature that needs matplotlib, in the plural, for the error message, such as "bench: plots".
        extra: the extra of this package that installs matplotlib.

    Raises:
        NoFigures: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoFigures(f"{what} need matplotlib: pip install 'atrousops[{extra}]'") from None
    # Not pyplot: no display, nothing to close.
    return Figure(figsize=(width, height), layout="constrained")
