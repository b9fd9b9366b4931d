"""One small call of every functional operator and layer, for the tests that hold the whole package together."""

from collections.abc import Callable
from typing import Any

import torch

import atrousops.functional as A
from atrousops import nn


def rand(*shape: int) -> torch.Tensor:
    """Of shape `shape`, the same every time and on every device."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]), device="cpu")
    return x.to(torch.get_default_device())


def boxes(count: int = 0, extent: float = 0.0) -> torch.Tensor:
    """(K, 5) boxes on two images: two by hand, or `count` of any size within `extent`."""
    if not count:
        return torch.tensor([[0.0, 1, 1, 6, 5], [1, 0, 2, 3, 7]])
    corners = (rand(count, 4) * extent).view(count, 2, 2).sort(1).values.flatten(1)
    return torch.cat([(rand(count, 1) * 2).floor(), corners], 1)


_AXES = {"1d": (9,), "2d": (8, 9), "3d": (4, 6, 5)}


def _conv(axes: str) -> tuple[tuple, dict]:
    return (rand(2, 4, *_AXES[axes]), rand(6, 4, *[3] * len(_AXES[axes]))), {"padding": 2, "dilation": 2}


def _conv_transpose(axes: str) -> tuple[tuple, dict]:
    return (rand(2, 4, *_AXES[axes]), rand(4, 5, *[3] * len(_AXES[axes]))), {"stride": 2, "padding": 1}


def _pool(axes: str) -> tuple[tuple, dict]:
    return (rand(2, 4, *_AXES[axes]), 2), {}


def _unpool(axes: str) -> tuple[tuple, dict]:
    pool = getattr(torch.nn.functional, f"max_pool{axes}")
    values, indices = pool(rand(2, 4, *_AXES[axes]), 2, return_indices=True)
    return (values, indices, 2), {"output_size": _AXES[axes]}


def _mean_field() -> tuple[tuple, dict]:
    lattice = A.permutohedral_lattice(rand(1, 3, 5, 6))
    return (rand(1, 4, 5, 6), [lattice], [-torch.ones(4)], 2), {}


def _context_module() -> tuple[tuple, dict]:
    weights = [rand(3, 3, 3, 3) - 0.4, rand(3, 3, 3, 3) - 0.4, rand(3, 3, 1, 1)]
    return (rand(2, 3, 9, 7), weights, None, (2, 4, 1)), {}


def _conv_branches() -> tuple[tuple, dict]:
    weights = [rand(6, 4, 1, 1), rand(2, 4, 3, 3), rand(6, 4, 3, 3)]
    return (rand(2, 4, 8, 9), weights, None, (0, 2, 3), (1, 2, 3), None, [rand(2, 2, 8, 9)]), {}


FUNCTIONS: dict[str, Callable[[], tuple[tuple, dict]]] = {
    "context_module": _context_module,
    "conv_branches": _conv_branches,
    "mean_field": _mean_field,
    "permutohedral_filter": lambda: ((rand(1, 4, 5, 6), rand(1, 3, 5, 6)), {"normalize": "symmetric"}),
    "permutohedral_lattice": lambda: ((rand(1, 3, 5, 6),), {}),
    "roi_align": lambda: ((rand(2, 5, 8, 9), boxes(), (2, 3)), {"sampling_ratio": 2}),
    "roi_pool": lambda: ((rand(2, 5, 8, 9), boxes(), (2, 3)), {}),
}
for _axes in _AXES:
    FUNCTIONS[f"conv{_axes}"] = lambda axes=_axes: _conv(axes)
    FUNCTIONS[f"conv_transpose{_axes}"] = lambda axes=_axes: _conv_transpose(axes)
    FUNCTIONS[f"max_pool{_axes}"] = lambda axes=_axes: _pool(axes)
    FUNCTIONS[f"max_unpool{_axes}"] = lambda axes=_axes: _unpool(axes)

LAYERS: dict[str, Callable[[], tuple[torch.nn.Module, tuple]]] = {
    "AtrousConv2d": lambda: (nn.AtrousConv2d(4, 6, 3, padding=2, dilation=2), (rand(2, 4, 8, 9),)),
    "AtrousConvTranspose2d": lambda: (nn.AtrousConvTranspose2d(4, 6, 3, stride=2), (rand(2, 4, 8, 9),)),
    "MaxPool2d": lambda: (nn.MaxPool2d(3, 2, 1, return_indices=True), (rand(2, 4, 8, 9),)),
    "MaxUnpool2d": lambda: (nn.MaxUnpool2d(2), (*_unpool("2d")[0][:2], _AXES["2d"])),
    "DenseCRF": lambda: (nn.DenseCRF(iterations=2), (rand(1, 4, 8, 9), rand(1, 3, 8, 9) * 255)),
    "PermutohedralFilter": lambda: (nn.PermutohedralFilter(), (rand(1, 4, 5, 6), rand(1, 3, 5, 6))),
    "RoIAlign": lambda: (nn.RoIAlign(2, 1.0, 2), (rand(2, 5, 8, 9), boxes())),
    "RoIPool": lambda: (nn.RoIPool(2, 1.0), (rand(2, 5, 8, 9), boxes())),
}


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (tuple, list)) else []


def call(name: str) -> list[torch.Tensor]:
    """The operator's outputs for its sample."""
    args, kwargs = FUNCTIONS[name]()
    return tensors(getattr(A, name)(*args, **kwargs))


def call_layer(name: str) -> list[torch.Tensor]:
    """The layer's outputs for its sample, with the same weights every time."""
    torch.manual_seed(0)
    layer, inputs = LAYERS[name]()
    with torch.no_grad():
        return tensors(layer(*inputs))


def all_results() -> dict[str, list[torch.Tensor]]:
    """Every operator that this package exports, and every layer above. The lattice's numbering is free: left out."""
    names = [name for name in FUNCTIONS if hasattr(A, name) and name != "permutohedral_lattice"]
    return {name: call(name) for name in names} | {name: call_layer(name) for name in LAYERS}
