"""What an optimised copy is held to."""

import torch
from torch import nn

from atrousops.surgery.standard import Standard, with_weights_moved


def test_the_rounding_of_folded_weights_is_among_what_roundings_explain():
    # Two large weights that nearly cancel: a rounding of one moves the result more than all other roundings.
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0001, -1.0]]))
    standard = Standard(layer, [(torch.ones(1, 2),)])
    rounded = with_weights_moved(layer)
    exact = layer.double()(torch.ones(1, 2, dtype=torch.float64))
    moved = (rounded(torch.ones(1, 2)) - exact).abs().item() / exact.item()
    assert moved > 1e-4
    assert standard.error >= moved
