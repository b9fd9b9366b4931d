"""Auto-DeepLab: the published network's sizes, and other genotypes."""

import pytest
import torch

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.models.auto_deeplab import PUBLISHED, Genotype


@torch.inference_mode()
def test_path():
    """Each cell's channels, and its side of an image of 128 n + 1 pixels."""
    network = models.auto_deeplab(2, width=2).backbone.eval()
    found = []
    for cell in network.cells:
        cell.register_forward_hook(lambda _, inputs, output: found.append(tuple(output.shape[1:3])))
    features = network(torch.rand(1, 3, 129, 65))
    assert found == [(10 * 2**level, 32 // 2**level + 1) for level in PUBLISHED.path]
    assert features["low"].shape[1:] == (10, 33, 17)
    assert features["out"].shape[1:] == (20, 17, 9)
    # Projected as the cell gives it.
    assert features["low"].min() < 0


def test_cell():
    """A separable and an atrous edge on the same state, added."""
    genotype = Genotype(blocks=(((0, "separable3"), (0, "atrous3")),), path=(0,))
    network = models.auto_deeplab(2, 4, genotype).backbone.double().eval()
    cell = network.cells[0]
    last, older = torch.rand(1, 128, 6, 7, dtype=torch.float64), torch.rand(1, 64, 12, 13, dtype=torch.float64)
    state = cell.last(last)
    separable, atrous = (edge.layers for edge in cell.edges)
    wanted = separable(state) + atrous[2](
        torch.nn.functional.conv2d(state.relu(), atrous[1].weight, padding=2, dilation=2)
    )
    torch.testing.assert_close(cell(last, older), wanted)
    assert [layer.groups for layer in separable if isinstance(layer, torch.nn.Conv2d)] == [4, 1, 4, 1]


@pytest.mark.parametrize(
    "genotype",
    [
        Genotype(blocks=(((0, "pool3"), (0, "atrous3")),), path=(0,)),
        Genotype(blocks=(((2, "atrous3"), (0, "atrous3")),), path=(0,)),
        Genotype(blocks=PUBLISHED.blocks, path=(0, 2)),
        Genotype(blocks=PUBLISHED.blocks, path=()),
        Genotype(blocks=(), path=(0,)),
    ],
)
def test_bad_genotype(genotype):
    with pytest.raises(ArgumentError, match="genotype"):
        models.auto_deeplab(2, 4, genotype)
