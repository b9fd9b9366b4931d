"""optimize: the same results in fewer steps, and a report of what was done."""

import copy

import pytest
import torch
from held import held, lively, unfolded
from torch import nn

import atrousops as ao
from atrousops import models
from atrousops.common.checks import ArgumentError, ArgumentTypeError


class Written(nn.Module):
    """Layers in order, in the ways that a forward is written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.norm2, self.drop = nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Identity()
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(4, 8, 5), nn.BatchNorm2d(8))

    def forward(self, x):
        y = self.conv1(x)
        y = self.norm1(y)
        y = self.act1(y)
        y = self.conv2(y)
        y = self.drop(y)
        y = self.norm2(y)
        if self.down is not None:
            y = y + self.down(x)
        return self.norm3(self.conv3(y))


def test_normalisations_are_folded_where_the_source_shows_that_they_can():
    model, x = lively(Written()), torch.randn(2, 4, 24, 24)
    fast = held(model, x)
    assert unfolded(fast) == []
    assert unfolded(ao.optimize(model, check=False)) == []
    report = ao.optimization_report(fast)
    assert {row.name for row in report.fused} == {"conv1", "conv2", "conv3", "down.0"}
    assert "conv2                                        does norm2 too" in str(report)
    assert unfolded(ao.optimize(fast)) == []
    torch.testing.assert_close(ao.optimize(fast)(x), fast(x))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_and_activations(rank, activation, monkeypatch):
    """GELU is none of those that a convolution takes in."""
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    model = lively(nn.Sequential(conv(4, 8, 3, padding=1), norm(8), activation()))
    # Large enough for more than the rule for small calls.
    x = 3 * torch.randn(1, 4, *((4096,), (64, 64), (16, 16, 16))[rank - 1])
    fast, calls = held(model, x), []
    assert unfolded(fast) == []
    monkeypatch.setattr(activation, "forward", lambda self, y: calls.append(1) or y)
    fast(x)
    assert len(calls) == (activation is nn.GELU)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed(groups):
    """Folded into a dense one; a grouped one keeps its normalisation, whose scales run over all groups."""
    model = lively(nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.BatchNorm2d(6), nn.ReLU()))
    assert unfolded(held(model, torch.randn(1, 4, 9, 7))) == ([] if groups == 1 else ["1"])


def test_frozen_normalisation():
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4)).eval()
    model[1].running_var.uniform_(0.5, 2)
    fast = held(model, torch.randn(1, 3, 9, 9))
    assert isinstance(fast[1], FrozenBatchNorm2d)
    x = torch.randn(1, 4, 5, 5)
    assert fast[1](x) is x


def test_the_model_is_not_changed():
    model = lively(Written())
    before = copy.deepcopy(model.state_dict())
    fast = ao.optimize(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fast.parameters())


def test_gradients_of_the_input():
    """Saliency maps need them, of an optimised model too."""
    model, x = lively(Written()), torch.randn(1, 4, 32, 32)
    grads = []
    for network in (model, ao.optimize(model)):
        leaf = x.clone().requires_grad_()
        grads += torch.autograd.grad(network(leaf).square().sum(), leaf)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4 * grads[0].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_subnormal_weights_become_zero(dtype):
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)).eval().to(dtype)
    model[1].weight.data[0] = 1e-40
    fast = ao.optimize(model)
    assert fast[1].weight[0].abs().max().item() == 0
    assert ao.optimization_report(fast).cleared == {"1.weight": 2}
    assert "set 2 weights below the smallest normal number to zero" in str(ao.optimization_report(fast))


@pytest.mark.parametrize(("dtype", "weight"), [(torch.float16, 1 / 129**2), (torch.float64, 1e-310)])
def test_other_subnormal_weights_stay(dtype, weight):
    """A mean of 129 x 129 pixels has such weights: 1/129^2 = 6.0e-5 is subnormal in fp16, and all there is."""
    model = nn.Conv2d(1, 1, 3, bias=False).eval().to(dtype)
    model.weight.data.fill_(weight)
    fast = ao.optimize(model)
    assert torch.equal(fast.weight, model.weight)
    assert ao.optimization_report(fast).cleared == {}


def test_convolutions_work_in_channels_last_and_answer_as_the_model():
    seen = []
    for memory_format in (torch.channels_last, None):
        fast = ao.optimize(lively(Written()), memory_format=memory_format)
        fast.act1.register_forward_hook(lambda m, args, y: seen.append(y.is_contiguous()))
        assert fast(torch.randn(2, 4, 16, 16)).is_contiguous()
    assert seen == [False, True]


SMALL = {
    "crfrnn": {"width": 4},
    "deconvnet": {"width": 2},
    "deeplabv3_mobilenet_v3_large": {},
    "enet": {},
    "segnet": {"width": 4},
    "unet": {"width": 4, "batch_norm": True},
}


@pytest.mark.parametrize("name", SMALL)
def test_networks(name):
    """Unpooling with sizes, crops, recurrent steps, mirrored borders, ASPP."""
    model = lively(models.build(name, num_classes=3, **SMALL[name]))
    fast = held(model, torch.rand(1, 3, 65, 97))
    # ENet normalises a concatenation.
    assert unfolded(fast) == (["initial_block.batch_norm"] if name == "enet" else [])


def test_a_copy_that_disagrees_is_undone(monkeypatch):
    from atrousops.surgery import fusion

    def wrong(layer, norm, fold=fusion.fold):
        reason = fold(layer, norm)
        layer.weight.data.mul_(1.001)
        return reason

    monkeypatch.setattr(fusion, "fold", wrong)
    model, x = lively(Written()), torch.randn(2, 4, 24, 24)
    fast = ao.optimize(model)
    assert len(unfolded(fast)) == 4
    assert torch.equal(fast(x), model(x))
    assert "as the copy disagreed: an error of" in str(ao.optimization_report(fast))


def test_inputs_that_cannot_be_made():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, left, right):
            return self.layers(left) + self.layers(right)

    model, pair = lively(Two()), (torch.randn(1, 3, 9, 9), torch.randn(1, 3, 9, 9))
    fast = ao.optimize(model)
    assert unfolded(fast) == ["layers.1"]
    assert "give an example" in str(ao.optimization_report(fast))
    assert unfolded(held(model, *pair)) == []


def test_the_report_says_why():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    model[3].register_forward_hook(lambda *_: None)
    left = {row.name: row.reason for row in ao.optimization_report(ao.optimize(model)).left}
    assert left == {
        "2": "no code shows that it gets all that one convolution returns",
        "3": "hooks, or a forward of its own",
    }


def test_says_what_is_wrong():
    with pytest.raises(ArgumentTypeError, match="be a torch"):
        ao.optimize("model")
    with pytest.raises(ArgumentError, match="evaluation mode"):
        ao.optimize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(ArgumentTypeError, match="model must be what"):
        ao.optimization_report(nn.ReLU())
