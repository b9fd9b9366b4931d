"""Pooling, unpooling, RoIs, stacks and branches of convolutions, the lattice and the CRF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops import ops
from atrousops.common.testing import Outputs
from atrousops.dispatch import libraries
from atrousops.dispatch.backends import backend as forced
from atrousops.proof import quantized_cases
from atrousops.proof.cases import Case, Family, Make, name_of

FLOAT, BF16, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
_LAYERS = (1, 1, 2, 4, 8, 16, 1)
_RATES = (1, 6, 12)


def families(backend: str) -> dict[str, Family]:
    """By operator; `conv_epilogue` is Triton's alone, `conv_quantized` CUDA's. Of the lattice and the CRF PyTorch has
    nothing to time.
    """
    found = {
        "max_pool": _family(_pool, (2, 5, 13, 12), (2, 40, 129, 131), (4, 64, 256, 256)),
        "max_unpool": _family(_unpool, (2, 5, 12, 14), (2, 40, 130, 126), (4, 64, 256, 256)),
        "roi_align": _family(_roi_align, (2, 37, 23, 29), (2, 70, 60, 70), (2, 256, 100, 100)),
        "roi_pool": _family(_roi_pool, (2, 37, 23, 29), (2, 70, 60, 70), (2, 256, 100, 100)),
        "context_module": _family(_context, (2, 21, 33, 29), (2, 21, 65, 63), (4, 21, 64, 64), (BF16, HALF)),
        "conv_branches": _family(_branches, (2, 64, 17, 19), (2, 64, 49, 51), (4, 512, 33, 33), (BF16, FLOAT)),
        "permutohedral": _family(_filter, (2, 5, 13, 11), (2, 21, 60, 80), None, (FLOAT, DOUBLE)),
        "mean_field": _family(_mean_field, (2, 5, 13, 11), (2, 21, 60, 80), None, (FLOAT, DOUBLE)),
    }
    if backend == "cuda":
        found["conv_quantized"] = quantized_cases.family()
    if backend == "triton":
        found["conv_epilogue"] = _family(_epilogue, (2, 24, 9, 8), (2, 24, 49, 51), None, (BF16, FLOAT))
    return found if libraries.has_schemas else {}


def _family(
    case: Callable[[tuple, torch.dtype, bool], Case],
    small: tuple[int, ...],
    larger: tuple[int, ...],
    timed: tuple[int, ...] | None,
    dtypes: Sequence[torch.dtype] = (BF16, HALF, FLOAT, DOUBLE),
) -> Family:
    cases = tuple(case(small, dtype, last) for dtype in dtypes for last in (False, True))
    return Family(cases, (case(larger, dtypes[0], True),), () if timed is None else (case(timed, dtypes[0], True),))


def _what(op: str, size: Sequence[int], dtype: torch.dtype, last: bool) -> str:
    layout = "channels_last" if last else "contiguous"
    return f"{op} {'x'.join(map(str, size))}, {name_of(dtype)}, {layout}"


def _with_gradient(call: Callable[..., Tensor | tuple], x: Tensor, dy: Tensor, *rest: Any) -> list[Tensor]:
    """A call's outputs, and the gradient in its first tensor for that of its first output."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        found = call(leaf, *rest)
        outputs = list(found) if isinstance(found, tuple) else [found]
        (dx,) = torch.autograd.grad(outputs[0], leaf, dy)
    return [*(y.detach() for y in outputs), dx]


