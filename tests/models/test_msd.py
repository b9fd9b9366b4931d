"""MS-D against the plain form that concatenates, values and gradients, and what it keeps in memory."""

import pytest
import torch
from networks import parameters
from torch.nn import functional as F

from atrousops import models


def concatenating(network, image):
    """The definition: every layer reads a fresh concatenation of all before it."""
    maps = image
    for start in range(0, len(network.layers), network.width):
        new = []
        for layer in network.layers[start : start + network.width]:
            padded = F.pad(maps, (layer.dilation[0],) * 4, mode="reflect")
            new.append(F.conv2d(padded, layer.weight, layer.bias, dilation=layer.dilation).relu())
        maps = torch.cat([maps, *new], dim=1)
    return F.conv2d(maps, network.score.weight, network.score.bias)


@pytest.mark.parametrize(("depth", "width", "batch"), [(23, 1, 2), (4, 3, 1)])
def test_is_the_concatenating_form(depth, width, batch):
    network = models.msd(3, depth, width).double()
    # They start at zero, behind which nothing is seen.
    torch.nn.init.normal_(network.score.weight)
    image = torch.rand(batch, 3, 13, 17, dtype=torch.float64, requires_grad=True)
    wanted = concatenating(network, image)
    weight = torch.randn_like(wanted)
    inputs = [image, *network.parameters()]
    exact = torch.autograd.grad((wanted * weight).sum(), inputs)
    got = network(image)["out"]
    torch.testing.assert_close(got, wanted)
    for ours, theirs in zip(torch.autograd.grad((got * weight).sum(), inputs), exact, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(network(image)["out"], wanted)


def test_dilations_cycle():
    assert models.msd().dilations == tuple(range(1, 11)) * 10
    # Each channel of a layer has its own.
    assert models.msd(2, 4, 3).dilations == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2)


def test_starts_as_the_authors_do():
    """40 layers of 1: deviation sqrt(2 / (9 (3 + 39) + 2)) of 40 (3 + 39 / 2) 9 weights; scores at zero."""
    network = models.msd(2, 40)
    weights = torch.cat([layer.weight.flatten() for layer in network.layers])
    assert len(weights) == 8100
    # Three standard errors.
    assert abs(weights.std() / (2 / 380) ** 0.5 - 1) < 3 / 16200**0.5
    assert not network.score.weight.any()
    assert not any(layer.bias.any() for layer in (*network.layers, network.score))


def test_parameters():
    """9 weights for each of 3 + i maps, a bias each, and a 1x1 layer on 103 maps."""
    assert parameters("msd") == 9 * sum(3 + i for i in range(100)) + 100 + 104 * 2


def test_memory_grows_with_depth_not_its_square():
    """What a forward pass keeps for the backward pass is the stack, its margin of 10 and little else."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network = models.msd(2, depth=40)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.rand(1, 3, 64, 64))["out"]
    stack = 43 * 84 * 84 * 4
    assert stack <= sum(kept.values()) <= 1.2 * stack


def test_smaller_than_its_dilations():
    """Mirrored as often as needed."""
    assert models.msd(2, depth=10).eval()(torch.rand(1, 3, 1, 4))["out"].shape == (1, 2, 1, 4)
