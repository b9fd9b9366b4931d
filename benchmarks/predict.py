"""What the planner predicts of every row of the DeepLab suite on an H100 and an H200, against an estimate of cuDNN.

python benchmarks/predict.py writes the section of docs/kernels.md below the marker; --show prints it. No GPU takes
part: `seconds` are the planner's own (csrc/core/plan_cuda.cpp), taken apart here into what they are made of.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

from atrousops.bench import floors
from atrousops.bench.registry import DTYPES, Row
from atrousops.bench.suites import deeplab
from atrousops.dispatch import devices, geometry, libraries, planner
from atrousops.dispatch.devices import Device
from atrousops.dispatch.geometry import Problem

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
MARKER = "<!-- below: python benchmarks/predict.py -->\n"
# Bytes a second of a large copy, read and written, as measured; all else is taken to be alike.
COPY = {"H100": 3.0e12, "H200": 4.3e12}
# Dense operations a second of the data sheet, by `Device.precision`.
PEAK = {"half": 989e12, "tf32": 495e12, "float": 67e12}
# What cuDNN is taken to reach of them, at best and at worst where it fills the GPU.
SHARES = {"half": (0.75, 0.40), "tf32": (0.75, 0.40), "float": (0.90, 0.50)}
CUDNN_TILE = (128, 128)
# Bytes a second that kernels without multicast are known to read from the L2 cache.
L2 = 8.1e12
KERNEL_RATES = {"wgmma": "wgmma", "mma": "tensor", "simt": "gemm", "depthwise": "depthwise", "grouped": "grouped"}

TEXT = """## Predicted times on an H100 and an H200

**This is a prediction. No kernel has run on a GPU, and nothing here was measured.**

**Ours.** The planner's static model (`csrc/core/plan_cuda.cpp`, `boxes.cpp`, rates in
`atrousops/dispatch/machines/h100.toml`) adds up

