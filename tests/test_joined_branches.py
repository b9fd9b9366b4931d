"""optimize makes one layer of the convolutions of one map that a concatenation puts side by side."""

import host_cuda
import pytest
import torch
from oracle import assert_close
from test_conv_branches import launches
from test_optimize import held, lively
from torch import nn

import atrousops as ao


def joined(model: nn.Module) -> list[int]:
    """How many branches each joined layer has."""
    return [len(m.branches) for m in model.modules() if isinstance(m, ao.FusedBranches)]


class Pyramid(nn.Module):
    """Two branches, and what `other` makes of the same map beside them; `change` gets both before they are joined."""

    def __init__(self, first=None, second=None, other=None, axis=1, change=None):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 1)
        self.first = first or nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.second = second or nn.Sequential(nn.Conv2d(8, 6, 3, padding="same", dilation=2), nn.ReLU())
        self.other, self.axis, self.change = other, axis, change

    def forward(self, x):
        x = self.stem(x)
        parts = [self.first(x), self.second(x)]
        if self.change is not None:
            self.change(x, parts[1])
        if self.other is not None:
            parts.append(self.other(x))
        return torch.cat(parts, self.axis)


@pytest.mark.parametrize(
    "model",
    [Pyramid(), Pyramid(other=nn.Sequential(nn.Conv2d(8, 2, 1), nn.Sigmoid())), Pyramid(other=nn.Conv2d(8, 6, 1))],
    ids=["alone", "beside a sigmoid", "beside a convolution without ReLU"],
)
def test_joined(model):
    fast = held(lively(model), torch.randn(2, 4, 9, 10))
    assert joined(fast) == [2]
    again = ao.optimize(fast)
    x = torch.randn(2, 4, 9, 10)
    assert joined(again) == [2]
    assert torch.equal(again(x), fast(x))


@pytest.mark.parametrize(
    "model",
    [
        Pyramid(first=nn.Conv2d(8, 6, 1)),
        Pyramid(first=nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU())),
        Pyramid(second=nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.ReLU())),
        Pyramid(second=nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU())),
        Pyramid(second=nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.SiLU())),
        Pyramid(axis=0),
        Pyramid(change=lambda x, part: x.mul_(2)),
        Pyramid(change=lambda x, part: part.add_(1)),
    ],
    ids=["no ReLU", "other width", "groups", "reflection", "SiLU", "images", "x changes", "a branch changes"],
)
def test_left_alone(model):
    assert joined(held(lively(model), torch.randn(2, 4, 9, 10))) == []


def test_hooks_are_left_alone():
    model = Pyramid()
    model.first[0].register_forward_hook(lambda *_: None)
    assert joined(held(lively(model), torch.randn(2, 4, 9, 10))) == []


@pytest.mark.parametrize("pooling", [False, True])
def test_aspp(pooling):
    """Fp32: the image-level branch is taken out; what runs on a CPU are the convolutions, as before."""
    model, x = lively(ao.ASPP(16, (2, 4), 8, image_pooling=pooling)), torch.randn(2, 16, 20, 21)
    fast = held(model, x)
    assert joined(fast) == [3]
    with torch.no_grad():
        rows = ao.explain(fast, x).rows
    assert [row.operator for row in rows] == ["conv2d"] * (6 if pooling else 4)


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.parametrize("pooling", [False, True])
def test_aspp_in_one_launch(pooling):
    """In 16 bits the image-level branch stays, beside the joined ones."""
    model = lively(ao.ASPP(40, (2, 5), 32, image_pooling=pooling)).to(torch.bfloat16)
    fast, x = ao.optimize(model), torch.randn(2, 40, 9, 8).to(torch.bfloat16)
    with torch.no_grad():
        exact, theirs = model.double()(x.double()), model.to(torch.bfloat16)(x)
        before = launches()
        with host_cuda.host_cuda():
            y = fast(x)
            rows = ao.explain(fast, x).rows
    # Twice the branches and the projection.
    assert launches() - before == 4
    assert [row.operator for row in rows if row.operator == "conv_branches"] == ["conv_branches"]
    assert joined(fast) == [3]
    assert_close(y, exact, theirs)
    # Whoever watches a branch sees it called.
    seen, branches = [], next(m for m in fast.modules() if isinstance(m, ao.FusedBranches))
    branches.branches[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad(), host_cuda.host_cuda():
        assert_close(fast(x), exact, theirs)
    assert seen == [1]


def test_exports_and_compiles():
    fast, x = ao.optimize(lively(Pyramid())), torch.randn(1, 4, 9, 10)
    with torch.no_grad():
        expected = fast(x)
        torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="aot_eager")(x), expected)
