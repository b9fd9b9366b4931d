"""The table: one line a row, a summary by suite, and what changed between two files. Losses are printed like wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atrousops.bench.results import DISPATCHED, OWN, TRITON, Report, Result, geometric_mean
from atrousops.common.testing import Timing

LEGEND = """\
Each result is held to PyTorch's in float64 first; a wrong one has no ratio. All run in turn: medians, +- half of the
range between quartiles. x: the fastest incumbent's time over ours, the median over rounds, below 1 is a
loss; ~ before it: not told from 1 by these rounds. floor: the time that bytes and live FLOPs need at this machine's
measured ceilings, over ours. gemm: the time of one matrix product of the same dense work, dead taps included, over
ours."""


def columns(triton: bool) -> tuple[str, ...]:
    """Ours, by name; Triton's where it runs."""
    return (DISPATCHED, OWN, TRITON) if triton else (DISPATCHED, OWN)


def header(triton: bool = False) -> str:
    """The names of the columns."""
    ours = " ".join(f"{name:<14} {'x':>6}" for name in columns(triton))
    return f"{'case':<52} {'type':<4} {'form':<4} {'pass':<11} {'incumbent':<24} {ours} {'floor':>5} {'gemm':>5} kernel"


def line(result: Result, triton: bool = False) -> str:
    """One row; remarks on it stand indented below."""
    start = f"{result.case:<52} {result.dtype:<4} {result.layout:<4} {result.direction:<11}"
    if result.error:
        return f"{start} FAILED: {result.error}"
    if result.is_wrong:
        wrong = "; ".join(f"{name}: {result.wrong[name]}" for name in (DISPATCHED, OWN, TRITON) if name in result.wrong)
        return f"{start} WRONG: {wrong}"
    incumbent = result.incumbent
    cells = [
        f"{incumbent + ' ' + _time(result.timings[incumbent]) if incumbent else 'none':<24}",
        *(f"{_time(result.timings.get(name)):<14} {_ratio(result, name):>6}" for name in columns(triton)),
        f"{_number(result.share, '.0%'):>5} {_number(result.of_gemm, '.2f'):>5} {result.kernel}",
    ]
    return "\n".join([f"{start} {' '.join(cells)}", *(f"    {note}" for note in _notes(result))])


def _notes(result: Result) -> Iterator[str]:
    others = list(result.incumbents.items())[1:]
    if others:
        yield "also " + ", ".join(f"{name} {_time(timing)}" for name, timing in others)
    for name, timing in result.beside.items():
        yield f"beside: {name}, of its own design, {_time(timing)}"
    for name, what in result.wrong.items():
        yield f"{name} computes something else: {what}"
    for name, why in result.failed.items():
        yield f"{name} cannot run: {why}"
    for name, why in result.missing.items():
        yield f"without {name}: {why}"
    if _memory_tells(result):
        yield "memory at most: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in result.memory.items())


def _memory_tells(result: Result) -> bool:
    """A network's does, and a call's where ours takes a tenth more; the others stand in the file."""
    ours, theirs = (result.memory.get(name or "", 0) for name in (DISPATCHED, result.incumbent))
    return bool(result.memory) and (result.suite == "networks" or ours > 1.1 * theirs)