- `launch`: the launches of a call;
- `tensor cores`: the products of all tiles, at half of the data sheet's rate, which is a guess. It is replaced by `L2`
  if reading the operands from the L2 cache would take longer, at the 8.1 TB/s that kernel 6 of
  [fast.cu](https://github.com/pranjalssh/fast.cu) reads for its 777 TFLOP/s without multicast. Blocks in pairs share
  the bytes of the map or of the weights, which then count half;
- `tile ends`: the time of a tile outside its products, from the instruction counts of its machine code (`tile_steps`,
  checked by `tests/compile/test_wgmma_code.py`);
- `waves`: time in which multiprocessors wait for the busiest one, and partly filled tiles;
- `sums`: the launch that adds partial sums;
- `DRAM`: every tensor read or written once, at {copy};
- `NCHW`: copies of the maps into channels_last and back.

`bound` names the largest part on an H100. `L2` is the rate that the cache must deliver during the products, in TB/s.

**cuDNN.** We found no published measurements of its convolutions on an H100 by shape. The first value is the planner's
guess: 0.51 of the data sheet's rate (0.67 in fp32) for every tap, including dead ones, however few tiles there are. The
range begins at 0.75 of the rate. cuBLAS was measured at that rate in 16 bits on products of 6144 x 6144 x 6144
(741 TFLOP/s; 798 for 8192 x 8192 x 8192, both in fast.cu), and a convolution should not exceed it. The value for fp32,
0.90, has no source. The range ends at 0.40 (0.50 in fp32), in whole waves of tiles of {tile} without split sums;
that has no source either. MLPerf 3.0's
[ResNet-50 on eight H100](https://developer.nvidia.com/deep-learning-performance-training-inference/training), trained
in 13.5 minutes, reaches about 0.2 of the rate, including everything outside convolutions (36 to 41 epochs assumed).

`x` is cuDNN's time over ours, with its range. If the range contains 1, the row says **cannot be told**. Our own rate
may be as wrong as cuDNN's. `runs` is the choice of dispatch on an H100: ours if they are predicted at less than
{margin} of the time of PyTorch's. Times are in microseconds. On a GPU, `atrousops bench --suite deeplab` measures these
rows.

{summary}
"""


class Predicted(NamedTuple):
    """Seconds of our kernel and of cuDNN's: as planned, at best, at worst; what ours are made of; bytes/s from L2."""

    kernel: str
    ours: float
    cudnn: tuple[float, float, float]
    parts: dict[str, float]
    l2: float
    dispatched: bool

    @property
    def ratio(self) -> tuple[float, float, float]:
        """cuDNN's time over ours: as planned, lowest, highest."""
        planned, best, worst = (x / self.ours for x in self.cudnn)
        return planned, best, worst

    @property
    def told(self) -> bool:
        """Whether the whole range lies on one side of 1."""
        return not self.ratio[1] < 1 < self.ratio[2]

    @property
    def bound(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def gpu(name: str, row: Row) -> Device:
    """An H100 or H200 with the rates for a row's dtype and memory format."""
    facts = devices.gpu_facts("h100")
    device = devices.gpu("cuda", facts, DTYPES[row.dtype], row.layout == "nhwc", row.dtype == "tf32")
    return device._replace(rates=device.rates | {"copy": COPY[name]})


def problem_of(row: Row) -> Problem:
    """The convolution of a row of the suite."""
    match = re.fullmatch(r"(.*), (\d+)->(\d+), (\d+)x\d+, batch (\d+)", row.case)
    assert match, row.case
    c, k, size, batch = (int(match[i]) for i in (2, 3, 4, 5))
    (layer,) = {x for x in deeplab.LAYERS if x.name == match[1]}
    taps, d = (layer.kernel,) * 2, (layer.dilation,) * 2
    pad = (layer.dilation * (layer.kernel - 1) // 2,) * 2
    return geometry.convolution(batch, c, k, (size,) * 2, taps, (1, 1), d, pad, pad, kind=row.direction)


def moved(problem: Problem, itemsize: int) -> tuple[int, int]:
    """Bytes of the maps, and of all tensors."""
    maps = problem.input_elements + problem.output_elements
    return maps * itemsize, (maps + problem.weight_elements) * itemsize


def parts_of(problem: Problem, device: Device, kernel: str, seconds: float, itemsize: int) -> tuple[dict, float]:
    """What the planner's seconds of a kernel of ours are made of, by name, and bytes/s from the L2 cache."""
    rates, (maps, tensors) = device.rates, moved(problem, itemsize)
    parts = {"launch": rates["our_call"], "DRAM": tensors / rates["copy"]}
    if kernel in ("wgmma", "mma"):
        parts["NCHW"] = maps / rates["turned"]
    work = seconds - sum(parts.values())
    if kernel != "wgmma" or problem.kind == "weight_grad":
        live = problem.dense_flops * geometry.live_share(problem)
        products = min(live / rates[KERNEL_RATES[kernel]], work)
        return parts | {"tensor cores" if kernel != "simt" else "FMA": products, "waves": work - products}, 0.0
    boxes = planner.boxes([problem], device, itemsize)
    each = boxes.step / device.multiprocessors
    products, ends = boxes.steps * each, boxes.tiles * boxes.beside * each
    halved = {"map": boxes.rows, "weights": boxes.columns, "none": 0}[boxes.shared] / 2
    read = boxes.steps * 128 * (boxes.rows + boxes.columns - halved)
    slowest = "L2" if read / L2 > products else "tensor cores"
    sums = work - boxes.finish * boxes.step
    waves = boxes.finish * boxes.step - products - ends
    return parts | {slowest: products, "tile ends": ends, "waves": waves, "sums": sums}, read / products


def cudnn_range(problem: Problem, direction: str, device: Device, itemsize: int) -> tuple[float, float]:
    """The least and the most seconds that cuDNN is taken to need."""
    shape = floors.gemm_shape(problem, direction)
    assert shape
    m, n, depth = shape
    best, worst = (PEAK[device.precision] * share for share in SHARES[device.precision])
    call, memory = device.rates["aten_call"], moved(problem, itemsize)[1] / device.rates["copy"]
    waves = ceil(ceil(m / CUDNN_TILE[0]) * ceil(n / CUDNN_TILE[1]) / device.multiprocessors)
    tile = 2.0 * CUDNN_TILE[0] * CUDNN_TILE[1] * depth * device.multiprocessors
    return call + max(problem.dense_flops / best, memory), call + memory + waves * tile / worst


def predict(row: Row, name: str) -> Predicted:
    """A row on a GPU of `COPY`."""
    device, problem, itemsize = gpu(name, row), problem_of(row), DTYPES[row.dtype].itemsize
    plan = planner.plan(problem, device, itemsize)
    aten, *others = plan.candidates
    ours = min((x for x in others if x.seconds < inf), key=lambda x: x.seconds)
    parts, l2 = parts_of(problem, device, ours.kernel, ours.seconds, itemsize)
    best, worst = cudnn_range(problem, row.direction, device, itemsize)
    cudnn = (aten.seconds, min(best, aten.seconds), max(worst, aten.seconds))
    return Predicted(ours.kernel, ours.seconds, cudnn, parts, l2, plan.kernel != "aten")


def predictions() -> dict[str, tuple[Row, dict[str, Predicted]]]:
    """Every row of the suite on both GPUs, by its key."""
    return {row.key: (row, {name: predict(row, name) for name in COPY}) for row in deeplab.rows()}


def cells(p: Predicted) -> list[str]:
    """A row's columns for one GPU."""
    planned, best, worst = (f"{1e6 * x:.0f}" for x in p.cudnn)
    ratio, low, high = (f"{x:.2f}" for x in p.ratio)
    verdict = "" if p.told else ", cannot be told"
    return [f"{1e6 * p.ours:.0f}", f"{planned} ({best} - {worst})", f"{ratio} ({low} - {high}){verdict}"]


def lines(found: dict[str, tuple[Row, dict[str, Predicted]]]) -> Iterator[str]:
    """A table for each case; directions of which all is predicted alike share a row."""
    groups: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for row, each in found.values():
        first = each["H100"]
        l2 = f"{first.l2 / 1e12:.1f}" if first.l2 else ""
        figures = [*cells(first), cells(each["H200"])[0], cells(each["H200"])[2]]
        runs = "ours" if first.dispatched else "PyTorch's"
        key = (f"{row.dtype} {row.layout}", first.kernel, *figures, first.bound, l2, runs)
        groups.setdefault(row.case, {}).setdefault(key, []).append(row.direction)
    head = ["rows", "pass", "kernel", "ours, H100", "cuDNN", "x", "ours, H200", "x", "bound", "L2", "runs"]
    for case, rows in groups.items():
        yield from ("", f"### {case}", "")
        for line in [head, ["---"] * len(head), *([k[0], ", ".join(names), *k[1:]] for k, names in rows.items())]:
            yield "| " + " | ".join(line) + " |"


def summed(name: str, rows: list[Predicted]) -> str:
    """What the rows say together."""
    runs = [p for p in rows if p.dispatched]
    sure, least = sum(p.ratio[1] >= 1 for p in runs), min(p.ratio[0] for p in runs)
    return (
        f"{name}: our kernels run in {len(runs)} of {len(rows)} rows, each with a predicted ratio of {least:.2f} or"
        f" more. In {sure} of these even the fastest estimate of cuDNN is slower; for the other {len(runs) - sure} it"
        " cannot be told."
    )


def section() -> str:
    """All that stands below the marker."""
    found = predictions()
    summary = "\n\n".join(summed(name, [each[name] for _, each in found.values()]) for name in COPY)
    assert libraries.planner is not None
    margin = libraries.planner.MARGIN
    copy = " and ".join(f"{rate / 1e12:.1f} TB/s ({name})" for name, rate in COPY.items())
    text = TEXT.format(copy=copy, tile=" x ".join(map(str, CUDNN_TILE)), margin=margin, summary=summary)
    return text + "\n".join(lines(found)) + "\n"


def page(before: str) -> str:
    """The page with its section written again."""
    return before[: before.index(MARKER) + len(MARKER)] + "\n" + section()


def main() -> None:
    """Writes the page, or with --show prints the section."""
    if "--show" in sys.argv[1:]:
        print(section())
    else:
        PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
