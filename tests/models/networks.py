"""What the tests of networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from atrousops import models


def parameters(name: str, **arguments: Any) -> int:
    """How many numbers a network learns, without making any."""
    with torch.device("meta"):
        return sum(p.numel() for p in models.build(name, **arguments).parameters())


def losses(network: torch.nn.Module, loss: Callable[[], torch.Tensor], steps: int, rate: float = 1e-3) -> list[float]:
    """Of so many steps of Adam."""
    optimiser = torch.optim.Adam(network.parameters(), rate)
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        found.append(value.item())
    return found


@torch.no_grad()
def pass_pixels_on(network: torch.nn.Module) -> None:
    """Every filter gives what its middle sees of the first channel."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            middle = layer.kernel_size[0] // 2
            layer.weight.zero_()[0, 0, middle, middle] = 1
            layer.bias.zero_()


def vgg16_weights(width: int = 64, batch_norm: bool = False) -> dict[str, torch.Tensor]:
    """What torchvision's vgg16 would have for a state dict, at any width."""
    trunk = models.vgg.vgg16(width, batch_norm=batch_norm)
    weights = {f"features.{name}": torch.rand_like(v) if v.dim() else v for name, v in trunk.state_dict().items()}
    fc, inputs = 64 * width, 8 * width * 49
    weights["classifier.0.weight"], weights["classifier.0.bias"] = torch.randn(fc, inputs), torch.randn(fc)
    weights["classifier.3.weight"], weights["classifier.3.bias"] = torch.randn(fc, fc), torch.randn(fc)
    return weights
