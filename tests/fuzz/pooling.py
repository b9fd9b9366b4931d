"""Random calls of pooling, unpooling and RoI pooling: maxima are passed on bit for bit, subnormals among them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fuzz.convolutions import WIDTHS
from fuzz.tensors import DTYPES, LAYOUTS, arranged, axes, check, eighths, same
from oracle import run_on
from roi_cases import peer, random_boxes, with_gradient
from torch import Tensor

import atrousops as ao
import atrousops.functional as A


def values(*size: int, dtype: torch.dtype, odd: bool) -> Tensor:
    """Eighths, with many ties; `odd`: subnormals, infinities and NaN instead of some of them."""
    x = eighths(*size).to(dtype)
    if not odd:
        return x
    tiny = torch.finfo(dtype).smallest_normal
    others = torch.tensor([tiny / 4, -tiny / 4, tiny / 2, tiny, torch.inf, -torch.inf, torch.nan, 0.0, -0.0]).to(dtype)
    return torch.where(torch.rand(size) < 0.8, others[torch.randint(len(others), size)], x)


@dataclass(frozen=True)
class Pool:
    """Max-pooling, its gradient, and where it applies the unpooling of what it gives."""

    n: int
    c: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    codes: bool
    odd: bool
    dtype: str
    layout: str
    threads: int
    seed: int

    def is_valid(self) -> bool:
        least = (self.c, self.threads, *self.size, *self.kernel, *self.stride, *self.dilation)
        axes = list(zip(self.size, self.kernel, self.padding, self.dilation))
        fits = all(i + 2 * p >= d * (k - 1) + 1 and 0 <= p <= k // 2 for i, k, p, d in axes)
        coded = not self.codes or (math.prod(self.kernel) <= 256 and max(self.dilation) == 1)
        return self.n >= 0 and min(least) > 0 and fits and coded

    def run(self) -> None:
        torch.manual_seed(self.seed)
        rank, dtype = len(self.size), DTYPES[self.dtype]
        x = values(self.n, self.c, *self.size, dtype=dtype, odd=self.odd)
        rest = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        with run_on(1):
            right, places = getattr(F, f"max_pool{rank}d")(x, *rest, return_indices=True)
        dy = eighths(*right.shape)
        leaf = arranged(x, self.layout).requires_grad_()
        pool = getattr(A, f"max_pool{rank}d")
        with run_on(self.threads), ao.backend("cpu"):
            y, marks = pool(leaf, *rest, return_indices="codes" if self.codes else True)
            alone = pool(leaf.detach(), *rest)
            (dx,) = torch.autograd.grad(y, leaf, arranged(dy.to(dtype), self.layout))
        same("y", y, right)
        same("y without indices", alone, right)
        if not self.codes:
            assert torch.equal(marks, places), "indices differ from PyTorch's"
        check("dx", dx, *self._gradient(dy, places))
        if self.dilation == (1,) * rank and right.numel():
            self._unpool(y.detach(), marks, places)

    def _gradient(self, dy: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of dy where the maxima were, by hand; of a window that holds nothing PyTorch's index is outside."""
        flat, at = dy.flatten(2), places.flatten(2)
        inside = (at >= 0) & (at < math.prod(self.size))
        dx = dy.new_zeros(self.n, self.c, math.prod(self.size))
        dx.scatter_add_(2, at.where(inside, 0), flat.where(inside, 0))
        dx = dx.view(self.n, self.c, *self.size)
        return dx, dx.to(DTYPES[self.dtype])

    def _unpool(self, y: Tensor, marks: Tensor, places: Tensor) -> None:
        plane = math.prod(self.size)
        right = y.new_zeros(self.n, self.c, plane)
        # Of windows that meet, all bring the same value.
        right = right.scatter_(2, places.flatten(2), y.flatten(2)).view(self.n, self.c, *self.size)
        dy = eighths(*right.shape).to(y.dtype)
        leaf = arranged(y, self.layout).requires_grad_()
        with run_on(self.threads), ao.backend("cpu"):
            unpool = getattr(A, f"max_unpool{len(self.size)}d")
            large = unpool(leaf, marks, self.kernel, self.stride, self.padding, output_size=self.size)
            (dx,) = torch.autograd.grad(large, leaf, arranged(dy, self.layout))
        same("unpooled", large, right)
        same("gradient of unpooling", dx, dy.flatten(2).gather(2, places.flatten(2)).view(places.shape))


