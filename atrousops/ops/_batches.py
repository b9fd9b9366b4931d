"""Rules for vmap: the additional batch dimension is merged into a dimension that the operators have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

Rule = Callable[..., tuple[Any, Any]]


def fold(t: Tensor, dim: int | None, batches: int) -> Tensor:
    """(batches * N, ...) from a tensor with batch dimension `dim`, or None if it is the same for all batches."""
    t = t.expand(batches, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


def entries(t: Tensor, dim: int | None) -> int:
    """The size of the first dimension that is not the batch dimension `dim`."""
    return t.shape[1 if dim == 0 else 0]


def over_leading(call: Callable[..., Any], count: int) -> Rule:
    """The rule for an operator that treats entries along the first dimension of all its tensors independently."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        tensors = [fold(t, dim, info.batch_size) for t, dim in zip(args[:count], in_dims)]
        size = (info.batch_size, entries(args[0], in_dims[0]))
        out = call(*tensors, *args[count:])
        if isinstance(out, Tensor):
            return out.unflatten(0, size), 0
        return tuple([t.unflatten(0, size) for t in out]), (0,) * len(out)

    return rule


def fold_boxes(boxes: Tensor, dim: int | None, batches: int, images: int) -> Tensor:
    """(batches * K, 5) boxes; those of batch b have image indices from b * images on."""
    first = torch.arange(batches, dtype=boxes.dtype, device=boxes.device) * images
    rows = fold(boxes, dim, batches)
    image = rows[:, :1] + first.repeat_interleave(entries(boxes, dim))[:, None]
    return torch.cat([image, rows[:, 1:]], 1)


def outside_its_layer(values: tuple) -> bool:
    """Whether a tensor is batched by a vmap that is not active, as in forward-mode derivatives of a function."""
    if torch._C._are_functorch_transforms_active():
        return False
    return any([isinstance(t, Tensor) and _functorch.is_batchedtensor(t) for t in values])


def inside_its_layer(call: Callable[..., Any], args: tuple) -> Any:
    """Makes the call by vmap over the innermost of such batch dimensions."""
    levels = [
        _functorch.maybe_get_level(t) if isinstance(t, Tensor) and _functorch.is_batchedtensor(t) else 0 for t in args
    ]
    level = max(levels)
    batched = [found == level for found in levels]
    dims = tuple([_functorch.maybe_get_bdim(t) if yes else None for t, yes in zip(args, batched)])
    out = torch.vmap(call, dims)(*[_functorch.get_unwrapped(t) if yes else t for t, yes in zip(args, batched)])
    wrapped = [_functorch._add_batch_dim(t, 0, level) for t in (out if isinstance(out, tuple) else (out,))]
    return tuple(wrapped) if isinstance(out, tuple) else wrapped[0]
