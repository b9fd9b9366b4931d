"""Blocks that optimize knows: residual ones, ASPP and its branches in one layer."""

import copy

import host_cuda
import pytest
import torch
from held import held, lively, unfolded
from oracle import assert_close
from torch import nn

import atrousops as ao


def block_of(kind: str) -> nn.Module:
    from torchvision.models import mobilenetv2, mobilenetv3, resnet

    down = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
    return {
        "basic": lambda: resnet.BasicBlock(16, 16),
        "projected": lambda: resnet.BasicBlock(16, 16, downsample=down),
        "bottleneck": lambda: resnet.Bottleneck(16, 4),
        "v2": lambda: mobilenetv2.InvertedResidual(16, 16, 1, 2),
        "v3": lambda: mobilenetv3.InvertedResidual(
            mobilenetv3.InvertedResidualConfig(16, 3, 32, 16, True, "HS", 1, 1, 1.0), nn.BatchNorm2d
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["basic", "projected", "bottleneck", "v2", "v3"])
def test_residual_blocks(kind, monkeypatch):
    """Residual and activation are done by the convolutions: of oneDNN's calls one for each, and nothing added."""
    model, x = lively(block_of(kind)), torch.randn(2, 16, 33, 35)
    fast = held(model, x)
    assert unfolded(fast) == []
    assert isinstance(fast, type(model))
    added = []
    monkeypatch.setattr(torch.Tensor, "__iadd__", lambda *args: added.append(1))
    monkeypatch.setattr(torch.Tensor, "__add__", lambda *args: added.append(1))
    fast(x)
    assert added == []


def test_a_hook_on_a_layer_of_a_block_sees_what_it_saw():
    model, x, seen = lively(block_of("bottleneck")), torch.randn(2, 16, 33, 35), []
    fast = ao.optimize(model)
    for network in (model, fast):
        network.bn3.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        network.bn1.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        network(x)
    for got, expected in zip(seen[2:], seen[:2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_known_by_its_very_class():
    """A subclass with the same layers in another order is none of those known."""
    from torchvision.models.resnet import BasicBlock

    class Late(BasicBlock):
        def forward(self, x):
            return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))) + 1

    held(lively(Late(16, 16)), torch.randn(2, 16, 33, 35))


@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize("separable", [False, True])
def test_aspp(pooling, separable):
    """In fp32 the image-level branch is no longer repeated: one convolution of a single pixel more."""
    model, x = lively(ao.ASPP(16, (2, 4), 8, separable, image_pooling=pooling)), torch.randn(2, 16, 20, 21)
    fast = held(model, x)
    with torch.no_grad():
        rows = ao.explain(fast, x).rows
    assert len(rows) == 3 + 2 * separable + (3 if pooling else 1)
    assert [row.shape[1] for row in rows if row.module == "project.0"] == [24]


def test_torchvision_s_network(monkeypatch):
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    model = lively(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3))
    x = torch.rand(1, 3, 65, 97)
    fast = held(model, x)
    assert unfolded(fast) == []
    names, called = {module: name for name, module in fast.named_modules()}, []
    for kind in (nn.ReLU, nn.Hardswish):
        monkeypatch.setattr(kind, "forward", lambda self, y, f=kind.forward: called.append(names[self]) or f(self, y))
    with torch.no_grad():
        fast(x)
    # Those inside of squeeze-and-excitation, whose class is not known here.
    assert {name.rsplit(".", 1)[-1] for name in called} == {"activation"}


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.parametrize("pooling", [False, True])
def test_aspp_in_one_launch(pooling):
    """In 16 bits the image-level branch stays, beside the joined ones."""
    model = lively(ao.ASPP(40, (2, 5), 32, image_pooling=pooling)).to(torch.bfloat16)
    fast, x = ao.optimize(model), torch.randn(2, 40, 9, 8).to(torch.bfloat16)
    with torch.no_grad():
        exact, theirs = model.double()(x.double()), model.to(torch.bfloat16)(x)
        before = host_cuda.runs("conv_wgmma_kernel")
        with host_cuda.host_cuda():
            y = fast(x)
            rows = ao.explain(fast, x).rows
    # Twice the branches and the projection.
    assert host_cuda.runs("conv_wgmma_kernel") - before == 4
    assert [row.operator for row in rows if row.operator == "conv_branches"] == ["conv_branches"]
    assert_close(y, exact, theirs)
    # Whoever watches a branch sees it called.
    seen = []
    fast.convs[1][0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad(), host_cuda.host_cuda():
        assert_close(fast(x), exact, theirs)
    assert seen == [1]


def test_exports_and_compiles():
    fast, x = ao.optimize(lively(ao.ASPP(16, (2, 4), 8))), torch.randn(1, 16, 9, 10)
    with torch.no_grad():
        expected = fast(x)
        torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_folded_and_other_weights_are_not_taken_for_each_other(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4)).eval()
    model[1].weight.data.uniform_(0.5, 2)
    fast = ao.optimize(model)
    with pytest.raises(RuntimeError, match=r"Missing key.*extra_state"):
        fast.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*extra_state"):
        model.load_state_dict(fast.state_dict())
    again = ao.optimize(copy.deepcopy(model))
    again.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(again(x), fast(x))


@pytest.mark.parametrize("example", [True, False], ids=["by an example", "by its weights"])
def test_results_keep_the_model_s_format(example):
    """What a model returns in channels_last stays so: an argmax over the channels of 513x513 takes five times as long
    in NCHW."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()
    image = torch.rand(1, 3, 9, 8).to(memory_format=torch.channels_last)
    if not example:
        model = model.to(memory_format=torch.channels_last)
    fast = ao.optimize(model, *([image] if example else []))
    with torch.inference_mode():
        assert model(image).is_contiguous(memory_format=torch.channels_last)
        assert fast(image).stride() == model(image).stride()