def draw_pool(r: random.Random) -> Pool:
    while True:
        rank = r.choice((1, 2, 2, 3))
        kernel = (2,) * rank if r.random() < 0.3 else axes(r, rank, 1, 4)
        call = Pool(
            0 if r.random() < 0.03 else r.randint(1, 3),
            r.choice(WIDTHS),
            (*axes(r, rank, 1, 9 if rank < 3 else 4)[1:], r.choice(WIDTHS)),
            kernel,
            kernel if r.random() < 0.5 else axes(r, rank, 1, 9),
            tuple(r.randint(0, k // 2) for k in kernel),
            axes(r, rank, 1, r.choice((1, 1, 3))),
            r.random() < 0.3,
            r.random() < 0.4,
            r.random() < 0.4,
            r.choice(tuple(DTYPES)),
            r.choice(LAYOUTS),
            r.choice((1, 1, 2)),
            r.randrange(1 << 16),
        )
        if call.is_valid() and call.n * call.c * math.prod(call.size) <= 1 << 15:
            return call


@dataclass(frozen=True)
class Roi:
    """RoIAlign or RoIPool with its gradient, against torchvision."""

    align: bool
    shape: tuple[int, int, int, int]
    boxes: int
    output: tuple[int, int]
    scale: float
    sampling_ratio: int
    aligned: bool
    odd: bool
    dtype: str
    layout: str
    threads: int
    seed: int

    def is_valid(self) -> bool:
        return min(*self.shape, *self.output, self.threads) > 0 and self.boxes >= 0 and self.scale > 0

    def run(self) -> None:
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        # Rounded to quarters, so that rounding to pixels and counting samples falls the same way in every dtype.
        boxes = (random_boxes(self.boxes, self.shape, self.scale) * 4).round() / 4
        x = values(*self.shape, dtype=dtype, odd=self.odd and not self.align)
        dy = eighths(self.boxes, self.shape[1], *self.output)
        name = "roi_align" if self.align else "roi_pool"
        rest = (self.output, self.scale, *((self.sampling_ratio, self.aligned) if self.align else ()))
        wide = torch.promote_types(dtype, torch.float32)
        with run_on(self.threads), ao.backend("cpu"):
            ours = with_gradient(getattr(A, name), arranged(x, self.layout), boxes.to(wide), *rest, upstream=dy)
        exact = with_gradient(peer(name), x.double(), boxes, *rest, upstream=dy)
        if not self.align:
            # torchvision begins with the lowest number of float32, which a bin of -inf or NaN alone keeps.
            lowest = exact[0] == torch.finfo(torch.float32).min
            same("y", ours[0], exact[0].masked_fill(lowest, -torch.inf).to(dtype))
            check("dx", ours[1], exact[1], exact[1].to(dtype))
            return
        theirs = with_gradient(peer(name), x.to(wide), boxes.to(wide), *rest, upstream=dy)
        for part, mine, right, stock in zip(("y", "dx"), ours, exact, theirs):
            if dtype == torch.float64:
                bound = 256 * torch.finfo(dtype).eps * max(float(right.abs().amax()) if right.numel() else 0.0, 1.0)
                assert torch.allclose(mine, right, rtol=0, atol=bound), part
            else:
                # In fp32 theirs may be exact by luck, where few numbers are added.
                slack = 4 * torch.finfo(wide).eps
                check(part, mine, right, (stock + slack * stock.abs()).to(dtype))


def draw_roi(r: random.Random) -> Roi:
    return Roi(
        r.random() < 0.5,
        (r.randint(1, 3), r.choice(WIDTHS), r.randint(1, 20), r.choice(WIDTHS)),
        r.choice((0, 1, 3, 30)),
        (r.randint(1, 5), r.randint(1, 5)),
        r.choice((0.25, 0.5, 1.0, 2.0)),
        r.choice((-1, 0, 1, 2, 3)),
        r.random() < 0.5,
        r.random() < 0.5,
        r.choice(tuple(DTYPES)),
        r.choice(("contiguous", "channels_last", "strided", "offset")),
        r.choice((1, 1, 2)),
        r.randrange(1 << 16),
    )
