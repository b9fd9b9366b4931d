"""DeepLab v1 and v2: the paper's parameter counts, decimated weights, sums and maxima by hand."""

import pytest
import torch
from networks import parameters, vgg16_weights
from torch.nn import functional as F

from atrousops import models


@pytest.mark.parametrize(
    ("kernel_size", "rate", "millions"), [(7, 4, 134.3), (4, 4, 65.1), (4, 8, 65.1), (3, 12, 20.5)]
)
def test_parameters_of_table_2(kernel_size, rate, millions):
    assert round(parameters("deeplabv1", kernel_size=kernel_size, rate=rate) / 1e6, 1) == millions


def test_parameters_of_v2():
    branch = 512 * 1024 * 9 + 1024 + 1024**2 + 1024 + 1024 * 21 + 21
    assert parameters("deeplabv2", backbone="vgg16", multi_scale=True) == 14_714_688 + 4 * branch


@pytest.mark.parametrize("variant", sorted(models.deeplab_v1.VARIANTS))
@torch.no_grad()
def test_output_stride_and_field_of_view(variant):
    """Every variant keeps 1/8, and the outermost taps of fc6 are rate (kernel_size - 1) apart."""
    kernel_size, rate = variant
    network = models.deeplabv1(2, kernel_size, rate, width=1).eval()
    # A multiple of eight and one more is the release's; six more are seen by one position more.
    assert [network.backbone(torch.rand(1, 3, side, 9))["out"].shape[2] for side in (321, 327)] == [41, 42]
    features = network.backbone(torch.rand(1, 3, 153, 89))
    assert features["out"].shape[-2:] == (20, 12)
    assert network.classifier(features).shape == (1, 2, 20, 12)
    fc6 = network.classifier.fc[0]
    fc6.weight.fill_(1)
    fc6.bias.zero_()
    dot = torch.zeros(1, 8, 81, 81)
    dot[..., 40, 40] = 1
    hit = fc6(dot)[0, 0].nonzero()
    assert len(hit) == kernel_size**2
    assert (hit.amax(0) - hit.amin(0)).tolist() == [rate * (kernel_size - 1)] * 2


def test_decimation():
    """3x3 of 7x7 are taps 0, 3, 6; a quarter of the channels are every fourth, in fc6 and, on both sides, in fc7."""
    weights = vgg16_weights(width=4)
    network = models.deeplabv1(3, width=4, backbone_weights=weights)
    fc6, fc7 = network.classifier.fc[0], network.classifier.fc[3]
    full = weights["classifier.0.weight"].view(256, 32, 7, 7)
    assert torch.equal(fc6.weight, full[::4, :, ::3, ::3])
    assert torch.equal(fc6.bias, weights["classifier.0.bias"][::4])
    assert torch.equal(fc7.weight[..., 0, 0], weights["classifier.3.weight"][::4, ::4])
    four = models.deeplabv1(3, 4, 4, width=4, backbone_weights=weights)
    assert torch.equal(four.classifier.fc[0].weight, full[:, :, ::2, ::2])
    assert torch.equal(four.backbone["0"].weight, weights["features.0.weight"])


@torch.no_grad()
def test_aspp_is_a_sum():
    head = models.deeplabv2(2, "resnet18", rates=(1, 2, 5)).classifier.double()
    x = torch.randn(1, 512, 9, 11, dtype=torch.float64)
    wanted = sum(F.conv2d(x, b.weight, b.bias, padding=r, dilation=r) for b, r in zip(head, (1, 2, 5)))
    torch.testing.assert_close(head({"out": x}), wanted)


class _Affine(torch.nn.Module):
    """Scores that depend on the size of the image, so that scales can be told apart."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = image.shape[-2]
        return {"out": torch.stack([image[:, 0] + rows, image[:, 0] - rows], dim=1)}


def test_scales_are_fused_by_maximum():
    """A constant image of 3: rows are 16, 12, 8; the first class wants many of them, the second few."""
    network = models.MultiScale(_Affine())
    found = network(torch.full((1, 3, 16, 16), 3.0))
    wanted = {"out": (19, -5), "scale1.0": (19, -13), "scale0.75": (15, -9), "scale0.5": (11, -5)}
    assert list(found) == list(wanted)
    for name, scores in wanted.items():
        torch.testing.assert_close(found[name], torch.tensor(scores).view(1, 2, 1, 1).expand(1, 2, 16, 16).float())
    assert list(network.eval()(torch.ones(1, 3, 16, 16))) == ["out"]
