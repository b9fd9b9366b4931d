"""One thread against all of them: ours alone, so that x is how many times faster the threads are together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from atrousops.bench.registry import Prepared, Row, Setting, suite_rows
from atrousops.common.testing import Outputs, Ready, Run

ALONE = "one thread"
# Rows of other suites that run on kernels of ours: suite, beginning of the case, "DTYPE LAYOUT DIRECTION", whether it
# is quick.
ROWS = (
    ("deeplab", "aspp OS16, rate 18", "fp32 nchw forward", True),
    ("deeplab", "aspp OS16, rate 18", "fp32 nhwc weight_grad", False),
    ("depthwise", "Xception middle flow", "fp32 nchw training", True),
    ("transposed", "FCN-8s k16 s8", "fp32 nchw forward", False),
    ("unpool", "max_pool with indices, 4x64x256x256", "fp32 nchw forward", True),
    ("unpool", "max_pool with indices, 1x64x180x240", "fp32 nhwc forward", False),
    ("unpool", "max_unpool, 4x64x256x256", "fp32 nchw forward", True),
    ("unpool", "max_unpool, 1x64x180x240", "fp32 nhwc forward", False),
    ("roi", "box head 7x7, 512", "fp32 nchw forward", True),
    ("roi", "box head 7x7, 512", "fp32 nchw backward", True),
    ("roi", "RoIPool 7x7", "fp32 nchw forward", False),
    ("crf", "mean field", "fp32 nchw forward", True),
    ("crf", "both lattices", "fp32 nchw forward", False),
)


def rows() -> Iterator[Row]:
    """The main rows of the other suites."""
    for suite, case, way, quick in ROWS:
        # Of several batches the first, which is the smallest.
        row = next(
            row
            for row in suite_rows(suite)
            if row.case.startswith(case) and f"{row.dtype} {row.layout} {row.direction}" == way
        )
        prepare = partial(_against_itself, row.prepare)
        name = f"{suite}: {row.case}"
        yield replace(row, suite="scaling", case=name, reason=f"of {suite}", prepare=prepare, quick=quick)


def _against_itself(prepare: Callable[[Setting], Prepared], at: Setting) -> Prepared:
    prepared = prepare(at)
    # The bound for errors stays that of the incumbent.
    first = next(iter(prepared.theirs.values()), None)
    yardstick = prepared.yardstick or (None if first is None else lambda: first()())
    alone: dict[str, Ready] = {ALONE: partial(_on_one_thread, prepared.ours)}
    return replace(prepared, theirs=alone, yardstick=yardstick, gemm=None, compiled=None, missing={})


def _on_one_thread(ready: Ready) -> Run:
    threads = torch.get_num_threads()
    run = ready()

    def alone() -> Outputs:
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return alone
