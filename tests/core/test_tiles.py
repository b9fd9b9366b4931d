"""The GPU tile model against the figures it must hold (128-row tiles, 132 multiprocessors)."""

import pytest

from atrousops.dispatch import geometry, libraries

native = libraries.planner
pytestmark = pytest.mark.skipif(native is None, reason="the compiled planner is missing")


def tilings(size, dilation, n, k, columns=256):
    two = [dilation] * 2
    p = geometry.convolution(n, 64, k, [size] * 2, [3, 3], [1, 1], two, two, two)
    rows = native.tilings("forward", p.n, p.c, p.k, p.axes, 128, columns, 132)
    return {name: (box, batch, tiles, work, finish) for name, box, batch, tiles, work, finish in rows}


# size, dilation, batch, output channels; work saved against dense by `flat`, `rect`, `regions`; finishing times of
# `rect` and `regions` against dense's, where waves were counted.
FIGURES = {
    "aspp os8, d=12": (65, 12, 1, 256, 1.15, 1.20, 1.20, 1.0, None),
    "aspp os8, d=24": (65, 24, 1, 256, 1.32, 1.56, 1.51, 1.0, None),
    "aspp os8, d=36": (65, 36, 1, 256, 1.57, 2.12, 2.11, 2.25, None),
    "aspp os16, d=6": (33, 6, 16, 256, 1.05, 1.14, 1.25, 1.5, 2.0),
    "aspp os16, d=12": (33, 12, 16, 256, 1.21, 1.57, 1.63, 2.0, 2.0),
    "aspp os16, d=18": (33, 18, 16, 256, 1.42, 2.10, 2.33, 2.25, 3.6),
    "layer4, d=4": (65, 4, 8, 512, 1.03, 0.99, 0.99, 1.15, None),
    # The sixth layer of the large context module: 32 x 21 channels.
    "context, d=16": (66, 16, 8, 672, 1.18, 1.33, 1.37, 1.43, 1.43),
}


@pytest.mark.parametrize("case", FIGURES)
def test_work_and_finishing_times(case):
    size, dilation, n, k, flat, rect, regions, rect_time, regions_time = FIGURES[case]
    got = tilings(size, dilation, n, k)
    *_, work, finish = got["dense"]
    assert work / got["flat"][3] == pytest.approx(flat, abs=0.0051)
    assert work / got["rect"][3] == pytest.approx(rect, abs=0.0051)
    assert work / got["regions"][3] == pytest.approx(regions, abs=0.0051)
    if rect_time is not None:
        assert finish / got["rect"][4] == pytest.approx(rect_time, abs=0.0051)
    if regions_time is not None:
        assert finish / got["regions"][4] == pytest.approx(regions_time, abs=0.051)


@pytest.mark.parametrize(("dilation", "flat", "rect", "regions"), [(24, 1.52, 2.28, 2.10), (12, 1.17, 1.19, 1.20)])
def test_batch_of_ten(dilation, flat, rect, regions):
    # Boxes over all ten images, which the figures of `rect` and `regions` leave out: at least as good.
    got = tilings(41, dilation, 10, 1024)
    work = got["dense"][3]
    assert work / got["flat"][3] == pytest.approx(flat, abs=0.0051)
    assert work / got["rect"][3] >= rect
    assert work / got["regions"][3] >= regions
    assert got["rect"][:2] == ((1, 6, 2), 10)


def test_tiles_of_a_transposed_convolution():
    # Stride 2, kernel 2: four phases of one tap each, all of it live, 8 x 8 positions in half a tile.
    p = geometry.transposed(1, 64, 512, [8, 8], [2, 2], [2, 2], [1, 1], [0, 0], [0, 0], [0, 0])
    for name, _box, _batch, tiles, work, finish in native.tilings("input_grad", 1, p.c, p.k, p.axes, 128, 256, 132):
        assert (tiles, work, finish) == (4 * 2, 4 * 2, 1), name
