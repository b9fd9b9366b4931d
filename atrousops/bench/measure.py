"""One row measured: checked first, then ours, the incumbents and the matrix product of equal work in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import atrousops as ao
from atrousops.bench.machine import Ceilings, clock_of, peak_memory, tf32
from atrousops.bench.operators import under
from atrousops.bench.registry import DTYPES, Prepared, Row
from atrousops.bench.results import DISPATCHED, GEMM, OWN, TRITON, Result
from atrousops.common.testing import Ready, Run, Timing, compare
from atrousops.dispatch import libraries, triton_library

# A matrix product of equal work is left out if its operands need more than this.
MOST_GEMM_BYTES = 4 << 30


@dataclass(frozen=True)
class Options:
    """repeats, at most, and budget (seconds) of each row; compile: also time what torch.compile makes of PyTorch's way.

    files: also time programs that read the network from a file, which takes seconds to write.
    autotune: measure the convolutions of ours first, so that `dispatched` is what they say, and later processes know.
    """

    repeats: int = 200
    budget: float = 3.0
    compile: bool = False
    files: bool = True
    autotune: bool = False


def measure(row: Row, device: torch.device, best: Ceilings, options: Options) -> Result:
    """Everything about one row. What goes wrong is in the result; only an interruption passes through."""
    result = Result(row.suite, row.case, row.reason, row.dtype, row.layout, row.direction)
    try:
        with tf32(row.dtype):
            _measure(result, row, device, best, options)
    except Exception as error:
        result.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return result


def _measure(result: Result, row: Row, device: torch.device, best: Ceilings, options: Options) -> None:
    prepared = row.prepared(device)
    if not options.files:
        prepared = _without_files(prepared)
    if options.autotune:
        ao.autotune(lambda: prepared.ours()(), budget=options.budget)
    result.floor, result.missing = prepared.floor, prepared.missing
    result.floor_seconds = prepared.floor.seconds(best.copy, best.peak(row.dtype))
    result.kernel, result.why = prepared.kernel()
    result.gemm = prepared.gemm
    ours, theirs = _contenders(prepared, device, options)
    comparison = compare(
        ours,
        theirs,
        prepared.exact,
        yardstick=prepared.yardstick,
        rounded=prepared.from_file,
        anchors=_anchors(prepared.gemm, row.dtype, device, best) | prepared.beside,
        repeats=options.repeats,
        budget=options.budget,
        clock=clock_of(device, of_host=prepared.calls > 1),
    )
    per_call = {name: _per_call(t, 1 if name == GEMM else prepared.calls) for name, t in comparison.timings.items()}
    result.beside = {name: t for name, t in per_call.items() if name in prepared.beside}
    result.timings = {name: t for name, t in per_call.items() if name not in prepared.beside}
    if result.incumbent is not None:
        theirs_in_turn = comparison.timings[result.incumbent]
        timed = (name for name in ours if name in comparison.timings)
        result.ratios = {name: theirs_in_turn.over(comparison.timings[name]) for name in timed}
    result.wrong, result.failed = comparison.wrong, comparison.failed
    incumbent = next((name for name in result.incumbents if name not in prepared.from_file), None)
    for name in (DISPATCHED, incumbent, *result.beside):
        if name is not None and name in per_call and prepared.calls == 1:
            result.memory[name] = peak_memory((ours | theirs | prepared.beside)[name](), device)


def _without_files(prepared: Prepared) -> Prepared:
    theirs = {name: ready for name, ready in prepared.theirs.items() if name not in prepared.from_file}
    missing = prepared.missing | dict.fromkeys(prepared.from_file, "no part of --quick, for its file takes seconds")
    return replace(prepared, theirs=theirs, missing=missing, from_file={})


def _contenders(
    prepared: Prepared, device: torch.device, options: Options
) -> tuple[dict[str, Ready], dict[str, Ready]]:
    ours = {DISPATCHED: prepared.ours}
    library = libraries.cuda if device.type == "cuda" else libraries.cpu
    if library.problem is None:
        ours[OWN] = under(device.type, prepared.ours)
    if runs_triton(device):
        ours[TRITON] = under("triton", prepared.ours)
    theirs = dict(prepared.theirs)
    if options.compile and prepared.compiled is not None:
        theirs["torch.compile"] = prepared.compiled(_compile)
    return ours, theirs


def runs_triton(device: torch.device) -> bool:
    """Whether rows have Triton's kernels beside those of the compiled library."""
    return device.type in triton_library.KEYS and triton_library.installed()


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _per_call(timing: Timing, calls: int) -> Timing:
    return Timing(timing.median / calls, timing.lower / calls, timing.upper / calls, timing.repeats)


def _anchors(shape: tuple[int, int, int] | None, dtype: str, device: torch.device, best: Ceilings) -> dict[str, Ready]:
    if shape is None or _gemm_bytes(shape, dtype) > MOST_GEMM_BYTES:
        return {}
    # PyTorch multiplies 16-bit matrices a hundred times slower than fp32 ones on a CPU without hardware for them.
    if best.gemm[dtype] < 0.5 * best.peak(dtype):
        return {}

    def ready() -> Run:
        m, n, k = shape
        a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        return partial(torch.matmul, a.to(DTYPES[dtype]), b.to(DTYPES[dtype]))

    return {GEMM: ready}


def _gemm_bytes(shape: Sequence[int], dtype: str) -> int:
    m, n, k = shape
    return (m * k + k * n + m * n) * DTYPES[dtype].itemsize
