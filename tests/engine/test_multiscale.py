import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atrousops.engine.multiscale import MultiScale


class Columns(nn.Module):
    """Scores that tell the column, and what was seen there; a quarter of the size."""

    def forward(self, x):
        columns = torch.arange(float(x.shape[-1])).expand(x.shape[0], 1, *x.shape[2:])
        return {"out": F.avg_pool2d(torch.cat([columns, x[:, :1]], 1), 4)}


def test_one_scale_is_the_network_at_full_size():
    x = torch.randn(2, 3, 32, 64)
    y = MultiScale(Columns(), scales=(1.0,), flip=False)(x)["out"]
    assert torch.equal(y, F.interpolate(Columns()(x)["out"], size=(32, 64), mode="bilinear", antialias=True))


def test_mirror_images_are_turned_back():
    x = torch.randn(1, 3, 32, 64)
    y = MultiScale(Columns(), scales=(1.0,))(x)["out"]
    # Column c is column 63 - c of the mirror image: their mean is the middle, away from the edges too.
    torch.testing.assert_close(y[:, 0], torch.full((1, 32, 64), 31.5))
    # What was seen keeps its place, but for the side to which upsampling leans.
    seen = F.interpolate(F.avg_pool2d(x[:, :1], 4), size=(32, 64), mode="bilinear")
    torch.testing.assert_close(y[:, 1:], seen)


def test_scales_are_averaged_on_the_grid():
    x = torch.randn(1, 3, 64, 96)
    sizes = {0.5: (32, 64), 1.0: (64, 96), 1.25: (96, 128)}  # multiples of 32: 48 -> 64, 80 -> 96, 120 -> 128
    each = [Columns()(F.interpolate(x, size=s, mode="bilinear", antialias=True))["out"] for s in sizes.values()]
    mean = sum(F.interpolate(e, size=(64, 96), mode="bilinear", antialias=True) for e in each) / 3
    torch.testing.assert_close(MultiScale(Columns(), tuple(sizes), flip=False)(x)["out"], mean)


@pytest.mark.parametrize("scales", [(), (0.5, 0.0), (-1.0,), (float("nan"),), (float("inf"),)])
def test_scales_must_be_positive(scales):
    with pytest.raises(ValueError, match="scales must be positive numbers"):
        MultiScale(Columns(), scales)


class Corner(nn.Module):
    """As strided layers that pad on both sides: position i is pixel 4 i."""

    def forward(self, x):
        return x[..., ::4, ::4]


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("odd_sides", "shift"), [(False, 1.5), (True, 0.0)])
def test_odd_sides_do_not_shift(odd_sides, shift, scale):
    """Of an image whose values are its columns, the scores lag by 1.5 pixels of the network's input at even sides."""
    x = torch.arange(64.0).expand(1, 1, 32, 64)
    y = MultiScale(Corner(), (scale,), False, odd_sides)(x)["out"]
    assert y.shape == x.shape
    torch.testing.assert_close((x - y)[..., 8:-8].mean(), torch.tensor(shift / scale))
