"""Boxes of positions and images: where axes are cut, and what is chosen for the convolutions of DeepLab."""

import random
import runpy
from collections import Counter
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch

from atrousops.bench.suites.deeplab import LAYERS
from atrousops.dispatch import devices, geometry, libraries, planner
from atrousops.dispatch.geometry import Axis

native = libraries.planner
pytestmark = pytest.mark.skipif(native is None, reason="the compiled planner is missing")

BF16 = torch.bfloat16
H100 = (132, 227 << 10, 90)
GPU = devices.gpu("cuda", H100, BF16, True, False) if native is not None else None


def live_taps(phase, begin: int, end: int) -> set[int]:
    """Taps that read inside from some position of [begin, end), counted one by one."""
    reads = [(i, phase.q0 + phase.q * o + t.delta) for o in range(begin, end) for i, t in enumerate(phase.taps)]
    return {i for i, at in reads if 0 <= at < phase.bound}


def fewest_taps(phase, size: int) -> int:
    """The least sum of taps over all ways to cut an axis into pieces of at most `size`."""

    @cache
    def rest(begin: int) -> int:
        ends = range(begin + 1, min(begin + size, phase.count) + 1)
        return min((len(live_taps(phase, begin, end)) + rest(end) for end in ends), default=0)

    return rest(0)


