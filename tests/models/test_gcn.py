"""GCN: the large kernel against one dense filter, and the refinement as a residual."""

import pytest
import torch
from networks import parameters
from torch.nn import functional as F

from atrousops import models
from atrousops.models.gcn import BoundaryRefinement, GlobalConv2d


@pytest.mark.parametrize("k", [3, 15])
def test_parameters(k):
    """ResNet-50 without its classifier; per level 2 k C K + 2 k K^2 + 4 K; nine refinements, five deconvolutions."""
    levels = sum(2 * k * c * 21 + 2 * k * 21 * 21 + 4 * 21 for c in (256, 512, 1024, 2048))
    refinements = 9 * 2 * (9 * 21 * 21 + 21)
    rest = 23_508_032 + levels + 5 * 16 * 21 * 21
    assert parameters("gcn", backbone="resnet50", kernel_size=k) == rest + refinements
    assert parameters("gcn", backbone="resnet50", kernel_size=k, boundary_refinement=False) == rest


@torch.no_grad()
def test_is_a_dense_kernel():
    """Both pairs are one k x k filter of low rank, within the map as at its border."""
    layer = GlobalConv2d(2, 3, 5).double()
    for conv in layer.modules():
        if isinstance(conv, torch.nn.Conv2d):
            # A bias in between would end at the border.
            conv.bias.zero_()
    dense = torch.zeros(3, 2, 5, 5, dtype=torch.float64)
    for first, second in (layer.tall_wide, layer.wide_tall):
        dense += torch.einsum("kmij,mcpq->kcipjq", second.weight, first.weight).reshape(3, 2, 5, 5)
    x = torch.rand(1, 2, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, dense, padding=2))


@torch.no_grad()
def test_refinement_is_residual():
    block = BoundaryRefinement(2)
    block.residual[2].weight.zero_()
    block.residual[2].bias.fill_(1)
    x = torch.rand(1, 2, 5, 6)
    torch.testing.assert_close(block(x), x + 1)


@torch.no_grad()
def test_scores_add_up_from_coarse_to_fine():
    """With scores of 1, 10, 100 and 1000 per stage, a pixel well inside has their sum."""
    network = models.gcn(1, "resnet18", 3, boundary_refinement=False).eval()
    for value, level in zip((1, 10, 100, 1000), ("out", "aux", "mid", "low"), strict=True):
        for conv in network.levels[level].modules():
            if isinstance(conv, torch.nn.Conv2d):
                conv.weight.zero_()
                conv.bias.zero_()
        network.levels[level][0].tall_wide[1].bias.fill_(value)
    out = network(torch.rand(1, 3, 192, 192))["out"]
    torch.testing.assert_close(out[0, 0, 96, 96], torch.tensor(1111.0))
