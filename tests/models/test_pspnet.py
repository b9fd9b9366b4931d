"""PSPNet: the pyramid against its definition, and the second head."""

import torch
from torch.nn import functional as F

from atrousops.models.pspnet import PyramidPooling


@torch.no_grad()
def test_pyramid():
    """Bins of 6x6 on a 12x18 map are 2x3 pixels; the whole-map branch is one value everywhere."""
    pyramid = PyramidPooling(8, (1, 6)).double().eval()
    x = torch.rand(2, 8, 12, 18, dtype=torch.float64)
    y = pyramid(x)
    assert torch.equal(y[:, :8], x)
    whole, bins = (list(branch)[1:] for branch in pyramid.branches)
    mean = torch.nn.Sequential(*whole)(x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(y[:, 8:12], mean.expand(-1, -1, 12, 18))
    small = torch.nn.Sequential(*bins)(F.avg_pool2d(x, (2, 3)))
    torch.testing.assert_close(y[:, 12:], F.interpolate(small, size=(12, 18), mode="bilinear"))
