"""What counters of operations see of our operators: what they see of PyTorch's."""

import types

import pytest
import samples
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import libraries
from atrousops.nn import STOCK


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", [None, "cpu", "aten"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", [f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)])
def test_convolutions_forward_and_backward(name, groups, backend):
    if backend == "cpu" and libraries.cpu.problem:
        pytest.skip(f"no cpu library: {libraries.cpu.problem}")
    rank = int(name[-2])
    x = samples.rand(2, 8, *[9, 8, 7][:rank]).requires_grad_()
    w = samples.rand(8, 8 // groups, *[3, 2, 3][:rank]).requires_grad_()
    options = {"padding": 1, "groups": groups, "stride": 2}
    with ao.backend(backend):
        ours = flops(lambda: getattr(A, name)(x, w, **options).sum().backward())
    assert ours == flops(lambda: getattr(F, name)(x, w, **options).sum().backward()) > 0


def test_live_regions_count_as_whole_filters():
    """Whichever kernel runs: the planner takes ours here."""
    x, w = samples.rand(1, 64, 33, 33).requires_grad_(), samples.rand(64, 64, 3, 3).requires_grad_()
    counts = [flops(lambda c=c: c(x, w, padding=18, dilation=18).sum().backward()) for c in (A.conv2d, F.conv2d)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_with_its_activation(residual, bias):
    x, w, b = samples.rand(1, 16, 24, 25), samples.rand(16, 16, 3, 3), samples.rand(16) if bias else None
    options = {"residual": x if residual else None, "activation": "relu"}
    assert flops(lambda: A.conv2d(x, w, b, padding=1, **options)) == flops(lambda: F.conv2d(x, w, b, padding=1))


@pytest.mark.parametrize("name", ["conv_branches", "context_module"])
def test_stacks_count_as_their_convolutions(name):
    args, kwargs = samples.FUNCTIONS[name]()
    counts = set()
    for backend in ("aten", *(() if libraries.cpu.problem else ("cpu",))):
        with ao.backend(backend):
            counts.add(flops(lambda: getattr(A, name)(*args, **kwargs)))
    assert len(counts) == 1
    assert counts.pop() > 0


def test_tables_by_type_take_ours():
    """Counters that look a layer's type up are told by `STOCK`; every layer that `convert` puts in place is in it."""
    for ours, stock in STOCK.items():
        assert ours.__name__.removeprefix("Atrous").removeprefix("Fused") == stock.__name__
        assert stock.__module__.startswith("torch.nn")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ConvTranspose2d(4, 3, 2), torch.nn.MaxPool2d(2))
    before = [type(layer) for layer in model]
    ao.convert(model)
    assert [STOCK[type(layer)] for layer in model] == before
    # The tables of thop and ptflops: a type and a function of a layer, its inputs and its output.
    table = types.MappingProxyType({torch.nn.Conv2d: len, torch.nn.MaxPool2d: len})
    assert {ours for ours, stock in STOCK.items() if stock in table} >= {ao.AtrousConv2d, ao.MaxPool2d}
