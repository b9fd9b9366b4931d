"""Small calls of each family of kernels, held against an independent oracle at twice PyTorch's own error."""

from __future__ import annotations

from collections.abc import Callable

import host_cuda
import ptx_launch
import torch
import torch.nn.functional as F
from oracle import assert_close

import atrousops as ao
import atrousops.functional as A
from atrousops.reference.conv_quantized import quantize

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


def random(*shape: int, dtype: torch.dtype = FLOAT, last: bool = False) -> torch.Tensor:
    """In fp64 whole numbers, whose sums are exact."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    x = (4 * x).round().double() if dtype == DOUBLE else x.to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def with_gradients(f: Callable, tensors: list[torch.Tensor], seed: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, seed.to(y.dtype))]


def compare(ours: Callable, theirs: Callable, tensors: list[torch.Tensor]) -> None:
    """The output and all gradients."""
    y = theirs(*(t.double() for t in tensors))
    seed = random(*y.shape, dtype=tensors[0].dtype)
    found = with_gradients(ours, tensors, seed)
    with ao.backend("cpu"):
        exact = with_gradients(theirs, [t.double() for t in tensors], seed.double())
        at_dtype = with_gradients(theirs, tensors, seed)
    for a, b, c in zip(found, exact, at_dtype, strict=True):
        assert_close(a, b, c)


def convolution(dtype: torch.dtype, c: int, k: int, *, groups: int = 1, last: bool = True, **arguments: int) -> None:
    x, w = random(2, c, 9, 11, dtype=dtype, last=last), random(k, c // groups, 3, 3, dtype=dtype, last=last)
    arguments = {"padding": 2, "dilation": 2, **arguments}
    compare(
        lambda x, w: A.conv2d(x, w, groups=groups, **arguments),
        lambda x, w: F.conv2d(x, w, groups=groups, **arguments),
        [x, w],
    )


def of_bytes(dtype: torch.dtype) -> None:
    """With all that may follow a sum; int8's is exact."""
    x, w = random(2, 80, 9, 11, last=True), random(72, 80, 3, 3, last=True)
    x, w = ((20 * t).to(dtype) if dtype == torch.int8 else t.to(dtype) for t in (x, w))
    scale, bias = random(72).abs() / (4000 if dtype == torch.int8 else 10), random(72)
    residual = random(2, 72, 9, 11, dtype=HALF, last=True)
    out = torch.full_like(residual, torch.nan)
    torch.ops.atrousops_host_cuda.test_conv_wgmma_call(x, w, bias, scale, residual, out, 1, 2, 2, False, 1, True)

    def right(d: torch.dtype, d_of_sums: torch.dtype) -> torch.Tensor:
        sums = F.conv2d(x.to(d_of_sums), w.to(d_of_sums), None, 1, 2, 2).to(d)
        return torch.relu(sums * scale.to(d).view(-1, 1, 1) + bias.to(d).view(-1, 1, 1) + residual.to(d))

    assert_close(out, right(DOUBLE, DOUBLE), right(FLOAT, DOUBLE if dtype == torch.int8 else FLOAT).to(HALF))


