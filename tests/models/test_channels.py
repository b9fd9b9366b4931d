"""Images of other channels than RGB, of a single pixel, and batches of one."""

import pytest
import torch
import torchvision
from torch import nn

from atrousops import models
from atrousops.common.checks import ArgumentError, ArgumentTypeError
from atrousops.models.channels import adapt, normalisation

SMALL = {
    "auto_deeplab": {"width": 4},
    # Without padding, whose poolings leave nothing of few pixels.
    "deeplabv1": {"pooling": 2},
    "deeplabv2": {"backbone": "vgg16", "pooling": 2},
    "deeplabv3plus_xception65": {"width": 4},
    "mask_rcnn": {"backbone": "resnet18", "min_size": 32, "max_size": 32},
    "msd": {"depth": 3},
    "gcn": {"kernel_size": 3},
    "deeplabv3_cascade": {"blocks": 5},
}
NARROW = ("deeplabv1", "deeplabv2", "dilated_vgg16", "fcn8s", "fcn16s", "fcn32s")
NARROW += ("hypercolumns", "segnet", "segnet_basic", "deconvnet", "unet")
BACKBONES = ("deeplabv3", "deeplabv3plus", "deeplabv3_cascade", "pspnet", "gcn", "metric_learning")
SMALL |= {name: {**SMALL.get(name, {}), "width": 4} for name in NARROW}
SMALL |= {name: {**SMALL.get(name, {}), "backbone": "resnet18"} for name in BACKBONES}
# The same code at another depth, or of another network.
COVERED = ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3plus_resnet50", "deeplabv3plus_resnet101")
COVERED += ("fcn_resnet50", "fcn_resnet101")
# Its CRF has a test of its own.
NETWORKS = [name for name in models.list("networks") if name not in (*COVERED, "crfrnn")]


def build(name, **arguments):
    return models.build(name, num_classes=3, **SMALL.get(name, {}), **arguments)


@pytest.mark.parametrize("name", COVERED)
def test_depths(name):
    with torch.device("meta"):
        network = build(name, in_channels=4).eval()
        assert network(torch.rand(1, 4, 32, 32))["out"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_any_channels_and_size(name):
    """Grey and five bands; one pixel, one row, and a size that no pooling divides evenly."""
    networks = {channels: build(name, in_channels=channels).eval() for channels in (1, 5)}
    for channels, size in ((1, (1, 1)), (1, (1, 9)), (5, (17, 21))):
        network = networks[channels]
        image = torch.rand(1, channels, *size)
        if name == "mask_rcnn":
            assert network(list(image))[0]["masks"].shape[1:] == (1, *size)
            continue
        scores = network(image)["out"]
        assert scores.shape == (1, 3, *size)
        assert bool(scores.isfinite().all())
        with pytest.raises(ArgumentError, match=rf"input must have shape \(N, {channels}, H, W\)"):
            network(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("name", NETWORKS)
def test_bad_channels(name):
    with pytest.raises(ArgumentError, match="in_channels must be at least 1"):
        build(name, in_channels=0)
    with pytest.raises(ArgumentTypeError, match="in_channels must be an int"):
        build(name, in_channels=1.5)


def test_no_pixels():
    with pytest.raises(ArgumentError, match="at least one pixel"):
        build("msd")(torch.rand(1, 3, 0, 4))


@torch.inference_mode()
def test_weights_for_rgb():
    """Grey in one channel is answered as the same grey in three; RGB twice, in six channels, as RGB once."""
    weights = torchvision.models.resnet18(weights=None).state_dict()
    rgb, grey, six = (models.encoder("resnet18", 32, weights, channels).double().eval() for channels in (3, 1, 6))
    image, single = torch.rand(1, 3, 32, 32).double(), torch.rand(1, 1, 32, 32).double()
    torch.testing.assert_close(grey(single)["out"], rgb(single.expand(-1, 3, -1, -1))["out"])
    torch.testing.assert_close(six(torch.cat([image, image], 1))["out"], rgb(image)["out"])


def test_cycled_filters():
    """By hand: r, g, b, r of four channels, times 3 / 4."""
    weight = torch.tensor([4.0, 8.0, 12.0]).view(1, 3, 1, 1)
    assert adapt(weight, 4).flatten().tolist() == [3, 6, 9, 3]
    assert adapt(weight, 1).flatten().tolist() == [24]
    assert adapt(weight, 3) is weight


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_encoders_take_rgb_weights(name):
    weights = torchvision.models.get_model(name, weights=None).state_dict()
    grey = models.encoder(name, 32, weights, in_channels=1)
    first = next(value for value in weights.values() if value.dim() == 4)
    torch.testing.assert_close(models.channels.first_layer(grey).weight.data, first.sum(1, keepdim=True))


def test_mask_rcnn_takes_rgb_weights():
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    network = build("mask_rcnn", backbone_weights=theirs, in_channels=1)
    torch.testing.assert_close(network.backbone.body.conv1.weight.data, theirs["conv1.weight"].sum(1, True))
    assert network.transform.image_mean == list(normalisation(1)[0])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("deeplabv3", r"ASPP\.convs\.4\.2"),
        ("pspnet", r"PyramidPooling\.branches\.0\.2"),
        ("deconvnet", r"DeconvNet\.fc\.1"),
    ],
)
def test_batch_of_one(name, layer):
    """The layer that would normalise one value is named, with what to do; in eval it is no trouble."""
    network = build(name).train()
    with pytest.raises(ArgumentError, match=rf"{layer}: input must hold two images.*larger batches.*eval\(\)"):
        network(torch.rand(1, 3, 32, 32))
    network(torch.rand(2, 3, 32, 32))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    network(torch.rand(1, 3, 32, 32))


def test_enet_has_sixteen_channels():
    """The pooled image is among them, so that 16 bands would leave no filter."""
    assert models.enet(2, in_channels=15).initial_block.main_branch.out_channels == 1
    with pytest.raises(ArgumentError, match="in_channels must be at most 15"):
        models.enet(2, in_channels=16)
