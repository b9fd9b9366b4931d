"""What every network is held to; a network's own file says how it is built."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional as F

import atrousops as ao
from atrousops import models
from atrousops.common.checks import ArgumentError


class NetworkTests:
    name: ClassVar[str]
    arguments: ClassVar[dict[str, Any]] = {"num_classes": 3}
    outputs: ClassVar[tuple[str, ...]] = ("out",)
    # H, W: odd in both axes, so that no pooling divides evenly.
    odd: ClassVar[tuple[int, int]] = (49, 67)
    # H, W of the images it learns from.
    training: ClassVar[tuple[int, int]] = (64, 64)
    steps: ClassVar[int] = 4

    def build(self, **arguments: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return models.build(self.name, **{**self.arguments, **arguments})

    def test_forward_at_odd_size(self):
        network = self.build().eval()
        with torch.inference_mode():
            scores = network(torch.rand(1, 3, *self.odd))
        assert tuple(scores) == self.outputs
        for score in scores.values():
            assert score.shape == (1, 3, *self.odd)
            assert bool(score.isfinite().all())

    def test_convolutions_are_ours(self):
        stock = [name for name, layer in self.build().named_modules() if type(layer) is torch.nn.Conv2d]
        assert not stock
        assert any(isinstance(layer, ao.AtrousConv2d) for layer in self.build().modules())

    def test_learns(self):
        network = self.build().train()
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        images = torch.rand(2, 3, *self.training)
        labels = (images[:, 0] > 0.5).long()
        losses = []
        for _ in range(self.steps):
            loss = F.cross_entropy(network(images)["out"], labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        unreached = [name for name, p in network.named_parameters() if p.grad is None and not name.startswith("aux")]
        assert not unreached

    def test_wrong_rank(self):
        with pytest.raises(ArgumentError, match=r"\(N, 3, H, W\)"):
            self.build()(torch.rand(3, 32, 32))


class AtrousTests(NetworkTests):
    """Networks with a backbone whose output stride one chooses."""

    @pytest.mark.parametrize("output_stride", [8, 16])
    def test_output_stride(self, output_stride):
        backbone = self.build(output_stride=output_stride).backbone.eval()
        with torch.inference_mode():
            features = backbone(torch.rand(1, 3, 64, 96))
        assert features["out"].shape[-2:] == (64 // output_stride, 96 // output_stride)
        assert features["low"].shape[-2:] == (16, 24)

    def test_output_stride_of_weights(self):
        """One set of weights serves both output strides."""
        self.build(output_stride=8).load_state_dict(self.build(output_stride=16).state_dict())

    def test_bad_output_stride(self):
        with pytest.raises(ArgumentError, match="output_stride"):
            self.build(output_stride=12)


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
