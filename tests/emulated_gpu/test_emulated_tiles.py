"""Convolutions by kernels and tiles that small problems do not take: each case has to launch its own."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from emulated_cases import launched
from oracle import assert_close, tf32

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import devices, geometry, planner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]

BF16, HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64
# A slice of 16 multiprocessors, which 17 tiles fill.
SLICE = "cuda:1"


@dataclass(frozen=True)
class Case:
    """A convolution, with zeros around it that keep its size; `of` names what is computed of it."""

    kernel: str
    of: str
    c: int
    k: int
    size: tuple[int, int]
    window: tuple[int, int] = (1, 1)
    groups: int = 1
    allow_tf32: bool = True
    dtypes: tuple[torch.dtype, ...] = (BF16, HALF)

    def arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input, weights and the output's gradient, in the layout of tensor cores."""
        sizes = [(1, self.c, *self.size), (self.k, self.c // self.groups, *self.window), (1, self.k, *self.size)]
        x, w, dy = (torch.randn(size).contiguous(memory_format=torch.channels_last) for size in sizes)
        return x, w, dy

    def run(self, convolution: Callable, x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        padding = [n // 2 for n in self.window]
        if self.of == "output":
            return convolution(x, w, None, 1, padding, 1, self.groups)
        leaf = (x if self.of == "input" else w).requires_grad_()
        return torch.autograd.grad(convolution(x, w, None, 1, padding, 1, self.groups), leaf, dy)[0]


def mma(math: str, tile: str, along: bool = True) -> str:
    """`along`: the weights lie along the sum."""
    return rf"conv_mma_kernel<atrousops::cuda::{math}.*MmaTile<{tile}>, {str(along).lower()},"


def weight(math: str, tile: str) -> str:
    return rf"conv_mma_weight_kernel<atrousops::cuda::{math}.*MmaTile<{tile}>"


LARGE, TALL, NARROW = "128, 128, 64, 64, 4, 2", "128, 64, 64, 32, 4, 2", "128, 32, 32, 32, 4, 2"
SPLIT_TALL, SMALL = "128, 64, 32, 32, 4, 1", "64, 64, 32, 32, 4, 3"
FP32 = {"dtypes": (FLOAT,)}
# Two groups are no case for wgmma. 600 positions are 5 tiles of 128 rows, and 10 of 64: more tiles than the slice has
# multiprocessors make a larger one the faster.
WIDE, FEW = (20, 30), (6, 5)
CASES = {
    "mma, 128 columns": Case(mma("Mma16", LARGE, True), "output", 32, 256, WIDE, groups=2),
    "mma, 64 columns": Case(mma("Mma16", TALL, True), "output", 32, 128, WIDE, groups=2),
    "mma, rows that are not aligned": Case(mma("Mma16", NARROW, True), "output", 12, 40, FEW),
    "mma backwards, 128 columns": Case(mma("Mma16", LARGE, False), "input", 256, 32, WIDE, groups=2),
    "mma backwards, 64 columns": Case(mma("Mma16", TALL, False), "input", 128, 32, WIDE, groups=2),
    "mma backwards, rows that are not aligned": Case(mma("Mma16", NARROW, False), "input", 40, 12, FEW),
    "mma, a sum in parts": Case("conv_mma_sum_kernel", "output", 1280, 64, FEW, (3, 3), 2, dtypes=(HALF,)),
    "tf32, 128 columns": Case(mma("MmaTf32", LARGE), "output", 16, 256, WIDE, groups=2, **FP32),
    "tf32, 64 columns": Case(mma("MmaTf32", TALL), "output", 16, 128, WIDE, groups=2, **FP32),
    "tf32, 64 rows": Case(mma("MmaTf32", SMALL), "output", 16, 64, FEW, groups=2, **FP32),
    "tf32, rows that are not aligned": Case(mma("MmaTf32", NARROW), "output", 10, 40, FEW, **FP32),
    "3xTF32, 64 columns": Case(
        mma("MmaSplit", SPLIT_TALL), "output", 256, 128, WIDE, groups=2, allow_tf32=False, **FP32
    ),
    "3xTF32, rows that are not aligned": Case(
        mma("MmaSplit", NARROW), "output", 130, 40, FEW, allow_tf32=False, **FP32
    ),
    "weights by mma, 128 columns": Case(weight("Mma16", LARGE), "weight", 256, 256, FEW, (1, 5), 2),
    "weights by tf32, 128 columns": Case(weight("MmaTf32", LARGE), "weight", 256, 256, FEW, (1, 5), 2, **FP32),
    "weights by tf32, 64 columns": Case(weight("MmaTf32", SMALL), "weight", 32, 64, FEW, **FP32),
    "weights by tf32, rows that are not aligned": Case(
        weight("MmaTf32", "64.*2>, false"), "weight", 10, 42, FEW, **FP32
    ),
    "wgmma, 256 columns": Case("conv_wgmma_kernel.* 128, 256, .*0, .*0, 4>", "output", 64, 256, (36, 32)),
    "wgmma, 128 columns": Case("conv_wgmma_kernel.* 128, 128, .*0, .*0, 6>", "output", 64, 128, (36, 32)),
    "wgmma, 64 columns": Case("conv_wgmma_kernel.* 128, 64, .*0, .*0, 8>", "output", 64, 64, (8, 8)),
    "wgmma backwards, 256 columns": Case("conv_wgmma_kernel.* 128, 256, .*0, .*1, 4>", "input", 256, 64, (36, 32)),
    "wgmma backwards, 128 columns": Case("conv_wgmma_kernel.* 128, 128, .*0, .*1, 6>", "input", 128, 64, (36, 32)),
    "wgmma backwards, 64 columns": Case("conv_wgmma_kernel.* 128, 64, .*0, .*1, 8>", "input", 64, 64, (8, 8)),
    "wgmma in pairs, 256 columns": Case("conv_wgmma_kernel.* 128, 256, .*0, .*0, 4>", "output", 64, 256, (40, 32)),
    "wgmma in pairs, backwards, 128 columns": Case(
        "conv_wgmma_kernel.* 128, 128, .*0, .*1, 6>", "input", 128, 64, (64, 32)
    ),
    "wgmma in tf32, 256 columns": Case("conv_wgmma_kernel.*float, 128, 256,", "output", 32, 256, (36, 32), **FP32),
    "wgmma in tf32, 128 columns": Case("conv_wgmma_kernel.*float, 128, 128,", "output", 32, 128, (36, 32), **FP32),
    "weights by wgmma, 256 columns": Case("wgmma_weight.* 128, 256, ", "weight", 256, 128, (8, 8), (3, 3)),
    "weights by wgmma, 128 columns": Case("wgmma_weight.* 128, 128, ", "weight", 128, 128, (8, 8), (3, 3)),
    "weights by wgmma, 64 columns": Case("wgmma_weight.* 128, 64, ", "weight", 64, 128, (8, 8), (3, 3)),
    "no tensor cores, 64 columns": Case(
        "conv_simt_kernel<.*, 64, 64>", "output", 3, 40, FEW, allow_tf32=False, dtypes=(BF16, HALF, DOUBLE)
    ),
}


def test_pairs_share_weights():
    """Of the cases with "in pairs", whose boxes are even in number."""
    chip = devices.gpu("cuda", (16, 227 << 10, 90), BF16, True, False)
    one, none = (1, 1), (0, 0)
    for name, case in CASES.items():
        if "wgmma" in name and "weights by" not in name:
            kind = "forward" if case.of == "output" else "input_grad"
            problem = geometry.convolution(1, case.c, case.k, case.size, one, one, one, none, none, kind=kind)
            shared = planner.boxes([problem], chip, 4 if case.dtypes == (FLOAT,) else 2).shared
            assert shared == ("weights" if "in pairs" in name else "none"), name


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes])
def test_a_kernel(name, dtype):
    case = CASES[name]
    # In fp64 whole numbers, whose sums are exact in any order.
    arguments = [(4 * t).round().double() if dtype == DOUBLE else t.to(dtype) for t in case.arguments()]
    with ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=case.allow_tf32):
        ours: list[torch.Tensor] = []
        found = launched(lambda: ours.append(case.run(A.conv2d, *(t.to(SLICE) for t in arguments)).cpu()))
    typed = {BF16: "BFloat16", HALF: "Half", FLOAT: "", DOUBLE: "double"}[dtype]
    assert any(re.search(case.kernel, k) and typed in k for k in found), found
    exact = case.run(F.conv2d, *(t.double() for t in arguments))
    # PyTorch has no TF32 on the CPU: the error of rounding the operands stands for its own.
    rounded = [tf32(t) if case.allow_tf32 else t for t in arguments]
    assert_close(ours[0], exact, case.run(F.conv2d, *rounded))
