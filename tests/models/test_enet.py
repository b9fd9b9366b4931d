"""ENet: its published weights on CamVid, ours against the stock operators."""

import pytest
import torch

from atrousops import models
from atrousops.data import CamVid, transforms
from atrousops.metrics import ConfusionMatrix


def stock(network: torch.nn.Module) -> torch.nn.Module:
    """The same network on torch.nn's own layers."""
    for layer in network.modules():
        base = next((c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn.modules")), None)
        known = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.MaxPool2d, torch.nn.MaxUnpool2d)
        if base in known:
            layer.__class__ = base
    return network


@pytest.fixture
def weights(real_data):
    return torch.load(real_data / "enet_camvid.pth", map_location="cpu", weights_only=True)


@torch.inference_mode()
def test_camvid(real_data, weights):
    """Labels as the stock operators give on 99.99 % of the pixels, and a mIoU within 0.002 of theirs."""
    # PyTorch's own unpooling refuses to run otherwise.
    torch.use_deterministic_algorithms(False)
    ours, theirs = models.enet_davidtvs().eval(), stock(models.enet_davidtvs()).eval()
    ours.load_state_dict(weights)
    theirs.load_state_dict(weights)
    data = CamVid(real_data, "test", transforms.plain())
    # Every class but the rarest occurs in these five, spread over the set.
    picked = range(0, len(data), 50)
    scores = ConfusionMatrix(11), ConfusionMatrix(11)
    different = pixels = 0
    for index in picked:
        image, target = data[index]
        # The twelfth output is void, which is never an answer.
        labels = [network(image[None])["out"][0, :11].argmax(0) for network in (ours, theirs)]
        for matrix, found in zip(scores, labels, strict=True):
            matrix.update(found, target)
        different += int((labels[0] != labels[1]).sum())
        pixels += target.numel()
    assert different <= 1e-4 * pixels
    assert abs(scores[0].mean_iou - scores[1].mean_iou) <= 0.002
    assert scores[0].mean_iou > 0.45
