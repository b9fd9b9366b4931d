"""Runs a selection of rows: a table that grows, and a file that is whole after every row."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from atrousops.bench import machine, report
from atrousops.bench.measure import Options, measure, runs_triton
from atrousops.bench.registry import SCALING, Row, suite_title
from atrousops.bench.results import Report
from atrousops.common.checks import bad_value
from atrousops.dispatch.devices import is_emulated

HOW = {"skimage": "scikit-image is missing: pip install 'atrousops[bench]'"}
# What `--quick` may take, in seconds; the row at hand is finished, and so five minutes are kept.
QUICK_SECONDS = 270.0


def check_hardware(device: torch.device) -> None:
    """Raises ArgumentError if the device is emulated."""
    if is_emulated(device):
        got = f"{device}, which is {torch.cuda.get_device_name(device)}"
        bad_value("bench", "device", "be hardware", got, "Its times say nothing of a GPU. Use --device cpu.")


def run(
    rows: Sequence[Row],
    device: torch.device,
    options: Options,
    *,
    path: Path | None = None,
    seconds: float = float("inf"),
    show: Callable[[str], object] = tqdm.write,
) -> Report:
    """Measures rows in order and shows each as it is done.

    Args:
        path: the file to write, after every row.
        seconds: after which no further row begins; those are listed as left out.
        show: prints a line.

    Returns:
        What was measured. An interruption passes through, after the summary of what there was.

    Raises:
        ArgumentError: the device is emulated; nothing is measured, printed or written.
    """
    check_hardware(device)
    end = time.monotonic() + seconds
    _settle_allocator()
    rows, left_out = _runnable(rows, device)
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    result = Report(machine.environment(device), machine.ceilings(device, dtypes), left_out=left_out)
    show(f"{report.head(result)}\n{report.LEGEND}")
    suite, triton = "", runs_triton(device)
    try:
        with tqdm(total=len(rows), unit="row", disable=None, leave=False) as bar:
            for number, row in enumerate(rows, 1):
                if time.monotonic() > end:
                    left_out[row.key] = f"for {seconds:.0f} s were over"
                    continue
                if row.suite != suite:
                    suite = row.suite
                    show(f"\n{suite}: {suite_title(suite)}\n{'':>9}{report.header(triton)}")
                bar.set_description(row.key)
                result.results.append(measure(row, device, result.ceilings, options))
                show(f"{f'{number}/{len(rows)}':>8} {report.line(result.results[-1], triton)}")
                if path is not None:
                    result.save(path)
                bar.update()
    finally:
        if result.results:
            show(f"\n{report.summary(result)}")
    if path is not None:
        result.save(path)
    return result


def _settle_allocator() -> None:
    # glibc gives memory back from its heap, and takes it again page by page, until something as large as this has been
    # freed: rows of a few MB would be decided by what ran before them.
    torch.empty(31 << 20, dtype=torch.uint8)


def _runnable(rows: Sequence[Row], device: torch.device) -> tuple[list[Row], dict[str, str]]:
    left_out = {}
    for row in rows:
        missing = next((name for name in row.needs if importlib.util.find_spec(name) is None), None)
        if missing is not None:
            left_out[row.key] = HOW[missing]
        elif row.dtype == "tf32" and device.type != "cuda":
            left_out[row.key] = "for TF32 is a GPU's"
        elif row.suite == SCALING and device.type != "cpu":
            left_out[row.key] = "for threads are a CPU's"
    return [row for row in rows if row.key not in left_out], left_out
