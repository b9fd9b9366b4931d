"""What the tests of networks share."""

from __future__ import annotations

from typing import Any

import torch

from atrousops import models


def parameters(name: str, **arguments: Any) -> int:
    """How many numbers a network learns, without making any."""
    with torch.device("meta"):
        return sum(p.numel() for p in models.build(name, **arguments).parameters())


def vgg16_weights(width: int = 64, batch_norm: bool = False) -> dict[str, torch.Tensor]:
    """What torchvision's vgg16 would have for a state dict, at any width."""
    trunk = models.vgg.vgg16(width, batch_norm=batch_norm)
    weights = {f"features.{name}": torch.rand_like(v) if v.dim() else v for name, v in trunk.state_dict().items()}
    fc, inputs = 64 * width, 8 * width * 49
    weights["classifier.0.weight"], weights["classifier.0.bias"] = torch.randn(fc, inputs), torch.randn(fc)
    weights["classifier.3.weight"], weights["classifier.3.bias"] = torch.randn(fc, fc), torch.randn(fc)
    return weights
