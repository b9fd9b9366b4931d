"""SegNet, DeconvNet and U-Net: sizes of the papers, unpooling by hand, weights of VGG-16."""

import pytest
import torch
from networks import parameters, vgg16_weights

from atrousops import models
from atrousops.models.unpooling import UnpoolingDecoder, coding_vgg16, encode
from atrousops.nn import AtrousConv2d


# Smaller than five poolings; larger than the window.
@pytest.mark.parametrize(("name", "size"), [("segnet", (5, 40)), ("deconvnet", (290, 230))])
@torch.inference_mode()
def test_odd_sizes(name, size):
    assert models.build(name, num_classes=3, width=2).eval()(torch.rand(1, 3, *size))["out"].shape == (1, 3, *size)


def test_parameters_of_unet():
    """Figure 1."""
    down = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1024)]
    up = [(1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64)]
    doubled = sum(2 * w * w * 4 + w for w in (512, 256, 128, 64))
    assert parameters("unet") == sum(i * o * 9 + o for i, o in (*down, (1024, 1024), *up)) + doubled + 65 * 2


@torch.no_grad()
def test_decoder_puts_maxima_back():
    """With filters that pass their middle on, what comes out of pool and unpool is the image where it is largest."""
    network = coding_vgg16(1).eval()
    image = torch.rand(1, 3, 33, 70)
    x, pooled = encode(network, image)
    assert x.shape == (1, 8, 2, 3)
    assert [tuple(size) for _, size in pooled] == [(33, 70), (17, 35), (9, 18), (5, 9), (3, 5)]
    assert all(codes.dtype == torch.uint8 for codes, _ in pooled)
    mirror = UnpoolingDecoder(1, AtrousConv2d).eval()
    maps = torch.rand(1, 8, 2, 3)
    y = mirror.unpool(maps, *pooled[-1])
    assert y.shape == (1, 8, 3, 5)
    # Each value once, at the place of the maximum that it came from.
    assert sorted(y[y != 0].tolist()) == sorted(maps.flatten().tolist())
    fed = torch.nn.functional.max_pool2d(y, 2, ceil_mode=True)
    assert torch.equal(fed, maps)
    assert mirror(maps, pooled).shape == (1, 1, 33, 70)


@torch.no_grad()
def test_deconvnet_of_the_papers_image():
    """224 pixels: seven positions, one, and seven again."""
    network = models.deconvnet(2, width=1).eval()
    x, _ = encode(network.backbone, torch.rand(1, 3, 224, 224))
    assert x.shape == (1, 8, 7, 7)
    assert network.fc[:3](x).shape == (1, 64, 1, 1)
    assert network.fc(x).shape == (1, 8, 7, 7)


@torch.no_grad()
def test_unet_of_the_papers_image():
    """388 pixels are mirrored to 572, and none is cut off at the end."""
    network = models.unet(2, width=1).eval()
    sides = []
    for block in (*network.down, *network.join):
        block.register_forward_hook(lambda _, inputs, output: sides.append((inputs[0].shape[-1], output.shape[-1])))
    assert network(torch.rand(1, 3, 388, 388))["out"].shape[-1] == 388
    assert sides[:5] == [(572, 568), (284, 280), (140, 136), (68, 64), (32, 28)]
    assert sides[5:] == [(56, 52), (104, 100), (200, 196), (392, 388)]


@pytest.mark.parametrize("part", ["down.1.0", "join.0.0", "up.0", "score"])
def test_unet_starts_as_in_the_paper(part):
    """Deviation sqrt(2 / N): of 64 channels to 128 N = 576, joined 9 x 1024; of an up-convolution one tap."""
    inputs = {"down.1.0": 9 * 16, "join.0.0": 9 * 256, "up.0": 256, "score": 16}[part]
    torch.manual_seed(0)
    weight = models.unet(300, width=16).get_submodule(part).weight
    assert abs(weight.std() / (2 / inputs) ** 0.5 - 1) < 3 / (2 * weight.numel()) ** 0.5


@torch.no_grad()
def test_unet_paddings_share_weights():
    """Away from the border both say the same, wherever the poolings fall alike."""
    valid = models.unet(2, width=1).eval()
    zeros = models.unet(2, width=1, padding="zeros").eval()
    zeros.load_state_dict(valid.state_dict())
    # Without padding, windows of 16 pixels start at 2 modulo 16; 14 rows and columns less let them fall alike.
    image = torch.rand(1, 3, 276, 276)
    # A pixel sees 92 pixels to each side, and the windows of 16 that they lie in.
    got = zeros(image)["out"][..., 112:160, 112:160]
    wanted = valid(image[..., 14:, 14:])["out"][..., 98:146, 98:146]
    assert got.std() > 0
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["segnet", "deconvnet", "hypercolumns", "dilated_vgg16"])
def test_vgg_weights(name):
    """Normalised networks take the weights of vgg16_bn; test_fcn.py has what the fully connected layers become."""
    norms = name in ("segnet", "deconvnet")
    weights = vgg16_weights(width=2, batch_norm=norms)
    network = models.build(name, num_classes=2, width=2, backbone_weights=weights)
    last = "41.running_mean" if norms else "28.weight"
    assert torch.equal(network.backbone.state_dict()[last], weights[f"features.{last}"])
    if name != "segnet":
        assert torch.equal(network.fc[0].weight.flatten(1), weights["classifier.0.weight"])
        assert torch.equal(network.fc[3].bias, weights["classifier.3.bias"])
