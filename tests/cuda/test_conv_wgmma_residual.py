"""The residual of the convolutions by TMA and wgmma: it comes through the ring of stages, as src does, and is added to
sums of whole numbers, so that every step is exact or rounded as PyTorch rounds it on the CPU."""

from dataclasses import dataclass

import host_cuda
import pytest
import torch
from shapes import channels_last
from test_conv_mma import Case, random, stock
from test_conv_wgmma import BF16, FLOAT, HALF, MIDDLE, MULTICAST, NARROW, WIDE, run

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

DTYPES = (BF16, HALF, FLOAT)
BOXED = "ldmatrix.x4"  # how 16 bits are read of a box that TMA brought


@dataclass(frozen=True)
class Way:
    case: Case
    box: tuple[int, int, int, int]
    transposed: bool = False
    boxed: bool = True
    off: bool = False  # 16 bytes' alignment

    def __str__(self):
        return str(self.case)


WAYS = (
    Way(Case("one tile", 1, 64, 64, (8, 8), kernel=1, padding=0), (1, 8, 8, 1)),
    Way(Case("columns, images and axes end within a tile", 3, 40, 72, (7, 9)), (1, 4, 7, 2)),
    Way(Case("regions without taps", 1, 40, 40, (13, 11), padding=9, dilation=4), (1, 5, 4, 1)),
    Way(Case("three axes", 2, 40, 40, (4, 5, 3)), (2, 3, 3, 2)),
    Way(Case("phases", 2, 40, 72, (5, 4), kernel=4, stride=2), (1, 3, 4, 2), transposed=True),
    Way(Case("phases that TMA cannot step over", 1, 40, 40, (3, 4), 10, 9), (1, 3, 4, 1), transposed=True, boxed=False),
    Way(Case("off 16 bytes", 1, 64, 40, (9, 7)), (1, 9, 7, 1), boxed=False, off=True),
    Way(Case("36 channels", 1, 64, 36, (9, 7)), (1, 9, 7, 1), boxed=False),
)


def whole_numbers(size, dtype):
    """Few enough that no sum of their products is rounded."""
    return channels_last(torch.randint(-3, 4, size).to(dtype))


def check(way: Way, dtype, *, relu=True, tile=NARROW, **forced):
    case = way.case
    x = whole_numbers((case.n, case.c, *case.size), dtype)
    ends = (case.c, case.k) if way.transposed else (case.k, case.c)
    w = whole_numbers((*ends, *(case.kernel,) * len(case.size)), dtype)
    scale, bias = random((case.k,), dtype), random((case.k,), dtype)
    sums = stock(case, way.transposed, x.float(), w.float(), None)
    residual = channels_last(random(sums.shape, dtype) * 50)
    residual[(0, 1, *(0,) * len(case.size))] = torch.nan
    residual[(0, 2, *(0,) * len(case.size))] = torch.inf
    if way.off:
        residual = (
            torch.empty(residual.numel() + 1, dtype=dtype)[1:]
            .as_strided(residual.shape, residual.stride())
            .copy_(residual)
        )
    out = channels_last(torch.full(sums.shape, torch.nan, dtype=dtype))
    run(x, [w], out, case, bias=bias, scale=scale, residual=residual, relu=relu, transposed=way.transposed, box=way.box,
        tile=tile, **forced)  # fmt: skip
    one = (1, -1, *(1,) * len(case.size))
    right = sums * scale.float().view(one) + bias.float().view(one) + residual.float()
    torch.testing.assert_close(out, (right.relu() if relu else right).to(dtype), rtol=0, atol=0, equal_nan=True)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_added_last_and_rounded_once(way, dtype):
    before = host_cuda.runs(BOXED)
    check(way, dtype)
    if dtype != FLOAT:
        assert (host_cuda.runs(BOXED) > before) == way.boxed


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [WIDE, MIDDLE, NARROW])
def test_every_tile(tile, dtype, relu):
    columns = {WIDE: 264, MIDDLE: 136, NARROW: 72}[tile]
    check(Way(Case("", 1, 72, columns, (6, 5)), (1, 4, 5, 1)), dtype, relu=relu, tile=tile)


@pytest.mark.parametrize("seed", [0, 3])
def test_blocks_and_pairs_of_many_tiles(seed):
    """Its stages shift those of the steps behind them; pairs bring every second box of src, or of an even number of
    boxes the weights, for each other all the same."""
    for tile, columns, images in ((NARROW, 72, 2), (WIDE, 264, 2), (NARROW, 40, 1), (WIDE, 264, 1)):
        way, results = Way(Case("", 2, 136, columns, (9, 10), padding=4, dilation=4), (1, 5, 6, images)), []
        for cluster, blocks in ((2, 2), (1, 1), (2, 132)):
            torch.manual_seed(3)
            before = host_cuda.runs(MULTICAST)
            with host_cuda.order(seed), host_cuda.largest_cluster(cluster):
                results.append(check(way, HALF, tile=tile, blocks=blocks))
            assert (host_cuda.runs(MULTICAST) > before) == (cluster == 2)
        assert all(torch.equal(results[0].nan_to_num(), each.nan_to_num()) for each in results)
