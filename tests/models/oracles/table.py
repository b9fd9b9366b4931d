"""Runs a table of layers, one a line, `top = kind bottoms size=number ...`, with the weights of another network.

Kinds are those of Caffe's prototxts, and mean what they mean there: `conv`, `deconv`, `bn`, `relu`, `prelu`, `max` and
`ave` (pooling, its size rounded up), `mean`, `unpool`, `widen` (channels
of zeros), `sum`, `cat`, `top` (elementwise maximum), `interp` (corners aligned),
`crop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomise(network: nn.Module) -> nn.Module:
    """The network in fp64 and evaluation, every weight, bias and statistic random, so that none can hide."""
    generator = torch.Generator().manual_seed(0)

    def random(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    network = network.double().eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor, low, high in (
                    (layer.weight, 0.5, 1.5), (layer.bias, -0.2, 0.2),
                    (layer.running_mean, -0.1, 0.1), (layer.running_var, 0.5, 1.5),
                ):  # fmt: skip
                    random(tensor, low, high)
            elif isinstance(layer, nn.PReLU):
                random(layer.weight, 0.1, 0.4)
            elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                inputs = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.weight[:, 0].numel()
                bound = math.sqrt(6 / inputs)
                random(layer.weight, -bound, bound)
                if layer.bias is not None:
                    random(layer.bias, -0.1, 0.1)
    return network


def layers(network: nn.Module) -> list[nn.Module]:
    """Its layers that have weights of their own, as they are registered."""
    return [layer for layer in network.modules() if next(layer.parameters(recurse=False), None) is not None]


@torch.no_grad()
def run(table: str, image: Tensor, weights: list[nn.Module], **given: Tensor) -> dict[str, Tensor]:
    """All tops of the table; layers with weights take those of `weights` in turn, and none may be left."""
    blobs = {"data": image, **given}
    taken = iter(weights)
    for row in filter(None, map(str.strip, table.splitlines())):
        top, what = row.split(" = ")
        kind, *words = what.split()
        sizes = {key: float(value) for key, value in (word.split("=") for word in words if "=" in word)}
        bottoms = [blobs[word] for word in words if "=" not in word]
        blobs[top] = _layer(kind, bottoms, sizes, taken)
    assert next(taken, None) is None, "the table has fewer layers than the network"
    return blobs


def _layer(kind: str, bottoms: list[Tensor], sizes: dict[str, float], taken: Iterator[nn.Module]) -> Tensor:
    x = bottoms[0]
    number = {key: int(value) for key, value in sizes.items()}
    if kind in ("conv", "deconv", "bn", "prelu"):
        return _weighted(kind, x, sizes, next(taken))
    if kind == "relu":
        return x.clamp_min(0)
    if kind in ("max", "ave"):
        return caffe_pool(x, number["k"], number.get("s", 1), number.get("p", 0), kind == "ave")
    if kind == "unpool":
        return unpool(x, bottoms[1], bottoms[2])
    if kind == "mean":
        return x.mean((2, 3), keepdim=True)
    if kind == "widen":
        return F.pad(x, (0, 0, 0, 0, 0, bottoms[1].shape[1] - x.shape[1]))
    if kind == "sum":
        return torch.stack(bottoms).sum(0)
    if kind == "top":
        return torch.stack(bottoms).amax(0)
    if kind == "cat":
        return torch.cat(bottoms, dim=1)
    if kind == "crop":
        offset, like = number["offset"], bottoms[1]
        return x[..., offset : offset + like.shape[2], offset : offset + like.shape[3]]
    assert kind == "interp", kind
    if len(bottoms) > 1:
        size = list(bottoms[1].shape[2:])
    else:
        size = [(side - 1) * number.get("zoom", 1) // number.get("shrink", 1) + 1 for side in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _weighted(kind: str, x: Tensor, sizes: dict[str, float], layer: nn.Module) -> Tensor:
    if kind == "bn":
        assert isinstance(layer, nn.BatchNorm2d), layer
        assert layer.running_mean is not None
        assert layer.running_var is not None
        scale = layer.weight / (layer.running_var + sizes.get("eps", 1e-5)).sqrt()
        return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]
    if kind == "prelu":
        assert isinstance(layer, nn.PReLU), layer
        assert len(layer.weight) == x.shape[1]
        return torch.where(x > 0, x, layer.weight[:, None, None] * x)
    assert isinstance(layer, nn.ConvTranspose2d if kind == "deconv" else nn.Conv2d), layer
    height, width = int(sizes.get("kh", sizes.get("k", 1))), int(sizes.get("kw", sizes.get("k", 1)))
    assert layer.kernel_size == (height, width), layer
    assert (layer.bias is not None) == bool(sizes.get("bias", 1)), layer
    stride, rate, groups = int(sizes.get("s", 1)), int(sizes.get("d", 1)), x.shape[1] if sizes.get("dw") else 1
    padding = (int(sizes.get("ph", sizes.get("p", 0))), int(sizes.get("pw", sizes.get("p", 0))))
    if kind == "deconv":
        extra = int(sizes.get("extra", 0))
        return F.conv_transpose2d(x, layer.weight, layer.bias, stride, padding, extra, groups, rate)
    return F.conv2d(x, layer.weight, layer.bias, stride, padding, rate, groups)


def pooled_size(side: int, kernel: int, stride: int, padding: int) -> int:
    """Caffe's: rounded up, without a last window that would start beyond the image and its padding on the left."""
    size = math.ceil((side + 2 * padding - kernel) / stride) + 1
    return size - 1 if padding and (size - 1) * stride >= side + padding else size


def caffe_pool(x: Tensor, kernel: int, stride: int, padding: int, average: bool = False) -> Tensor:
    """Windows one by one, cut at the border; an average counts the padding as zeros."""
    rows, columns = (pooled_size(side, kernel, stride, padding) for side in x.shape[2:])
    y = x.new_empty((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride - padding, j * stride - padding
            window = x[..., max(top, 0) : top + kernel, max(left, 0) : left + kernel].flatten(2)
            y[..., i, j] = window.sum(2) / kernel**2 if average else window.amax(2)
    return y


def unpool(x: Tensor, pooled: Tensor, before: Tensor) -> Tensor:
    """Each value at the first place of its 2x2 window of `before`, row by row, that holds the maximum `pooled`."""
    y = before.new_zeros((x.shape[0], x.shape[1], *before.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = before[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            largest = window.flatten(2) == pooled[..., i, j, None]
            first = largest & (largest.cumsum(2) == 1)
            y[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = x[..., i : i + 1, j : j + 1] * first.view_as(window)
    return y
