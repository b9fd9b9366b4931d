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


class Unpooling(nn.Module):
    """What PyTorch's layers do not have: codes, and sizes of the image's that reach an operator."""

    def __init__(self, marks):
        super().__init__()
        self.conv = ao.AtrousConv2d(3, 8, 3, padding="same", dilation=2)
        self.pool, self.unpool = ao.nn.MaxPool2d(3, 2, 1, return_indices=marks), ao.nn.MaxUnpool2d(3, 2, 1)

    def forward(self, image):
        x = self.conv(image)
        pooled, marks = self.pool(x)
        return self.unpool(pooled.relu(), marks, output_size=x.shape[-2:])


@pytest.mark.parametrize("marks", ["codes", True])
def test_trace_of_unpooling(marks):
    torch.manual_seed(0)
    model = Unpooling(marks).eval()
    with warnings.catch_warnings():
        # Checks read shapes.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.freeze(torch.jit.trace(model, torch.randn(2, 3, 20, 24)))
    assert "atrousops::" not in str(traced.inlined_graph)
    for other in (torch.randn(1, 3, 33, 26), torch.randn(3, 3, 18, 35)):
        with torch.no_grad():
            torch.testing.assert_close(traced(other), model(other))


@pytest.mark.torchvision
def test_trace_of_regions():
    boxes = torch.tensor([[0, 1.5, 0.25, 6.0, 7.5], [1, 2.0, 3.0, 4.0, 5.0]])
    layers = (ao.nn.RoIAlign((2, 3), 0.5, 2), ao.nn.RoIPool((2, 3), 0.5))
    for layer in layers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = torch.jit.trace(layer.eval(), (torch.randn(2, 3, 9, 8), boxes))
        assert "atrousops::" not in str(traced.inlined_graph)
        x = torch.randn(2, 3, 12, 10)
        torch.testing.assert_close(traced(x, boxes), layer(x, boxes))


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
