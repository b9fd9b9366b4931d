"""The front end against the strided VGG it comes from, and what is put behind it."""

import pytest
import torch
from networks import pass_pixels_on, vgg16_weights

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.models.base import reflect
from atrousops.nn import MaxPool2d


@torch.no_grad()
def test_is_the_strided_vgg_at_every_fourth_position():
    """Removing a stride of 2 and dilating what follows only adds positions in between."""
    fine = models.dilated_vgg16(num_classes=3, width=2).eval()
    subsampling = models.vgg.vgg16(2, lambda stage: MaxPool2d(2, 2) if stage <= 3 else MaxPool2d(1, 2), valid=True)
    subsampling.load_state_dict(fine.backbone.state_dict())
    fc6 = torch.nn.Conv2d(16, 128, 7)
    fc6.load_state_dict(fine.fc[0].state_dict())
    image = torch.rand(1, 3, 436, 420)
    got = fine.fc[0](fine.backbone(image)["out"])
    assert got.shape[-2:] == (8, 6)
    torch.testing.assert_close(got[..., ::4, ::4], fc6(subsampling(image)["out"]))


@torch.no_grad()
def test_margin_and_alignment():
    """A pixel's score is that of the position above it: the brightest column of an 8 pixel wide window."""
    network = models.dilated_vgg16(num_classes=1, width=1).eval()
    pass_pixels_on(network)
    abscissa = torch.arange(1.0, 62)
    got = network(abscissa.expand(1, 3, 16, 61).contiguous())["out"][0, 0, 8]
    # A window's maximum is 3.5 above its centre.
    torch.testing.assert_close(got[4:52], abscissa[4:52] + 3.5)


@torch.no_grad()
def test_context_starts_as_identity():
    """Where scores are positive; the basic module passes them on as they are."""
    plain = models.dilated_vgg16(num_classes=2, width=2, padding="zeros").eval()
    plain.score.weight.abs_()
    plain.score.bias.fill_(1.0)
    joined = models.dilated_vgg16(num_classes=2, width=2, padding="zeros", context="basic").eval()
    joined.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(1, 3, 24, 32)
    torch.testing.assert_close(joined(image)["out"], plain(image)["out"])


@torch.no_grad()
def test_paddings_share_weights():
    """Far from the border both say the same."""
    valid = models.dilated_vgg16(num_classes=2, width=1).eval()
    zeros = models.dilated_vgg16(num_classes=2, width=1, padding="zeros").eval()
    zeros.load_state_dict(valid.state_dict())
    for layer in (*valid.modules(), *zeros.modules()):
        if isinstance(layer, torch.nn.Conv2d):
            # No ReLU is dead.
            layer.weight.abs_()
    image = torch.rand(1, 3, 408, 416)
    middle = (..., slice(200, 208), slice(200, 216))
    torch.testing.assert_close(zeros(image)["out"][middle], valid(image)["out"][middle])


def test_reflect_beyond_the_image():
    row = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    got = reflect(row, 5, (0, 4))
    assert got.shape == (1, 1, 6, 12)
    assert got[0, 0, 0].tolist() == [2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3]


@torch.no_grad()
def test_dense_crf_is_for_tests():
    network = models.dilated_vgg16(num_classes=3, width=2, padding="zeros", crf="dense")
    image = torch.rand(1, 3, 32, 32)
    network.network.eval()
    plain = network.network(image)["out"]
    network.train()
    network.network.eval()
    assert torch.equal(network(image)["out"], plain)
    network.eval()
    colours = 255 * (image * network.std + network.mean)
    torch.testing.assert_close(network(image)["out"].exp(), models.crf.DenseCRF(10)(plain, colours.clamp(0, 255)))


def test_a_missing_weight_is_named():
    weights = vgg16_weights(width=2)
    weights.pop("features.28.bias")
    with pytest.raises(ArgumentError, match="28"):
        models.dilated_vgg16(3, width=2, backbone_weights=weights)
