import copy

import pytest
import torch
from torch import nn

import atrousops as ao


class Twice(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), nn.ReLU()),
        nn.Conv2d(4, 2, 1),
    )


def test_only_the_class_changes():
    model = small_model()
    model[0].eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    before = dict(model.named_parameters())
    layers = list(model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)

    report = ao.convert(model)

    assert [type(m) for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)] == [
        ao.AtrousConv2d,
        ao.AtrousConvTranspose2d,
        ao.AtrousConv2d,
    ]
    assert all(a is b for a, b in zip(model.modules(), layers))
    assert all(p is before[name] for name, p in model.named_parameters())
    assert model[0].training is False
    assert model[3].training is True
    model.train()
    torch.testing.assert_close(model(x), expected)
    assert calls == ["hook", "hook"]
    model(x).sum().backward()
    optimizer.step()
    assert [row.name for row in report.swapped] == ["0", "2.0", "3"]
    assert report.left == []
    assert "Conv2d -> AtrousConv2d" in str(report)


def test_weights_are_stored_as_tensor_cores_read_them():
    model = nn.Sequential(small_model(), nn.Conv1d(2, 2, 3))
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    ao.convert(model, memory_format=torch.channels_last)
    for name, p in model.named_parameters():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.dim() != 4 or p.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"memory_format must be torch\.channels_last or None"):
        ao.convert(model, memory_format=torch.channels_last_3d)


def test_again_changes_nothing():
    model = small_model()
    ao.convert(model)
    again = ao.convert(model)
    assert again.swapped == []
    assert again.left == []


def test_shared_layers_stay_shared():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = ao.convert(model)
    assert model[0] is model[2] is shared
    assert len(report.swapped) == 1


def test_pooling_and_unpooling():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(3, stride=2, padding=1, return_indices=True)
            self.unpool = nn.MaxUnpool2d(3, stride=2, padding=1)

        def forward(self, x):
            values, indices = self.pool(x)
            return values, self.unpool(values, indices, output_size=x.shape)

    model = Both()
    x = torch.randn(2, 3, 9, 8)
    # PyTorch's unpooling has no deterministic form.
    torch.use_deterministic_algorithms(False)
    expected = model(x)
    torch.use_deterministic_algorithms(True)
    assert [row.now for row in ao.convert(model).swapped] == ["MaxPool2d", "MaxUnpool2d"]
    assert type(model.pool) is ao.MaxPool2d
    for got, wanted in zip(model(x), expected):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_single_layer():
    layer = nn.Conv3d(2, 2, 3)
    report = ao.convert(layer)
    assert type(layer) is ao.AtrousConv3d
    assert report.swapped[0].name == "(the model itself)"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_is_left_is_reported_with_its_reason():
    patched = nn.Conv2d(2, 2, 1)
    patched.forward = lambda x: x
    scripted = torch.jit.script(nn.Conv2d(2, 2, 1))
    model = nn.ModuleDict(
        {"sub": Twice(2, 2, 1), "patched": patched, "lazy": nn.LazyConv2d(2, 1), "script": scripted, "plain": nn.ReLU()}
    )
    report = ao.convert(model)
    assert report.swapped == []
    reasons = {row.name: row.reason for row in report.left}
    assert reasons == {
        "sub": "a subclass of Conv2d: what it adds would be lost",
        "patched": "its forward was replaced on this instance",
        "lazy": "lazy: run it once on an input, then convert",
        "script": "TorchScript: convert before scripting",
    }
    assert "left 4 layers" in str(report)


@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_layers_keep_their_parametrization(normalise):
    layer = normalise(nn.Conv2d(3, 4, 3, dilation=2)).eval()
    twin = copy.deepcopy(layer)
    x = torch.randn(1, 3, 9, 9)
    expected = layer(x)
    ao.convert(layer)
    assert isinstance(layer, ao.AtrousConv2d)
    assert nn.utils.parametrize.is_parametrized(layer, "weight")
    torch.testing.assert_close(layer(x), expected)
    assert not isinstance(twin, ao.AtrousConv2d)
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is ao.AtrousConv2d
    torch.testing.assert_close(layer(x), expected)


def test_hook_based_weight_norm():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    x = torch.randn(1, 3, 9, 9)
    expected = layer(x)
    ao.convert(layer)
    torch.testing.assert_close(layer(x), expected)
    assert set(layer.state_dict()) == {"bias", "weight_g", "weight_v"}


def test_rejects_what_is_no_module():
    with pytest.raises(TypeError, match=r"convert: model must be a torch\.nn\.Module; got function"):
        ao.convert(lambda x: x)


# A small picture, whose sides are no multiple of 32: the deepest maps are 3x2, or 9x7 where dilation keeps them.
PICTURE = (1, 3, 65, 49)


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvision_segmentation(name):
    from torchvision.models import segmentation

    model = getattr(segmentation, name)(weights=None, weights_backbone=None).double().eval()
    x = torch.randn(PICTURE, dtype=torch.float64)
    keys = list(model.state_dict())
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        expected = model(x)
        report = ao.convert(model)
        got = model(x)
    assert list(model.state_dict()) == keys
    assert report.left == []
    assert sum(row.was == "Conv2d" for row in report.swapped) == len(convs)
    assert all(type(m) is ao.AtrousConv2d for m in convs)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-10, atol=1e-10)


@pytest.mark.torchvision
def test_torchvision_mask_rcnn():
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    # Untrained scores are all near 1/91; the threshold keeps some boxes, so that masks are made from RoIs.
    options = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.0, "box_detections_per_img": 5}
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, rpn_post_nms_top_n_test=50, **options)
    model = model.double().eval()
    x = [torch.rand(3, 97, 121, dtype=torch.float64)]
    keys = list(model.state_dict())
    with torch.no_grad():
        (expected,) = model(x)
        report = ao.convert(model)
        (got,) = model(x)
    assert list(model.state_dict()) == keys
    assert sum(row.was == "MultiScaleRoIAlign" for row in report.swapped) == 2
    assert len(got["boxes"]) == 5
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-9, atol=1e-9)
