"""Converted and optimised networks under torch.jit: a trace is in PyTorch's operators, a script is refused."""

import warnings

import pytest
import torch
from torch import nn

import atrousops as ao
from atrousops.common.checks import ArgumentTypeError


def network():
    torch.manual_seed(0)
    # Wide enough for our pooling to be worth a call of its own.
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 8, 1, bias=False), nn.ConvTranspose2d(8, 4, 2, 2),
    ).eval()  # fmt: skip


TOOLS = {"converted": lambda model: ao.convert(model) and model, "optimised": ao.optimize}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("size", [(40, 36), (256, 256)])
def test_trace(tool, size):
    model, x = TOOLS[tool](network()), torch.randn(2, 3, *size)
    with warnings.catch_warnings():
        # Shapes that a check has read are not constants of the graph.
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x)
    assert "atrousops::" not in str(traced.inlined_graph)
    for other in (x, torch.randn(1, 3, 50, 62)):
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.freeze(traced)(other), model(other))


@pytest.mark.parametrize("tool", TOOLS)
def test_script_is_refused_and_leaves_the_model_as_it_is(tool):
    model = TOOLS[tool](network())
    before = [type(m) for m in model.modules()]
    with pytest.raises(ArgumentTypeError, match=r"hold no layer of atrousops.*; got \w+Conv2d\. Use torch\.jit\.trace"):
        torch.jit.script(model)
    assert [type(m) for m in model.modules()] == before


def test_a_reverted_model_is_scripted():
    model = network()
    expected = model(torch.ones(1, 3, 8, 8))
    ao.convert(model)
    ao.revert(model)
    torch.testing.assert_close(torch.jit.script(model)(torch.ones(1, 3, 8, 8)), expected)
