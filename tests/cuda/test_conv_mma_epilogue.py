"""The way out of mma.sync's tiles: vectors where all that is read and written is aligned, else what there is."""

from dataclasses import dataclass

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, tf32
from shapes import channels_last
from test_conv_mma import DTYPES, ops, random

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

LARGE, TALL, SMALL, LARGE_OF_FEW_STAGES = 0, 1, 2, 4
SIZE = (7, 5)


@dataclass(frozen=True)
class Way:
    """A convolution of 1 x 1 into some of dst's channels; `off`: what lies an element beside a multiple of 16 bytes."""

    why: str
    k: int
    groups: int = 1
    first: int = 8
    behind: int = 8
    off: tuple[str, ...] = ()

    def __str__(self):
        return self.why.replace(" ", "-")


WAYS = (
    Way("whole vectors, the last in a tile's middle", 72),
    Way("a group's channels are whole vectors", 48, groups=2),
    Way("a group's channels end inside a vector", 36, groups=2),
    Way("channels end inside a vector", 35),
    Way("channels of dst begin inside a vector", 40, first=3, behind=5),
    Way("rows of dst are no whole vectors", 40, behind=3),
    Way("dst off 16 bytes", 40, off=("out",)),
    Way("bias off 16 bytes", 40, off=("bias",)),
    Way("scale off 16 bytes", 40, off=("scale",)),
    Way("residual off 16 bytes", 40, off=("residual",)),
)


def rows(way: Way, name: str, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Random maps in channels_last, or with an element before them."""
    off = name in way.off
    return random((off + 2 * SIZE[0] * SIZE[1] * channels,), dtype)[off:].view(2, *SIZE, channels).movedim(-1, 1)


def values(way: Way, name: str, dtype: torch.dtype) -> torch.Tensor:
    off = name in way.off
    return random((off + way.k,), dtype)[off:]


def check(way: Way, dtype: torch.dtype, tile: int, splits: int, what: str, fp32=False, allow_tf32=False) -> None:
    """`what`: of "scale", "bias", "residual" and "relu" those that a call has."""
    deep = 256 if splits > 1 else 32
    c = deep if dtype != torch.float32 else max(deep, 128)
    x, w = channels_last(random((2, c * way.groups, *SIZE), dtype)), random((way.k, c, 1, 1), dtype)
    of = torch.float32 if fp32 else dtype
    scale, bias = (values(way, name, of) if name in what else None for name in ("scale", "bias"))
    residual = rows(way, "residual", way.k, dtype) if "residual" in what else None
    out = rows(way, "out", way.first + way.k + way.behind, dtype).fill_(7)
    written = slice(way.first, way.first + way.k)
    out[:, written] = torch.nan
    ops().test_conv_mma(
        x, w, bias, scale, residual, out, [1, 1], [0, 0], [1, 1], way.groups, False, "relu" in what, way.first, tile,
        splits, allow_tf32,
    )  # fmt: skip

    def right(d: torch.dtype, cut=lambda t: t) -> torch.Tensor:
        y = F.conv2d(cut(x).to(d), cut(w).to(d), None, groups=way.groups)
        y = y if scale is None else y * scale.to(d).view(-1, 1, 1)
        y = y if bias is None else y + bias.to(d).view(-1, 1, 1)
        y = y if residual is None else y + residual.to(d)
        return torch.relu(y) if "relu" in what else y

    assert_close(out[:, written], right(torch.float64), right(dtype, tf32) if allow_tf32 else right(dtype))
    assert (out[:, : way.first] == 7).all()
    assert (out[:, way.first + way.k :] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_alignment(way, dtype):
    for splits in (1, 2):
        check(way, dtype, SMALL, splits, "scale bias residual relu")


@pytest.mark.parametrize("tile", [LARGE, TALL, SMALL, LARGE_OF_FEW_STAGES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_in_vectors(dtype, tile):
    """The last tile's rows end inside a fragment, and its columns too."""
    many = (" ", "bias", "bias relu", "residual", "scale bias residual relu")
    for fp32 in (False, True):
        for what in many if not fp32 else ("scale bias", "bias residual"):
            check(WAYS[0], dtype, tile, 1, what, fp32, allow_tf32=tile in (LARGE, LARGE_OF_FEW_STAGES))
    check(WAYS[0], dtype, tile, 3, "bias relu", allow_tf32=tile in (LARGE, LARGE_OF_FEW_STAGES))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("what", ["bias", "residual"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_of_threads(dtype, what, seed):
    """Where rows begin is found by some warps for all, of which others may be far ahead."""
    with host_cuda.order(seed, ahead=True):
        for tile in (TALL, SMALL):
            check(WAYS[0], dtype, tile, 1, what)


@pytest.mark.parametrize("first", [0, 1], ids=["vectors", "elements"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_none_or_zero_or_large(dtype, splits, first):
    """A residual added to sums of nothing, scaled to -0: the same number again, or PyTorch's ReLU of it."""
    special = torch.tensor([-0.0, 0.0, torch.nan, torch.inf, -torch.inf, 1e-7, -1e-7, 1e-40, -1e-40, 6e4, -1])
    c, k, size = 64, 48, (6, 5)
    turned = (torch.arange(60).view(-1, 1) + torch.arange(k)) % len(special)
    residual = special[turned].view(2, *size, k).movedim(-1, 1).to(dtype)
    x, w = channels_last(torch.zeros((2, c, *size), dtype=dtype)), torch.zeros((k, c, 1, 1), dtype=dtype)
    for relu in (False, True):
        out = channels_last(torch.full((2, k + 8, *size), 7.0, dtype=dtype))
        ops().test_conv_mma(
            x, w, None, torch.full((k,), -1.0, dtype=dtype), residual, out, [1, 1], [0, 0], [1, 1], 1, False, relu,
            first, SMALL, splits, False,
        )  # fmt: skip
        written = out[:, first : first + k]
        torch.testing.assert_close(written, residual.relu() if relu else residual, rtol=0, atol=0, equal_nan=True)
        if not relu:  # which a GPU's ReLU makes +0 of -0, and PyTorch's on a CPU does not
            numbers = ~residual.isnan()
            assert torch.equal(written.signbit()[numbers], residual.signbit()[numbers])