def _pool(size: tuple, dtype: torch.dtype, last: bool) -> Case:
    n, c, h, w = size
    out = (n, c, (h - 1) // 2 + 1, (w - 1) // 2 + 1)

    def run(pool: Callable, x: Tensor, dy: Tensor) -> list[Tensor]:
        # With indices, and without in training and in evaluation: kernels of their own.
        marked = _with_gradient(lambda x: pool(x, 3, 2, 1, return_indices=True), x, dy)
        return [*marked, *_with_gradient(lambda x: pool(x, 3, 2, 1), x, dy), pool(x, 3, 2, 1)]

    make = lambda tensor: [tensor(size), tensor(out)]  # noqa: E731
    ours, theirs = partial(run, ops.max_pool2d), partial(run, F.max_pool2d)
    return Case(_what("max_pool2d 3, stride 2", size, dtype, last), make, ours, theirs, dtype, last)


def _unpool(size: tuple, dtype: torch.dtype, last: bool) -> Case:
    n, c, h, w = size

    def make(tensor: Make) -> list[Tensor]:
        x = tensor(size)
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        codes = cast(tuple[Tensor, Tensor], ops.max_pool2d(x, 2, return_indices="codes"))[1]
        return [values, tensor((n, c, h, w)), indices, codes]

    def ours(x: Tensor, dy: Tensor, *marks: Tensor) -> list[Tensor]:
        return [t for m in marks for t in _with_gradient(lambda x, m=m: ops.max_unpool2d(x, m, 2), x, dy)]

    def theirs(x: Tensor, dy: Tensor, indices: Tensor, codes: Tensor) -> list[Tensor]:
        return 2 * _with_gradient(lambda x: F.max_unpool2d(x, indices, [2, 2]), x, dy)

    return Case(_what("max_unpool2d 2", size, dtype, last), make, ours, theirs, dtype, last)


def _boxes(like: Tensor, size: Sequence[int], count: int = 70) -> Tensor:
    """(K, 5) in fp32, whose corners no dtype changes; some reach over the border, one is a point."""
    n, _, h, w = size
    steps = torch.arange(count, dtype=FLOAT, device=like.device)
    left, top = (steps * 7) % w - 2.25, (steps * 5) % h - 1.5
    boxes = torch.stack([steps % n, left, top, left + steps % 11, top + (3 * steps) % 13], 1)
    boxes[-1, 3:] = boxes[-1, 1:3]
    return boxes


def _wide(x: Tensor, dy: Tensor, run: Callable[[Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
    # torchvision has no kernels of 16 bits that are right for boxes: in fp32, rounded once.
    dtype = torch.promote_types(x.dtype, FLOAT)
    return [t.to(x.dtype) if t.is_floating_point() else t for t in run(x.to(dtype), dy.to(dtype))]


def _roi(op: str, options: tuple, size: tuple, dtype: torch.dtype, last: bool) -> Case:
    def make(tensor: Make) -> list[Tensor]:
        x = tensor(size)
        boxes = _boxes(x, size)
        return [x, tensor((boxes.shape[0], size[1], 7, 5)), boxes]

    def ours(x: Tensor, dy: Tensor, boxes: Tensor) -> list[Tensor]:
        return _with_gradient(lambda x: getattr(ops, op)(x, boxes, (7, 5), *options), x, dy)

    def theirs(x: Tensor, dy: Tensor, boxes: Tensor) -> list[Tensor]:
        import torchvision

        stock = getattr(torchvision.ops, op)
        call = lambda x: stock(x, boxes.to(x.dtype), (7, 5), *options)  # noqa: E731
        return _wide(x, dy, partial(_with_gradient, call))

    return Case(_what(op, size, dtype, last), make, ours, theirs, dtype, last)


_roi_align = partial(_roi, "roi_align", (0.5, 2, True))
_roi_pool = partial(_roi, "roi_pool", (0.5,))


def _context(size: tuple, dtype: torch.dtype, last: bool) -> Case:
    c = size[1]

    def make(tensor: Make) -> list[Tensor]:
        weights = [tensor((c, c, 3, 3) if i + 1 < len(_LAYERS) else (c, c, 1, 1)) / 8 for i in range(len(_LAYERS))]
        return [tensor(size), *weights, *(tensor((c,)) for _ in _LAYERS)]

    def ours(x: Tensor, *rest: Tensor) -> Tensor:
        return ops.context_module(x, rest[: len(_LAYERS)], rest[len(_LAYERS) :], _LAYERS)

    def theirs(x: Tensor, *rest: Tensor) -> Tensor:
        for i, (weight, bias, d) in enumerate(zip(rest[: len(_LAYERS)], rest[len(_LAYERS) :], _LAYERS)):
            x = F.conv2d(x.relu() if i else x, weight, bias, 1, d * (weight.shape[-1] // 2), d)
        return x

    return Case(_what("context_module", size, dtype, last), make, ours, theirs, dtype, last)


def _branches(size: tuple, dtype: torch.dtype, last: bool) -> Case:
    c = size[1]

    def make(tensor: Make) -> list[Tensor]:
        weights = [tensor((64, c, 1, 1) if d == 1 else (64, c, 3, 3)) for d in _RATES]
        return [tensor(size), tensor((size[0], 8, *size[2:])), *weights, *(tensor((64,)) for _ in _RATES)]

    def padding(rate: int) -> int:
        return 0 if rate == 1 else rate

    def ours(x: Tensor, other: Tensor, *rest: Tensor) -> Tensor:
        weights, biases = list(rest[: len(_RATES)]), list(rest[len(_RATES) :])
        return ops.conv_branches(x, weights, biases, [padding(d) for d in _RATES], list(_RATES), "relu", [other])

    def theirs(x: Tensor, other: Tensor, *rest: Tensor) -> Tensor:
        around = zip(rest[: len(_RATES)], rest[len(_RATES) :], _RATES)
        return torch.cat([*(F.conv2d(x, w, b, 1, padding(d), d).relu() for w, b, d in around), other], 1)

    return Case(_what("conv_branches", size, dtype, last), make, ours, theirs, dtype, last)


def _epilogue(size: tuple, dtype: torch.dtype, last: bool) -> Case:
    n, c, h, w = size
    make = lambda tensor: [tensor(size), tensor((40, c, 3, 3)), tensor((40,)), tensor((n, 40, h, w))]  # noqa: E731

    def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ops.conv2d(x, weight, bias, padding=2, dilation=2, residual=residual, activation="relu")

    def theirs(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return (F.conv2d(x, weight, bias, 1, 2, 2) + residual).relu()

    return Case(_what("conv_epilogue", size, dtype, last), make, ours, theirs, dtype, last)


def _on_lattice(op: str, run: Callable[..., Outputs], size: tuple, dtype: torch.dtype, last: bool) -> Case:
    n, _, h, w = size
    make = lambda tensor: [tensor(size), tensor(size), 2 * tensor((n, 3, h, w))]  # noqa: E731

    def theirs(*operands: Tensor) -> Outputs:
        with forced("reference"):
            return run(*operands)

    return Case(_what(op, size, dtype, last), make, run, theirs, dtype, last)


def _filtered(x: Tensor, dy: Tensor, features: Tensor) -> list[Tensor]:
    return _with_gradient(lambda x: ops.permutohedral_filter(x, features, "symmetric"), x, dy)


def _inferred(x: Tensor, dy: Tensor, features: Tensor) -> Tensor:
    lattice = ops.permutohedral_lattice(features)
    mu = torch.full((x.shape[1],), -1.0, dtype=x.dtype, device=x.device)
    return ops.mean_field(4 * x, [lattice], [mu], 3)


_filter = partial(_on_lattice, "permutohedral_filter", _filtered)
_mean_field = partial(_on_lattice, "mean_field", _inferred)
