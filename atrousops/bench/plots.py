"""Two pictures of a file of results: the ratios as bars, and the roofline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from atrousops.bench.registry import SCALING
from atrousops.bench.report import columns
from atrousops.bench.results import DISPATCHED, TRITON, Report, Result
from atrousops.common.figures import COLORS, new_figure

FORMATS = ("png", "svg")


def draw(report: Report, stem: Path) -> list[Path]:
    """Writes STEM_ratios and STEM_roofline as PNG and SVG, those for which there are rows; returns the files.

    Raises:
        NoFigures: matplotlib is not installed.
    """
    report = replace(report, results=[result for result in report.results if result.suite != SCALING])
    figures = {"ratios": _ratios(report), "roofline": _roofline(report)}
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        for suffix in FORMATS:
            path = stem.with_name(f"{stem.name}_{name}.{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
            written.append(path)
    return written


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    figure = new_figure("bench: plots", "bench", width, height)
    return figure, figure.add_subplot()


def _title(report: Report) -> str:
    e = report.environment
    machine = e["gpu"]["name"] if e["gpu"] else f"{e['cpu']} {e['isa'] or ''}, {e['threads']} threads"
    return f"atrousops {e['versions']['atrousops']} against torch {e['versions']['torch']}, {machine}"


def _ratios(report: Report) -> Any:
    rows = [result for result in report.results if result.ratio() is not None]
    if not rows:
        return None
    figure, axes = _new_figure(11, 1.4 + 0.26 * len(rows))
    names = columns(any(TRITON in row.timings for row in rows))
    thick = 0.76 / len(names)
    for position, (name, color) in enumerate(zip(names, (COLORS[0], COLORS[4], COLORS[1]))):
        offset = (position - (len(names) - 1) / 2) * thick
        known = [(i, ratio) for i, row in enumerate(rows) if (ratio := row.ratio(name)) is not None]
        # Bars start at 1: to the right ours is faster, to the left it loses.
        axes.barh(
            [i + offset for i, _ in known], [r - 1 for _, r in known], 0.95 * thick, left=1, color=color, label=name
        )
    for i, row in enumerate(rows):
        ratio = row.ratio()
        assert ratio is not None
        end = max(1, *(row.ratio(name) or 0 for name in names))
        axes.annotate(f"{ratio:.2f}", (end, i), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", which="both", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("time of the fastest incumbent over ours: right of 1 ours is faster, left of 1 it loses")
    axes.set_title(_title(report), fontsize=10, pad=24)
    axes.margins(x=0.08)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(names), frameon=False, fontsize=8)
    return figure


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label(row: Result) -> str:
    return f"{row.suite}: {row.case}  {row.dtype} {row.layout} {row.direction}"


def _roofline(report: Report) -> Any:
    rows = [r for r in report.results if r.floor is not None and r.floor.flops and DISPATCHED in r.timings]
    if not rows:
        return None
    figure, axes = _new_figure(9, 6)
    points = [(r, _live(r) / r.floor.bytes) for r in rows if r.floor is not None]
    low, high = min(x for _, x in points) / 2, max(x for _, x in points) * 2
    for style, dtype in zip(("-", "--", ":"), dict.fromkeys(r.dtype for r in rows)):
        peak, copy = report.ceilings.peak(dtype), report.ceilings.copy
        knee = peak / copy
        xs = [min(low, knee / 2), knee, max(high, knee * 2)]
        ys = [min(peak, copy * x) for x in xs]
        axes.plot(xs, ys, style, color="black", linewidth=1, label=f"ceilings measured, {dtype}")
    for color, suite in zip(COLORS, dict.fromkeys(r.suite for r in rows)):
        for name, marker in ((DISPATCHED, "o"), ("incumbent", "x")):
            chosen = [(x, _live(r) / t) for r, x in points if r.suite == suite and (t := _seconds(r, name)) is not None]
            if chosen:
                label = f"{suite}, {'ours' if name == DISPATCHED else name}"
                axes.scatter(*zip(*chosen), marker=marker, color=color, s=26, label=label, alpha=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("live FLOP per byte, every tensor touched once")
    axes.set_ylabel("live FLOP/s (dead taps not counted)")
    axes.grid(which="both", color="0.93")
    axes.set_axisbelow(True)
    axes.set_title(_title(report), fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _live(row: Result) -> float:
    return row.floor.flops * row.floor.live_share if row.floor is not None else 0.0


def _seconds(row: Result, name: str) -> float | None:
    key = row.incumbent if name == "incumbent" else name
    return row.timings[key].median if key is not None and key in row.timings else None
