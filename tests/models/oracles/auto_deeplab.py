"""Auto-DeepLab as TensorFlow's release has it (deeplab/core/nas_network.py, nas_cell.py, model.py), written plainly.

Sizes are 2^k n + 1, for which TensorFlow's padding "SAME" is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# hnasnet's operations, and the states they read.
OPERATIONS = ["atrous5", "sep3", "sep3", "atrous3", "sep3", "sep3", "sep5", "sep5", "sep5", "atrous5"]
STATES = (1, 0, 1, 0, 3, 1, 4, 2, 3, 5)
PATH = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)


class Network:
    """Runs with the layers of another network, in the order in which they are registered."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.taken: Iterator[nn.Module] = iter(layers)

    def conv(self, x: Tensor, eps: float | None, stride: int = 1, rate: int = 1) -> Tensor:
        layer = next(self.taken)
        assert isinstance(layer, nn.Conv2d)
        groups = x.shape[1] // layer.weight.shape[1]
        x = F.conv2d(x, layer.weight, layer.bias, stride, rate * (layer.weight.shape[-1] // 2), rate, groups)
        if eps is None:
            return x
        norm = next(self.taken)
        assert isinstance(norm, nn.BatchNorm2d)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, eps)

    def operation(self, x: Tensor, name: str, stride: int) -> Tensor:
        x = x.relu()
        if name.startswith("atrous"):
            if stride == 2:
                x = bilinear(x, [(side - 1) // 2 + 1 for side in x.shape[2:]])
            return self.conv(x, 1e-3, rate=1 if stride == 2 else 2)
        x = self.conv(self.conv(x, None, stride), 1e-3)
        return self.conv(self.conv(x.relu(), None), 1e-3)

    def cell(self, net: Tensor, before: Tensor, width: int, stride: int) -> Tensor:
        if net.shape[2:] != before.shape[2:]:
            before = bilinear(before, list(net.shape[2:]))
        net = self.conv(net.relu(), 1e-3)
        if before.shape[1] != width:
            before = self.conv(before.relu(), 1e-3)
        states = [net, before]
        for i in range(0, 10, 2):
            left, right = (
                self.operation(states[STATES[j]], OPERATIONS[j], stride if STATES[j] < 2 else 1) for j in (i, i + 1)
            )
            states.append(left + right)
        return torch.cat(states[2:], dim=1)

    def encoder(self, image: Tensor, width: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        first = self.conv(self.conv(image, 1e-3, stride=2).relu(), 1e-3)
        cells = [first, self.conv(first.relu(), 1e-3, stride=2)]
        net, level, sizes = cells[-1], 0, []
        for deeper in PATH:
            if deeper == level - 1:
                net = bilinear(net, [2 * (side - 1) + 1 for side in net.shape[2:]])
            net = self.cell(net, cells[-2], width * 2**deeper, 2 if deeper == level + 1 else 1)
            cells.append(net)
            level = deeper
            sizes.append(tuple(net.shape[2:]))
        return cells[4], net.relu(), sizes

    def head(self, low: Tensor, x: Tensor, rates: tuple[int, ...]) -> Tensor:
        branches = [self.conv(x, 1e-5), *(self.conv(x, 1e-5, rate=rate) for rate in rates)]
        branches.append(self.conv(x.mean((2, 3), keepdim=True), 1e-5).expand_as(branches[0]))
        x = self.conv(torch.cat(branches, dim=1).relu(), 1e-5).relu()
        low = self.conv(low, 1e-5).relu()
        x = torch.cat([bilinear(x, list(low.shape[2:])), low], dim=1)
        x = self.conv(self.conv(x, 1e-5).relu(), 1e-5).relu()
        return self.conv(x, None)


def bilinear(x: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


@torch.no_grad()
def run(image: Tensor, layers: list[nn.Module], width: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Scores at the image's size, and the size behind each cell."""
    network = Network(layers)
    low, deep, sizes = network.encoder(image, width)
    scores = bilinear(network.head(low, deep, (12, 24, 36)), list(image.shape[2:]))
    assert next(network.taken, None) is None
    return scores, sizes