def quantised(dtype: torch.dtype, wide: torch.dtype, c: int, k: int, groups: int = 1) -> None:
    """Of whole numbers, whose sums are exact; the way out is held to fp32's, rounded once."""
    x, scale = (8 * random(2, c, 9, 11)).round().clamp(-30, 30).to(wide), torch.rand(k)
    w = (8 * random(k, c // groups, 3, 3)).round().clamp(-30, 30).to(dtype)
    q = quantize(x, torch.tensor(2.0), dtype)
    bias, residual = random(k), random(2, k, 9, 11, dtype=wide, last=True)
    around = [1, 1], [2, 2], [2, 2], groups
    scales = torch.tensor(2.0), scale
    found = torch.ops.atrousops_host_cuda.conv_quantized(x, w, bias, *scales, residual, *around, True, False)

    def theirs(d: torch.dtype) -> torch.Tensor:
        sums = F.conv2d(q.double(), w.double(), None, *around).to(d) * (2 * scale.to(d)).view(-1, 1, 1)
        return (sums + bias.to(d).view(-1, 1, 1) + residual.to(d)).relu()

    assert_close(found, theirs(DOUBLE), theirs(FLOAT).to(wide))


def transposed(dtype: torch.dtype) -> None:
    x, w = random(2, 32, 5, 6, dtype=dtype), random(32, 40, 4, 4, dtype=dtype)
    compare(
        lambda x, w: A.conv_transpose2d(x, w, stride=2, padding=1),
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
        [x, w],
    )


def pooling(dtype: torch.dtype, marks: bool | str) -> None:
    """Axes that differ in everything. Equal bit for bit: only sums of gradients could be rounded, which are whole.

    With codes the gradient has one kernel; with indices another repairs what the first one does not find.
    """
    x = random(2, 3, 6, 11, 9, dtype=dtype)
    # Up to two, three and four windows around a position, which loops take in other ways.
    arguments = (2, 3, 4), (2, 1, 1), (1, 1, 2), 1 if marks == "codes" else (1, 2, 1)

    def run(module: object, marks: bool | str) -> list[torch.Tensor]:
        leaf = x.detach().clone().requires_grad_()
        y, where = module.max_pool3d(leaf, *arguments, return_indices=marks)  # type: ignore[attr-defined]
        # Another one for each window.
        seed = torch.arange(1, y.numel() + 1, dtype=dtype).view(y.shape)
        return [*torch.autograd.grad(y, leaf, seed), y.detach(), where]

    kept = 2 if marks == "codes" else 3
    for a, b in zip(run(A, marks)[:kept], run(F, True)[:kept], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def unpooling(dtype: torch.dtype) -> None:
    """Bit for bit a scatter."""
    y, where = F.max_pool3d(random(2, 3, 6, 10, 8, dtype=dtype), 2, return_indices=True)

    def scattered(y: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, 3, 480, dtype=dtype).scatter(2, where.flatten(2), y.flatten(2)).view(2, 3, 6, 10, 8)

    seed = random(2, 3, 6, 10, 8)
    found = with_gradients(lambda y: A.max_unpool3d(y, where, 2), [y], seed)
    for a, b in zip(found, with_gradients(scattered, [y], seed), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


BOXES = torch.tensor([[0.0, 1, 1, 6, 5], [1, 0.3, 2.2, 3.9, 7.4], [0, -3, -2, 30, 5], [1, 4, 4, 4.5, 4.5]])


def aligned(dtype: torch.dtype) -> None:
    from torchvision.ops import roi_align

    compare(
        lambda x: A.roi_align(x, BOXES.to(x.dtype), (3, 2), spatial_scale=0.9, sampling_ratio=2),
        lambda x: roi_align(x, BOXES.to(x.dtype), (3, 2), spatial_scale=0.9, sampling_ratio=2),
        [random(2, 6, 9, 8, dtype=dtype)],
    )


def roi_pooled(dtype: torch.dtype) -> None:
    from torchvision.ops import roi_pool

    compare(
        lambda x: A.roi_pool(x, BOXES.to(x.dtype), (3, 2)),
        lambda x: roi_pool(x, BOXES.to(x.dtype), (3, 2)),
        [random(2, 6, 9, 8, dtype=dtype)],
    )


def filtered(dtype: torch.dtype) -> None:
    """Two images, placed in fp64, so that no rounding moves a pixel to another simplex."""
    features = random(2, 3, 30).double()

    def reference(x: torch.Tensor) -> torch.Tensor:
        with ao.backend("reference"):
            return A.permutohedral_filter(x, features, "symmetric")

    compare(lambda x: A.permutohedral_filter(x, features, "symmetric"), reference, [random(2, 9, 30, dtype=dtype)])


def inferred(dtype: torch.dtype) -> None:
    """Without gradients, which are the filters' above: one launch a step. A pixel has no softmax."""
    features, scores = random(1, 3, 40).double(), random(1, 5, 40, dtype=dtype)
    scores[0, 2, 7] = torch.nan

    def inference(scores: torch.Tensor) -> torch.Tensor:
        lattice = A.permutohedral_lattice(features)
        return A.mean_field(scores, [lattice], [-torch.ones(5, dtype=scores.dtype)], 2)

    with torch.no_grad(), ao.backend("reference"):
        exact, theirs = inference(scores.double()), inference(scores)
    with torch.no_grad():
        assert_close(inference(scores), exact, theirs)


def stacked(dtype: torch.dtype) -> None:
    """Rows of other blocks and outside of the map are read, and the last layer is pointwise."""
    dilation, sizes = (1, 2, 4, 1), (3, 3, 3, 1)
    x = random(1, 21, 9, 7, dtype=dtype)
    weights = [random(21, 21, k, k, dtype=dtype) / (4 * k) for k in sizes]

    def stock(d: torch.dtype) -> torch.Tensor:
        y = x.to(d)
        for i, (w, r, k) in enumerate(zip(weights, dilation, sizes, strict=True)):
            y = F.conv2d(F.relu(y) if i else y, w.to(d), padding=r * (k // 2), dilation=r)
        return y

    assert_close(A.context_module(x, weights, None, dilation), stock(DOUBLE), stock(dtype))


AMPERE, HOPPER = host_cuda.A100, host_cuda.H100
CHECKS: dict[str, tuple[tuple, Callable[[], None]]] = {
    "conv simt fp32": (AMPERE, lambda: convolution(FLOAT, 5, 7, last=False)),
    "conv simt fp64": (AMPERE, lambda: convolution(DOUBLE, 8, 8)),
    # Nine steps in a ring of four stages: the sums leave through the stage that is read last.
    "conv mma bf16": (AMPERE, lambda: convolution(BF16, 32, 64)),
    "conv mma fp16": (AMPERE, lambda: convolution(HALF, 64, 64)),
    "conv mma fp32 split": (AMPERE, lambda: convolution(FLOAT, 64, 64)),
    "conv mma bf16 stride": (AMPERE, lambda: convolution(BF16, 40, 72, stride=2, padding=1, dilation=1)),
    "conv int8": (AMPERE, lambda: quantised(torch.int8, HALF, 80, 64)),
    "conv int8, no whole runs": (AMPERE, lambda: quantised(torch.int8, FLOAT, 42, 22, groups=2)),
    "conv float8": (HOPPER, lambda: quantised(torch.float8_e4m3fn, FLOAT, 80, 64)),
    "conv transposed": (AMPERE, lambda: transposed(FLOAT)),
    "conv depthwise": (AMPERE, lambda: convolution(FLOAT, 32, 32, groups=32)),
    "conv grouped": (AMPERE, lambda: convolution(FLOAT, 16, 32, groups=4, last=False)),
    "conv wgmma bf16": (HOPPER, lambda: convolution(BF16, 128, 128)),
    "conv wgmma fp16": (HOPPER, lambda: convolution(HALF, 128, 128)),
    "conv wgmma int8": (HOPPER, lambda: of_bytes(torch.int8)),
    "conv wgmma e4m3": (HOPPER, lambda: of_bytes(torch.float8_e4m3fn)),
    "max_pool3d": (AMPERE, lambda: pooling(FLOAT, True)),
    "max_pool3d with codes": (AMPERE, lambda: pooling(FLOAT, "codes")),
    "max_unpool3d": (AMPERE, lambda: unpooling(FLOAT)),
    "roi_align": (AMPERE, lambda: aligned(FLOAT)),
    "roi_pool": (AMPERE, lambda: roi_pooled(FLOAT)),
    "permutohedral_filter": (AMPERE, lambda: filtered(FLOAT)),
    "mean_field": (AMPERE, lambda: inferred(FLOAT)),
    "context_module": (HOPPER, lambda: stacked(HALF)),
}


def run(name: str, seed: int = 0, order: str = "") -> None:
    """Raises where the PTX of a family computes anything but what it should."""
    device, check = CHECKS[name]
    with host_cuda.device(*device), ptx_launch.ptx(seed, order):
        check()
