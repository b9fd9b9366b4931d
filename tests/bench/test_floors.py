"""Floors and products of equal work, worked by hand."""

import pytest

from atrousops.bench.floors import Floor, conv_floor, conv_problem, gemm_shape

SAME = {"padding": 2, "dilation": 2}


def test_convolution():
    # 3x3, rate 2, "same" on 5x5, 2 -> 3 channels. On an axis the taps at -2, 0, 2 read inside at 3, 5, 3 of 5 places.
    problem = conv_problem(False, (1, 2, 5, 5), (3, 2, 3, 3), SAME)
    floor = conv_floor(problem, "forward", itemsize=4)
    assert floor.flops == 2 * 3 * 2 * 25 * 9
    assert floor.live_share == pytest.approx((11 / 15) ** 2)
    assert floor.bytes == 4 * (50 + 75 + 54)
    assert gemm_shape(problem, "forward") == (25, 3, 18)
    assert gemm_shape(problem, "input_grad") == (25, 18, 3)
    assert gemm_shape(problem, "weight_grad") == (3, 18, 25)
    assert gemm_shape(problem, "backward") is None


@pytest.mark.parametrize(("direction", "products"), [("input_grad", 1), ("backward", 2), ("training", 3)])
def test_directions(direction, products):
    problem = conv_problem(False, (1, 2, 5, 5), (3, 2, 3, 3), SAME)
    one, floor = conv_floor(problem, "forward", 2), conv_floor(problem, direction, 2)
    assert (floor.flops, floor.bytes) == (products * one.flops, products * one.bytes)


def test_transposed():
    # 2x2, stride 2: 4x4 -> 8x8, 5 -> 6 channels; four taps, none wasted.
    problem = conv_problem(True, (1, 5, 4, 4), (5, 6, 2, 2), {"stride": 2})
    floor = conv_floor(problem, "forward", itemsize=4)
    assert floor.flops == 2 * 16 * 4 * 5 * 6
    assert floor.live_share == 1
    assert floor.bytes == 4 * (5 * 16 + 6 * 64 + 5 * 6 * 4)
    assert gemm_shape(problem, "forward") == (16, 24, 5)
    assert gemm_shape(problem, "input_grad") == (16, 5, 24)


def test_groups_have_no_product():
    problem = conv_problem(False, (1, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, **SAME})
    assert conv_floor(problem, "forward", 4).flops == 2 * 4 * 25 * 9
    assert gemm_shape(problem, "forward") is None


def test_seconds():
    # 100 bytes at 10/s; 80 of 100 FLOPs at 4/s.
    assert Floor(100, 100, 0.8).seconds(copy=10, peak=4) == 20
    assert Floor(100, 100, 0.8).seconds(copy=1, peak=4) == 100
    assert Floor(100).seconds(copy=10, peak=float("nan")) == 10