def _time(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    unit, factor = ("s", 1.0) if timing.median >= 1 else ("ms", 1e3) if timing.median >= 1e-4 else ("us", 1e6)
    spread = (timing.upper - timing.lower) / 2 / timing.median if timing.median else 0.0
    return f"{timing.median * factor:.3g} {unit} +-{spread:.0%}"


def _ratio(result: Result, name: str) -> str:
    return ("~" if result.is_even(name) else "") + _number(result.ratio(name), ".2f")


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def head(report: Report) -> str:
    """Where the rows were taken."""
    e, best = report.environment, report.ceilings
    machine = e["gpu"]["name"] if e["gpu"] else f"{e['cpu']} ({e['isa'] or 'no library'}), {e['threads']} threads"
    commit = f" ({e['commit']})" if e["commit"] else ""
    peaks = ", ".join(f"{dtype} {_rate(rate)}" for dtype, rate in best.gemm.items())
    lines = [
        f"atrousops {e['versions']['atrousops']}{commit}, torch {e['versions']['torch']}, {machine}, {e['date']}",
        f"Ceilings measured here: copy {best.copy / 1e9:.3g} GB/s; matrix product {peaks}.",
    ]
    if e["load"] is not None and not e["gpu"] and e["load"] > 0.5:
        lines.append(
            f"Load of the last minute: {e['load']:.1f} on {e['cores']} cores. Timings of a busy machine are rough."
        )
    return "\n".join(lines)


def _rate(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def summary(report: Report) -> str:
    """The geometric means by suite, how many rows were lost, and what was left out."""
    triton = any(TRITON in result.timings for result in report.results)
    forced = " ".join(f"{name:>11}" for name in columns(triton)[1:])
    lines = [f"{'suite':<12} {'rows':>4} {'dispatched':>11} {'range':>15} {forced} {'below 1':>8} {'wrong':>6}"]
    for suite in dict.fromkeys(result.suite for result in report.results):
        lines.append(_summary_of(suite, [result for result in report.results if result.suite == suite], triton))
    lines.append("Geometric means of x; below 1: rows in which the dispatched call is slower, by more than noise.")
    for reason in dict.fromkeys(report.left_out.values()):
        keys = [key for key, why in report.left_out.items() if why == reason]
        lines.append(f"Left out, {reason}: {len(keys)} rows, such as {keys[0]}")
    return "\n".join(lines)


def _summary_of(suite: str, results: Sequence[Result], triton: bool) -> str:
    ratios = _ratios(results, DISPATCHED)
    means = [f"{_number(geometric_mean(_ratios(results, name)), '.2f'):>11}" for name in columns(triton)]
    spread = f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else "-"
    lost = sum((result.ratio() or 1) < 1 and not result.is_even() for result in results)
    wrong = sum(result.is_wrong or bool(result.error) for result in results)
    return f"{suite:<12} {len(results):>4} {means[0]} {spread:>15} {' '.join(means[1:])} {lost:>8} {wrong:>6}"


def _ratios(results: Sequence[Result], name: str) -> list[float]:
    return [ratio for result in results if (ratio := result.ratio(name)) is not None]


def changes(old: Report, new: Report) -> str:
    """What two files say of the same rows: our time before over after, and both ratios.

    A star marks a change larger than both rows' quartiles.
    """
    before = {result.key: result for result in old.results}
    after = {result.key: result for result in new.results}
    lines = [f"{name}: {head(report)}" for name, report in (("old", old), ("new", new))]
    if old.environment["device"] != new.environment["device"]:
        lines.append("The machines differ: times cannot be compared, only ratios.")
    lines.append(f"\n{'row':<100} {'old':<14} {'new':<14} {'faster':>7} {'x old':>6} {'x new':>6}")
    factors = []
    for key, result in after.items():
        if key not in before:
            continue
        line, factor = _change(key, before[key], result)
        lines.append(line)
        factors += [factor] if factor is not None else []
    mean = geometric_mean(factors)
    if mean is not None:
        lines.append(f"{len(factors)} rows in both; geometric mean of old over new: {mean:.3f}")
    for name, keys in (("old", before.keys() - after.keys()), ("new", after.keys() - before.keys())):
        if keys:
            lines.append(f"Only in {name}: {len(keys)} rows, such as {min(keys)}")
    return "\n".join(lines)


def _change(key: str, old: Result, new: Result) -> tuple[str, float | None]:
    a, b = old.timings.get(DISPATCHED), new.timings.get(DISPATCHED)
    if a is None or b is None:
        states = ["measured" if t is not None else _why_not(r) for t, r in ((a, old), (b, new))]
        return f"{key:<100} {states[0]} -> {states[1]}", None
    factor = a.median / b.median
    certain = "*" if a.upper < b.lower or b.upper < a.lower else " "
    ratios = " ".join(f"{_number(r.ratio(), '.2f'):>6}" for r in (old, new))
    return f"{key:<100} {_time(a):<14} {_time(b):<14} {factor:>6.2f}{certain} {ratios}", factor


def _why_not(result: Result) -> str:
    return "WRONG" if result.is_wrong else "FAILED"
