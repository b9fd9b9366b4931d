"""optimize: the same results in fewer steps."""

import copy

import pytest
import torch
from oracle import assert_close
from torch import nn
from torch.nn import functional as F

import atrousops as ao
from atrousops import models
from atrousops._checks import ArgumentError, ArgumentTypeError


def lively(model: nn.Module) -> nn.Module:
    """Evaluation mode, with statistics and scales that a normalisation would show if it were left out."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                layer.weight.data.uniform_(0.5, 2)
                layer.bias.data.normal_(0, 0.2)
    return model.eval()


def tensors(outputs) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def held(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """The optimised model, once its outputs agree with fp64 as well as the model's own do."""
    fast = ao.optimize(model)
    with torch.no_grad():
        exact = tensors(copy.deepcopy(model).double()(*[x.double() for x in inputs]))
        for got, true, theirs in zip(tensors(fast(*inputs)), exact, tensors(model(*inputs)), strict=True):
            assert_close(got, true, theirs)
    return fast


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


class Residual(nn.Module):
    """torchvision's bottleneck in small: one ReLU used twice, an addition in place, a projection computed later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.project = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.project(x)
        return self.relu(y)


def test_residual_block_is_three_calls():
    fast = held(lively(Residual()), torch.randn(2, 8, 17, 19))
    assert norms(fast) == 0
    calls = [node for node in fast.graph.nodes if node.op.startswith("call")]
    assert [node.op for node in calls] == ["call_module"] * 3
    assert [fast.get_submodule(n.target).activation for n in calls] == ["relu", None, "relu"]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_and_activations(rank, activation):
    """GELU is none of those that a convolution takes in: it stays."""
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    model = lively(nn.Sequential(conv(4, 8, 3, padding=1), norm(8), nn.Dropout(), activation()))
    # Large enough for more than the rule for small calls.
    fast = held(model, 3 * torch.randn(1, 4, *((4096,), (64, 64), (16, 16, 16))[rank - 1]))
    assert norms(fast) == 0
    assert len([n for n in fast.graph.nodes if n.op == "call_module"]) == (2 if activation is nn.GELU else 1)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed(groups):
    """Folded into a dense one; a grouped one keeps its normalisation."""
    model = lively(nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.BatchNorm2d(6), nn.ReLU()))
    assert norms(held(model, torch.randn(1, 4, 9, 7))) == (groups > 1)


class Decides(nn.Module):
    """Cannot be traced; its parts can."""

    def __init__(self, take_out: bool = False) -> None:
        super().__init__()
        self.block = Residual()
        self.tail = nn.Sequential(nn.Conv2d(16, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 2, 1))
        self.take_out = take_out

    def forward(self, x):
        y = self.block(x if x.shape[-1] > 8 else F.pad(x, (4, 4)))
        return self.tail[2](self.tail[1](self.tail[0](y))) if self.take_out else self.tail(y)


def test_what_cannot_be_traced_is_treated_in_parts():
    fast = held(lively(Decides()), torch.randn(1, 8, 12, 12))
    assert type(fast) is Decides
    assert norms(fast) == 0
    assert fast.tail._modules["0"].activation == "relu"


def test_single_layers_of_a_fused_sequential_are_refused():
    fast = ao.optimize(lively(Decides(take_out=True)))
    with pytest.raises(ArgumentError, match="take single layers out"):
        fast(torch.randn(1, 8, 12, 12))


class Twice(nn.Module):
    """One convolution, two normalisations: neither can be a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x))))


class Peeks(nn.Module):
    """Somebody else reads what the convolution returns, before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y), F.relu(y), y


class ChangesItsInput(nn.Module):
    """The convolution has read x before x is changed: it cannot be moved behind that, to the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        y = self.conv(x)
        return y + x.mul_(2)


class AddsToTheOther(nn.Module):
    """x += conv(x), and x is read again: not an addition to the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        z = x
        x += self.conv(x)
        return x, z


class Broadcasts(nn.Module):
    """A residual that is smaller than the result, and one that is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.conv(x) + self.pooled(x).detach(), self.pooled(x) + x


