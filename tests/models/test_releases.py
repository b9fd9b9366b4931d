"""Networks against the layers of their authors' releases, in fp64 with the same random weights."""

import pytest
import torch
import torchvision
from networks import parameters
from oracles import auto_deeplab, releases, table

from atrousops import models


def image(*size: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def built(name: str, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return table.randomise(models.build(name, **arguments))


@torch.no_grad()
def check(network: torch.nn.Module, layers: str, *size: int, outputs: tuple[str, ...] = ("out",)) -> None:
    picture = image(*size)
    wanted = table.run(layers, picture, table.layers(network))
    got = network(picture)
    for name in outputs:
        assert wanted[name].std() > 0
        # Rounding in fp64, dozens of layers deep.
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-9 * wanted[name].abs().max().item())


def test_enet():
    """With its asymmetric and dilated blocks larger than the map."""
    assert parameters("enet", num_classes=20) == 364_376
    check(built("enet", num_classes=3), releases.enet(), 40, 24)


def test_deeplabv1():
    """321 pixels of the release in small: 41, a map of 6."""
    check(built("deeplabv1", num_classes=3, width=2), releases.deeplab_largefov(), 41, 33)


@torch.no_grad()
def test_deeplabv1_sees_every_pixel():
    """321 and 327 pixels make 41 and 42 positions, eight pixels apart from the first one on."""
    network = built("deeplabv1", num_classes=2, width=1)
    assert [network.backbone(image(side, 9))["out"].shape[2] for side in (321, 327)] == [41, 42]
    wide = image(33, 38)
    exact = table.run(releases.deeplab_largefov(), wide, table.layers(network))["out"]
    assert exact.shape[3] == 41
    torch.testing.assert_close(network(wide)["out"], exact[..., :38])


@pytest.fixture
def thin(monkeypatch):
    """For ResNet-50 one of fewer and thinner blocks, of which layer3 and layer4 have two."""
    counts = (1, 1, 2, 2)

    def small(name, weights):
        resnet = torchvision.models.resnet
        return resnet.ResNet(resnet.Bottleneck, list(counts), width_per_group=8)

    monkeypatch.setattr(torchvision.models, "get_model", small)
    return counts


RELEASED = {"full_rate": True, "stride_in_1x1": True, "ceil_pool": True}


@torch.no_grad()
def test_deeplabv2(thin):
    """The 321, 241 and 161 pixels of the release in small: 33, 25 and 17, maps of 5, 4 and 3."""
    arguments = {"backbone": "resnet50", "align_corners": True, "multi_scale": True, "backbone_arguments": RELEASED}
    network = built("deeplabv2", num_classes=3, **arguments)
    picture = image(33, 65)
    maps = {}
    for name, shrink, zoom in (("data", 1, 1), ("c075", 4, 3), ("c05", 2, 1)):
        small = table.run(f"small = interp data shrink={shrink} zoom={zoom}", picture, [])["small"]
        maps[name] = table.run(releases.deeplab_v2_resnet(thin), small, table.layers(network))["fc1"]
    wanted = table.run(releases.DEEPLAB_V2_FUSION, maps.pop("data"), [], **maps)["out"]
    torch.testing.assert_close(network(picture)["out"], wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


def test_pspnet(thin):
    arguments = {"align_corners": True, "backbone_arguments": {"deep_stem": (64, 64, 128), "full_rate": True}}
    check(built("pspnet", num_classes=3, **arguments), releases.pspnet(thin), 41, 41, outputs=("out", "aux"))


def test_deeplabv3plus_xception():
    """513 pixels of the release in small: low-level features of 17, a last map of 5."""
    network = built("deeplabv3plus_xception65", num_classes=3, width=4, align_corners=True)
    check(network, releases.deeplab_v3plus_xception(), 65, 33)


@pytest.mark.parametrize(("separable", "separable_aspp"), [(True, False), (False, True), (False, None)])
def test_deeplabv3plus_parts(separable, separable_aspp):
    """Decoders and ASPPs that are separable or not: depthwise layers in 3 branches, in 2 layers."""
    with torch.device("meta"):
        network = models.deeplabv3plus(
            2, "resnet18", separable=separable, separable_aspp=separable_aspp, align_corners=True
        )
    counts = [
        sum(isinstance(layer, torch.nn.Conv2d) and layer.groups > 1 for layer in part.modules())
        for part in (network.classifier.aspp, network.classifier.decoder)
    ]
    assert counts == [3 * bool(separable if separable_aspp is None else separable_aspp), 2 * separable]
    assert network.align_corners
    assert network.classifier.align_corners


@torch.no_grad()
def test_deeplabv3_head():
    """The paper's: scores of what ASPP says, corners aligned."""
    arguments = {"backbone": "resnet18", "last_3x3": False, "align_corners": True, "multi_grid": (1, 2)}
    network = built("deeplabv3", num_classes=3, **arguments)
    assert [(type(layer).__name__) for layer in network.classifier] == ["ASPP", "AtrousConv2d"]
    picture = image(33, 33)
    aspp, scores = network.classifier
    found = aspp(network.backbone(picture)["out"])
    wanted = table.run("x = conv data\nout = interp x like", found, [scores], like=picture)["out"]
    torch.testing.assert_close(network(picture)["out"], wanted)


def test_ceil_pool():
    """The stem's pooling rounds up: 16 or 17 positions of the first layer give 9, one of which would be lost."""
    pool = models.encoder("resnet18", 32, ceil_pool=True)["maxpool"]
    for halved in (15, 16, 17):
        assert pool(torch.rand(1, 2, halved, halved)).shape[-1] == table.pooled_size(halved, 3, 2, 1)


def test_segnet():
    """The authors' 360x480 in small: 45 rows are pooled to 23, 12, 6, 3 and 2, and come back as they went."""
    check(built("segnet", num_classes=3, width=2), releases.segnet(), 45, 60)


def test_deconvnet():
    """An image that rounding up and down pool to 8 and 7 positions."""
    check(built("deconvnet", num_classes=3, width=1), releases.deconvnet(), 226, 224)


def test_auto_deeplab():
    """The sides 513, 129, 65, 33, 17 of the release in small."""
    network = built("auto_deeplab", num_classes=3, width=2)
    picture = image(65, 97)
    wanted, sizes = auto_deeplab.run(picture, table.layers(network), width=2)
    found = []
    for cell in network.backbone.cells:
        cell.register_forward_hook(lambda _, inputs, output: found.append(tuple(output.shape[2:])))
    with torch.no_grad():
        got = network(picture)["out"]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())
    strides = [4 * 2**level for level in auto_deeplab.PATH]
    assert found == sizes == [(64 // stride + 1, 96 // stride + 1) for stride in strides]


CONTEXTS = {
    None: {},
    "voc": {"context": "large", "context_arguments": {"border": "input"}},
    "kitti": {"context": "basic", "context_arguments": {"dilations": (1, 1, 2, 4, 8, 1)}},
    "camvid": {"context": "basic"},
    "cityscapes": {"context": "basic", "context_arguments": {"dilations": (1, 1, 2, 4, 8, 16, 32, 64, 1)}},
}


@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_dilation(context):
    network = built("dilated_vgg16", num_classes=3, width=1, placement="corner", **CONTEXTS[context])
    picture = image(16, 13)
    # OpenCV's BORDER_REFLECT_101, as often as needed: 186 pixels, and 8 n + 8 in all.
    rows, columns = (torch.arange(-186, size + 186) % (2 * side - 2) for side, size in ((16, 24), (13, 24)))
    rows, columns = torch.minimum(rows, 30 - rows), torch.minimum(columns, 24 - columns)
    maps = table.run(releases.dilation8(context), picture[..., rows, :][..., columns], table.layers(network))["out"]
    # util.py: between position h // 8 and the next, by h % 8.
    wanted = table.run("out = interp data zoom=8", maps, [])["out"][..., :16, :13]
    torch.testing.assert_close(network(picture)["out"], wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())