def test_axes_are_cut_where_it_saves_most():
    rng = random.Random(0)
    for _ in range(150):
        kernel, stride, dilation = rng.randint(1, 5), rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 5, 9))
        size, pad = rng.randint(1, 24), rng.randint(0, 9)
        span = dilation * (kernel - 1) + 1
        if size + 2 * pad < span:
            continue
        axis = Axis(size, (size + 2 * pad - span) // stride + 1, kernel, stride, dilation, pad, pad)
        kind, box = rng.choice(("forward", "input_grad")), rng.randint(1, 12)
        phases = geometry.axis_phases(kind, axis)
        for phase, (runs, pieces) in zip(phases, native.cut_axis(kind, axis, box), strict=True):
            assert [(0, *(r[1] for r in runs))] == [(*(r[0] for r in runs), phase.count)]
            cut = [(b, min(b + box, end), last - first) for b0, end, first, last in runs for b in range(b0, end, box)]
            for begin, end, taps in cut:
                # Those between two live ones may be dead here, and cost a step; nothing live is left out.
                assert taps >= len(live_taps(phase, begin, end))
            assert sum(taps * count for taps, count in pieces) == sum(taps for *_, taps in cut)
            ideal = fewest_taps(phase, box)
            assert sum(taps for *_, taps in cut) == ideal or has_gaps(phase), (axis, box)


def has_gaps(phase) -> bool:
    """Whether somewhere a tap is dead between two live ones of a piece: only where maps are shorter than strides."""
    return any(t.begin == t.end for t in phase.taps) or phase.bound < phase.q * 2


def problem(layer, batch: int, size: int, kind: str = "forward"):
    pad = layer.dilation * (layer.kernel - 1) // 2
    lo, hi = (pad,) * 2, (layer.dilation * (layer.kernel - 1) - pad,) * 2
    return geometry.convolution(
        batch, layer.c, layer.k, (size,) * 2, (layer.kernel,) * 2, (1, 1), (layer.dilation,) * 2, lo, hi, kind=kind
    )


def shapes():
    """Every row of the DeepLab suite: at inference, and at its training batch with the input gradient."""
    for layer in LAYERS:
        yield layer, problem(layer, 1, layer.inference)
        if layer.batch:
            yield layer, problem(layer, layer.batch, layer.crop)
            yield layer, problem(layer, layer.batch, layer.crop, "input_grad")


def steps_by_hand(p, boxes) -> int:
    """Taps of every tile, one tile after the other."""
    blocks = -(-(p.k if p.kind == "input_grad" else p.c) * 2 // 128)
    copies = -(-(p.c if p.kind == "input_grad" else p.k) // boxes.columns)
    total = 0
    pieces = [[piece for _, row in native.cut_axis(p.kind, a, s) for piece in row] for a, s in zip(p.axes, boxes.size)]
    for z, many_z in pieces[0]:
        for y, many_y in pieces[1]:
            for x, many_x in pieces[2]:
                total += z * y * x * many_z * many_y * many_x
    return total * blocks * copies * -(-p.n // boxes.images)


# Kernels of those that wgmma leaves to others, by their channels.
ODD = {21: "mma", 42: "mma", 84: "mma"}


def test_every_shape_of_deeplab_has_its_kernel_and_box():
    for layer, p in shapes():
        plan = planner.plan(p, GPU, 2)
        legal = [c.kernel for c in plan.candidates[1:] if c.seconds < float("inf")]
        odd = ODD.get(p.k if p.kind == "input_grad" else p.c, "wgmma")
        narrow = (p.c if p.kind == "input_grad" else p.k) < 32
        assert legal == ["mma" if narrow else odd], (layer.name, p.kind)
        if legal != ["wgmma"]:
            continue
        boxes = planner.boxes([p], GPU, 2)
        assert prod(boxes.size) * boxes.images <= boxes.rows
        assert boxes.steps == steps_by_hand(p, boxes)
        # No more than every tap in full tiles would take, but for a tile's rows that no box fills.
        live = geometry.live_share(p) * p.dense_flops / (2 * boxes.rows * boxes.columns * 64)
        assert boxes.steps >= live * (1 - 1e-9)
        assert boxes.seconds <= 1.2 * boxes.dense_seconds, layer.name


# How many times faster the best box is expected to be than if no tap were dead.
@pytest.mark.parametrize(
    ("size", "dilation", "batch", "k", "least"),
    [
        (33, 6, 16, 256, 1.1),
        (33, 12, 16, 256, 1.5),
        (33, 18, 16, 256, 2.0),
        (41, 24, 10, 1024, 2.0),
        (65, 36, 1, 256, 1.9),
    ],
)
def test_predicted_speed_over_dense(size, dilation, batch, k, least):
    two = (dilation,) * 2
    p = geometry.convolution(batch, 2048, k, (size,) * 2, (3, 3), (1, 1), two, two, two)
    boxes = planner.boxes([p], GPU, 2)
    assert boxes.dense_seconds / boxes.seconds >= least


def test_branches_share_one_launch():
    rates = (1, 6, 12, 18)
    branches = []
    for rate in rates:
        kernel, two = (1 if rate == 1 else 3,) * 2, (rate,) * 2
        pad = (0, 0) if rate == 1 else two
        branches.append(geometry.convolution(1, 2048, 256, (33, 33), kernel, (1, 1), two, pad, pad))
    together, alone = planner.boxes(branches, GPU, 2), [planner.boxes([p], GPU, 2) for p in branches]
    assert together.seconds < sum(b.seconds for b in alone)
    assert together.finish >= together.steps / together.splits / 132 / together.splits


def shared_by_hand(problems, boxes) -> str:
    """What pairs of blocks can share, region by region: if either, the larger of the map's and the weights' bytes."""

    def even(p) -> bool:
        runs = [
            [-(-(end - begin) // size) for row, _ in native.cut_axis(p.kind, axis, size) for begin, end, *_ in row]
            for axis, size in zip(p.axes, boxes.size)
        ]
        return all(prod(counts) * -(-p.n // boxes.images) % 2 == 0 for counts in product(*runs))

    p, weights = problems[0], all(map(even, problems))
    if -(-(p.c if p.kind == "input_grad" else p.k) // boxes.columns) % 2 == 0:
        return "weights" if weights and boxes.columns > boxes.rows else "map"
    return "weights" if weights else "none"


def test_pairs_of_blocks_share_the_most_bytes_that_they_can():
    found = Counter()
    for _, p in shapes():
        boxes = planner.boxes([p], GPU, 2)
        assert boxes.shared == shared_by_hand([p], boxes), p
        found[boxes.shared] += 1
    assert min(found["map"], found["weights"], found["none"]) > 0, found


def test_pairs_of_branches():
    """ASPP: boxes must come in twos in the regions of all branches."""
    found = set()
    for images, k in product((1, 2, 3, 8, 16), (128, 256)):
        branches = [
            geometry.convolution(images, 2048, k, (33, 33), (3, 3), (1, 1), (r, r), (r, r), (r, r)) for r in (6, 12, 18)
        ]
        boxes = planner.boxes(branches, GPU, 2)
        assert boxes.shared == shared_by_hand(branches, boxes), boxes
        found.add(boxes.shared)
    assert len(found) > 1


@pytest.mark.parametrize("k", [256, 128, 64])
def test_what_a_tile_takes_beside_its_steps_is_less_for_wide_ones(k):
    # 64 x 64 positions by one convolution of 1x1: all tiles are alike.
    p = geometry.convolution(8, 2048, k, (64, 64), (1, 1), (1, 1), (1, 1), (0, 0), (0, 0))
    boxes = planner.boxes([p], GPU, 2)
    # Two warps' instructions and the wait for products, of 4 cycles a column and step.
    assert boxes.beside == pytest.approx((2 * (180 + 1.3 * boxes.columns) + 300) / (4 * boxes.columns))
    rounds = -(-boxes.tiles // 132)
    assert boxes.finish / rounds - boxes.steps / boxes.tiles == pytest.approx(boxes.beside)


def test_the_table_of_tiles_is_written_as_it_was_read():
    tune = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "tune_wgmma_tiles.py"))
    text = tune["TABLE"].read_text()
    comment, rows = tune["read"](text)
    assert tune["write"](comment, rows) == text
    assert max(share for *_, share in rows) == 1
