"""Random convolutions, held to PyTorch in fp64.

Values are eighths, whose products add up without rounding: a right result is the exact one, rounded once. What no
window reads is NaN in our arguments.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fuzz.tensors import DTYPES, LAYOUTS, arranged, axes, check, eighths
from oracle import run_on
from torch import Tensor

import atrousops as ao
import atrousops.functional as A

# Around the lanes of every instruction set, and one more or less.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65)
_MOST = 1 << 19  # multiply-adds


@dataclass(frozen=True)
class Conv:
    """A convolution or a transposed one, and its gradients."""

    transposed: bool
    n: int
    groups: int
    c: int  # of a group, as `k`
    k: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    dtype: str
    layout: str
    bias: bool
    threads: int
    seed: int

    def output(self) -> tuple[int, ...]:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, self.output_padding)
        if self.transposed:
            return tuple((i - 1) * s - 2 * p + d * (k - 1) + e + 1 for i, k, s, p, d, e in axes)
        return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d, _ in axes)

    def is_valid(self) -> bool:
        sizes = (self.groups, self.c, self.k, self.threads, *self.size, *self.kernel, *self.stride, *self.dilation)
        most = map(max, self.stride, self.dilation)
        if self.n < 0 or min(sizes) < 1 or min(self.output()) < 1 or min(self.padding, self.output_padding) < (0,):
            return False
        fits = all(e < m for e, m in zip(self.output_padding, most))
        return fits and (self.transposed or not any(self.output_padding))

    def work(self) -> int:
        positions = max(math.prod(self.size), math.prod(self.output()))
        return max(self.n, 1) * self.groups * self.c * self.k * positions * math.prod(self.kernel)

    def run(self) -> None:
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        cg, kg = self.groups * self.c, self.groups * self.k
        x = eighths(self.n, cg, *self.size)
        w = eighths(*((cg, self.k) if self.transposed else (kg, self.c)), *self.kernel)
        b = eighths(kg) if self.bias else None
        dy = eighths(self.n, kg, *self.output())
        exact = self._with_gradients(F, x, w, b, dy)
        right = [t.to(dtype) for t in exact]
        unread = self._unread(x, w, dy)
        # A bias's gradient is the sum of all of dy.
        unread_dy = unread[1] & (not self.bias)
        poisoned = x.masked_fill(unread[0], torch.nan), w, dy.masked_fill(unread_dy, torch.nan)
        ours = [arranged(t.to(dtype), self.layout) for t in poisoned]
        before = [t.clone() for t in ours]
        with run_on(self.threads), ao.backend("cpu"):
            found = self._with_gradients(A, ours[0], ours[1], None if b is None else b.to(dtype), ours[2])
        for name, mine, wanted, stock in zip(("y", "dx", "dw", "db"), found, exact, right):
            check(name, mine, wanted, stock)
        for t, was in zip(ours, before):
            assert torch.equal(t.nan_to_num(1e4), was.nan_to_num(1e4)), "an input was written to"
        if self.layout == "contiguous":
            assert found[0].is_contiguous(), f"y has strides {found[0].stride()}"

    def _with_gradients(self, module: Any, x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
        name = ("conv_transpose" if self.transposed else "conv") + f"{len(self.size)}d"
        bias = None if b is None else leaves[2]
        rest: tuple = (self.stride, self.padding)
        rest += (self.output_padding, self.groups, self.dilation) if self.transposed else (self.dilation, self.groups)
        y = getattr(module, name)(leaves[0], leaves[1], bias, *rest)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    def _unread(self, x: Tensor, w: Tensor, dy: Tensor) -> list[Tensor]:
        """Inputs that no window reads, and outputs between those that a tap of a transposed convolution reaches."""
        if self.n == 0:
            return [torch.zeros_like(t, dtype=torch.bool) for t in (x, dy)]
        ones = [torch.ones_like(t) for t in (x[:1], w, dy[:1])]
        y, dx, _ = self._with_gradients(F, ones[0], ones[1], None, ones[2])
        # PyTorch multiplies padding, by weights and by dy: NaN times its 0 is NaN there, too.
        return [dx == 0, (y == 0) & self.transposed]


def draw_conv(r: random.Random) -> Conv:
    """Of every rank, group form, stride up to 9, dilation, padding beyond the map, and width around the lanes."""
    while True:
        rank = r.choice((1, 1, 2, 2, 2, 3))
        few = 9 if rank < 3 else 4
        form = r.choice(("dense", "grouped", "depthwise", "multiplier"))
        groups = {"dense": 1, "grouped": r.randint(2, 5)}.get(form, r.choice(WIDTHS))
        transposed, stride, dilation = r.random() < 0.5, axes(r, rank, 1, 9), axes(r, rank, 1, r.choice((1, 1, 3, 6)))
        if r.random() < 0.4:
            stride = (1,) * rank
        extra = tuple(r.randrange(max(s, d)) if r.random() < 0.3 else 0 for s, d in zip(stride, dilation))
        call = Conv(
            transposed,
            0 if r.random() < 0.03 else r.randint(1, 3),
            groups,
            1 if form in ("depthwise", "multiplier") else r.choice((1, 2, 3, 4, 7, 16, 21, 33)),
            1 if form == "depthwise" else r.randint(2, 3) if form == "multiplier" else r.choice((1, 2, 4, 5, 17, 32)),
            (*axes(r, rank, 1, few)[1:], r.choice(WIDTHS)),
            axes(r, rank, 1, r.choice((1, 2, 3, 5))),
            stride,
            axes(r, rank, 0, r.choice((0, 1, 4, 12))),
            dilation,
            extra if transposed else (0,) * rank,
            r.choice(tuple(DTYPES)),
            r.choice(LAYOUTS),
            r.random() < 0.3,
            r.choice((1, 1, 1, 2)),
            r.randrange(1 << 16),
        )
        if call.is_valid() and call.work() <= _MOST:
            return call


@dataclass(frozen=True)
class Branches:
    """Several convolutions of one map in one call."""

    n: int
    c: int
    size: tuple[int, int]
    channels: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: str
    layout: str
    relu: bool
    seed: int

    def is_valid(self) -> bool:
        return min(self.n, self.c, *self.size, *self.channels, *self.dilation) > 0 and bool(self.channels)

    def run(self) -> None:
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        x, other = eighths(self.n, self.c, *self.size), eighths(self.n, 2, *self.size)
        weights = [eighths(k, self.c, 3, 3) for k in self.channels]
        rates = [d for d in self.dilation for _ in range(2)]
        ys = [F.conv2d(x, w, None, 1, d, d) for w, d in zip(weights, self.dilation)]
        exact = torch.cat([*(y.relu() if self.relu else y for y in ys), other], 1)
        maps = [arranged(t.to(dtype), self.layout) for t in (x, other)]
        operator = torch.ops.atrousops.conv_branches
        y = operator(maps[0], [w.to(dtype) for w in weights], [], maps[1:], rates, rates, self.relu, False)
        check("y", y, exact, exact.to(dtype))


def draw_branches(r: random.Random) -> Branches:
    count = r.randint(1, 4)
    return Branches(
        r.randint(1, 2),
        r.choice((1, 3, 16, 17)),
        (r.randint(1, 9), r.choice(WIDTHS[:12])),
        tuple(r.choice((1, 2, 5, 16, 17)) for _ in range(count)),
        tuple(r.randint(1, 7) for _ in range(count)),
        r.choice(tuple(DTYPES)),
        r.choice(LAYOUTS),
        r.random() < 0.5,
        r.randrange(1 << 16),
    )