@pytest.mark.parametrize("model", [Twice, Peeks, ChangesItsInput, AddsToTheOther, Broadcasts])
def test_what_may_not_be_moved_stays(model):
    held(lively(model()), torch.randn(2, 4, 24, 24))


def test_hooks_still_see_their_layers():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen = []
    model[0].register_forward_hook(lambda _, __, output: seen.append(output))
    held(model, torch.randn(1, 3, 9, 9))
    # fp64, optimised, fp32.
    assert len(seen) == 3


def test_frozen_normalisation():
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4)).eval()
    model[1].running_var.uniform_(0.5, 2)
    fast = held(model, torch.randn(1, 3, 9, 9))
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in fast.modules())


def test_the_model_is_not_changed():
    model = lively(Residual())
    before = copy.deepcopy(model.state_dict())
    fast = ao.optimize(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fast.parameters())


def test_gradients_of_the_input():
    """Saliency maps need them, of an optimised model too."""
    model, x = lively(Residual()), torch.randn(1, 8, 32, 32)
    grads = []
    for network in (model, ao.optimize(model)):
        leaf = x.clone().requires_grad_()
        grads += torch.autograd.grad(network(leaf).sum(), leaf)
    torch.testing.assert_close(grads[1], grads[0])


def test_subnormal_weights_become_zero():
    model = nn.Conv2d(2, 2, 1).eval()
    model.weight.data[0, 0] = 1e-40
    assert ao.optimize(model).weight[0, 0].item() == 0


def test_convolutions_work_in_channels_last():
    fast = ao.optimize(lively(Residual()))
    with torch.no_grad():
        y = fast(torch.randn(1, 8, 16, 16))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    with torch.no_grad():
        plain = ao.optimize(lively(Residual()), memory_format=None)(torch.randn(1, 8, 16, 16))
    assert plain.is_contiguous()


@pytest.mark.parametrize("separable", [False, True])
def test_image_level_branch_is_taken_out(separable):
    fast = held(lively(ao.ASPP(16, (2, 4), 8, separable)), torch.randn(2, 16, 20, 21))
    assert [name for name, _ in fast.named_modules() if name.endswith("_of_image")] == ["project.0_of_image"]
    assert fast.get_submodule("project.0").in_channels == 3 * 8


def test_the_branch_of_another_map_is_not():
    """A map of more than one pixel is interpolated, not repeated."""

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 4, 1))
            self.join = nn.Conv2d(12, 4, 1)

        def forward(self, x):
            small = F.interpolate(self.level(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
            return self.join(torch.cat([x, small], dim=1))

    fast = held(Pyramid().eval(), torch.randn(1, 8, 12, 12))
    assert not [name for name, _ in fast.named_modules() if name.endswith("_of_image")]


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
    """Those that a graph is hardest for: unpooling with sizes, crops, recurrent steps, mirrored borders."""
    model = lively(models.build(name, num_classes=3, **SMALL[name]))
    fast = held(model, torch.rand(1, 3, 65, 97))
    # ENet normalises a concatenation.
    assert norms(fast) == (name == "enet")


def test_torchvision_s_network():
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    model = lively(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3))
    fast = held(model, torch.rand(1, 3, 65, 97))
    assert norms(fast) == 0
    assert [name for name, _ in fast.named_modules() if name.endswith("_of_image")]
    assert [len(m.branches) for m in fast.modules() if isinstance(m, ao.FusedBranches)] == [4]
    assert "activation='hardswish'" in str(fast)


def test_example_holds_the_copy_to_the_model():
    class Asks(nn.Module):
        """What a trace takes for no tensor."""

        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return 2 * self.act(x) if isinstance(x, torch.Tensor) else x

    ao.optimize(lively(Residual()), torch.randn(1, 8, 9, 9))
    with pytest.raises(ArgumentError, match="agrees with"):
        ao.optimize(Asks().eval(), torch.ones(1))


def test_says_what_is_wrong():
    with pytest.raises(ArgumentTypeError, match="be a torch"):
        ao.optimize("model")
    with pytest.raises(ArgumentError, match="evaluation mode"):
        ao.optimize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
