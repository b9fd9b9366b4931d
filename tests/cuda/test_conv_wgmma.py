"""The convolutions by TMA and wgmma, on small problems that each have a reason, against PyTorch in fp64."""

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, tf32
from shapes import channels_last
from test_conv_mma import Case, ops, random, stock

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

KERNEL = "conv_wgmma_kernel"
MULTICAST = "cp.async.bulk.tensor.multicast"
HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
WIDE, MIDDLE, NARROW = 0, 1, 2  # tiles of 128 rows by 256, 128 and 64 columns

# What is computed, and the box of a tile: positions along each of three axes, and images.
FORWARD = (
    (Case("one tile, one tap", 1, 64, 64, (8, 8), kernel=1, padding=0), (1, 8, 8, 1)),
    (Case("channels, columns, images and both axes end within a tile", 3, 40, 72, (7, 9)), (1, 4, 7, 2)),
    (Case("all but the centre tap dead", 1, 72, 40, (5, 6), padding=9, dilation=9), (1, 5, 6, 1)),
    (Case("live regions of every kind", 2, 40, 40, (13, 11), padding=4, dilation=4), (1, 5, 4, 2)),
    (Case("a box over all regions", 1, 40, 40, (13, 9), padding=4, dilation=4), (1, 13, 9, 1)),
    (Case("a tap between others that is dead everywhere", 2, 40, 40, (2, 9), 5, 3, 3), (1, 2, 3, 2)),
    (Case("stride with dilation", 2, 40, 40, (11, 12), stride=2, padding=3, dilation=3), (1, 3, 6, 2)),
    (Case("one axis", 2, 40, 40, (37,), padding=2, dilation=2), (1, 1, 16, 2)),
    (Case("three axes", 2, 40, 40, (4, 5, 3), padding=2, dilation=2), (2, 3, 3, 2)),
    (Case("a single position", 1, 64, 64, (1, 1), padding=5, dilation=5), (1, 1, 1, 1)),
)
TRANSPOSED = (
    (Case("phases", 2, 40, 72, (5, 4), kernel=4, stride=2), (1, 3, 4, 2)),
    (Case("phases without taps", 1, 40, 40, (4, 4), kernel=2, stride=3, padding=0), (1, 4, 4, 1)),
    (Case("dilated phases", 2, 40, 40, (5, 6), kernel=3, stride=2, padding=2, dilation=3), (1, 2, 6, 2)),
    (Case("stride one, all but the centre tap dead", 1, 40, 72, (4, 5), padding=7, dilation=7), (1, 4, 5, 1)),
)


def run(x, weights, out, case, *, bias=None, scale=None, residual=None, padding=None, dilation=None, transposed=False,
        relu=False, first=0, tile=-1, splits=1, blocks=0, box=()):  # fmt: skip
    ops().test_conv_wgmma(
        x, weights, bias, scale, residual, out, case.stride, padding or [case.padding], dilation or [case.dilation],
        transposed, relu, first, tile, splits, blocks, list(box),
    )  # fmt: skip
    return out


def check(case: Case, dtype, box=(), *, transposed=False, weights_last=True, **forced):
    x = channels_last(random((case.n, case.c, *case.size), dtype))
    ends = (case.c, case.k) if transposed else (case.k, case.c)
    w = random((*ends, *(case.kernel,) * len(case.size)), dtype)
    w = channels_last(w) if weights_last else w
    b = random((case.k,), dtype)
    exact, theirs = (stock(case, transposed, *(t.to(d) for t in (x, w, b))) for d in (torch.float64, dtype))
    if dtype == FLOAT:
        # PyTorch has no TF32 on the CPU: the error of rounding the operands stands for its own.
        theirs = stock(case, transposed, tf32(x), tf32(w), b)
    out = channels_last(torch.full(exact.shape, torch.nan, dtype=dtype))
    run(x, [w], out, case, bias=b, transposed=transposed, box=box, **{"tile": NARROW if box else -1, **forced})
    assert_close(out, exact, theirs)
    return out


@pytest.mark.parametrize(("case", "box"), FORWARD, ids=str)
def test_forward(case, box):
    check(case, BF16, box)


@pytest.mark.parametrize(("case", "box"), TRANSPOSED, ids=str)
def test_transposed(case, box):
    check(case, BF16, box, transposed=True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tile", [WIDE, MIDDLE, NARROW])
def test_every_tile_and_type(tile, transposed):
    # Columns beyond one block of them, and a last channel of src beyond a whole box.
    columns = {WIDE: 264, MIDDLE: 136, NARROW: 72}[tile]
    case = Case("", 1, 72, columns, (6, 5), kernel=3, padding=2, dilation=2)
    for dtype in (BF16, HALF, FLOAT):
        check(case, dtype, (1, 4, 5, 1), tile=tile, transposed=transposed)


@pytest.mark.parametrize("case", [FORWARD[3][0], FORWARD[6][0]], ids=str)
def test_as_planned(case):
    for weights_last in (True, False):
        check(case, HALF, weights_last=weights_last)


def test_input_of_a_strided_convolution_by_phases_and_weights_of_odd_width():
    # dx has 36 channels: no multiple of 8, so that weights are laid out anew, and stores are single.
    check(Case("", 1, 64, 36, (5, 6), kernel=3, stride=2), BF16, (1, 3, 6, 1), transposed=True)


def test_few_blocks_take_many_tiles_and_split_sums_in_a_fixed_order():
    # Parts of a sum begin and end within a tap; tiles have one to nine taps; a block has both long and short ones.
    case = Case("", 2, 136, 72, (9, 10), padding=4, dilation=4)
    results = {}
    for splits, blocks in ((1, 132), (1, 3), (5, 132), (5, 4)):
        torch.manual_seed(3)
        results[splits, blocks] = check(case, BF16, (1, 5, 6, 2), splits=splits, blocks=blocks)
    assert torch.equal(results[1, 132], results[1, 3])
    assert torch.equal(results[5, 132], results[5, 4])


@pytest.mark.parametrize("blocks", [2, 5, 132])
@pytest.mark.parametrize("splits", [1, 3])
def test_pairs_of_blocks_bring_the_map_for_each_other(splits, blocks):
    """Two or four columns of blocks, which have tiles of one to nine taps; the same bits as by blocks alone."""
    for columns, seed in ((72, 0), (200, 3)):
        case, results = Case("", 2, 136, columns, (9, 10), padding=4, dilation=4), []
        for cluster in (2, 1):
            torch.manual_seed(3)
            before = host_cuda.runs(MULTICAST)
            with host_cuda.order(seed), host_cuda.largest_cluster(cluster):
                results.append(check(case, BF16, (1, 5, 6, 2), splits=splits, blocks=blocks))
            assert (host_cuda.runs(MULTICAST) > before) == (cluster == 2)
        assert torch.equal(*results)


@pytest.mark.parametrize("blocks", [2, 5, 132])
@pytest.mark.parametrize(
    ("columns", "tile", "splits", "transposed"),
    [
        (40, NARROW, 1, False),
        (136, NARROW, 3, False),
        (136, MIDDLE, 2, True),
        (40, WIDE, 1, True),
        (512, WIDE, 2, False),
    ],
)
def test_pairs_of_blocks_bring_weights_for_each_other(columns, tile, splits, transposed, blocks):
    """An even number of boxes in each region, of one to nine taps; an odd number of columns of tiles, or wide tiles.

    The same bits as by blocks alone, in any order of threads.
    """
    case, results = Case("", 2, 72, columns, (9, 10), padding=4, dilation=4), []
    for cluster, seed in ((2, 0), (2, 3), (1, 0)):
        torch.manual_seed(3)
        before = host_cuda.runs(MULTICAST)
        with host_cuda.order(seed), host_cuda.largest_cluster(cluster):
            results.append(
                check(case, BF16, (1, 5, 6, 1), tile=tile, splits=splits, blocks=blocks, transposed=transposed)
            )
        assert (host_cuda.runs(MULTICAST) > before) == (cluster == 2)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


def test_branches_in_pairs_share_weights():
    """A 1x1 and a 3x3 of 40 channels each, two images of one box to a region."""
    x = channels_last(random((2, 72, 5, 6), BF16))
    weights = [channels_last(random((40, 72, k, k), BF16)) for k in (1, 3)]
    case, results = Case("", 2, 72, 40, (5, 6)), []
    for cluster in (2, 1):
        before = host_cuda.runs(MULTICAST)
        out = channels_last(torch.full((2, 80, 5, 6), torch.nan, dtype=BF16))
        with host_cuda.largest_cluster(cluster):
            run(x, weights, out, case, padding=[0, 1], dilation=[1, 1], tile=NARROW, box=(1, 5, 6, 1))
        assert (host_cuda.runs(MULTICAST) > before) == (cluster == 2)
        results.append(out)
    assert torch.equal(*results)
    exact, theirs = (
        torch.cat([F.conv2d(x.to(d), w.to(d), padding=p) for w, p in zip(weights, (0, 1))], 1)
        for d in (torch.float64, BF16)
    )
    assert_close(results[0], exact, theirs)


def test_blocks_without_a_partner_are_alone():
    """An odd number of columns of tiles and of boxes; a single block."""
    before = host_cuda.runs(MULTICAST)
    check(Case("", 1, 64, 136, (9, 7)), BF16, (1, 9, 7, 1))
    check(Case("", 1, 64, 72, (9, 10)), BF16, (1, 9, 7, 1), blocks=1)
    assert host_cuda.runs(MULTICAST) == before


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_threads_gives_the_same_bits(seed):
    case, results = Case("", 2, 136, 40, (6, 7), padding=2, dilation=2), []
    for order in (0, seed):
        torch.manual_seed(3)
        with host_cuda.order(order):
            results.append(check(case, BF16, (1, 3, 4, 2), splits=2, blocks=2))
    assert torch.equal(*results)


@pytest.mark.parametrize("splits", [1, 2])
def test_branches_of_one_launch_write_into_one_tensor(splits):
    # ASPP: a 1x1 and three rates into neighbouring channels, each with its own scale and bias; channels around stay.
    n, c, k, size, first = 2, 72, 40, (9, 8), 8
    rates, kernels = [1, 2, 5, 9], [1, 3, 3, 3]
    padding = [0, 2, 5, 9]
    case = Case("", n, c, k, size)
    x = channels_last(random((n, c, *size), BF16))
    weights = [channels_last(random((k, c, i, i), BF16)) for i in kernels]
    scale, bias = (random((4 * k,), FLOAT) for _ in range(2))
    out = channels_last(torch.full((n, 4 * k + first + 5, *size), 7.0, dtype=BF16))
    run(x, weights, out, case, bias=bias, scale=scale, padding=padding, dilation=rates, relu=True, first=first,
        tile=NARROW, splits=splits, blocks=5, box=(1, 3, 8, 2))  # fmt: skip

    def right(d):
        sums = [F.conv2d(x.to(d), w.to(d), None, 1, p, r) for w, p, r in zip(weights, padding, rates)]
        return torch.relu(torch.cat(sums, 1) * scale.to(d).view(1, -1, 1, 1) + bias.to(d).view(1, -1, 1, 1))

    assert_close(out[:, first : first + 4 * k], right(torch.float64), right(BF16))
    assert (out[:, :first] == 7).all()
    assert (out[:, first + 4 * k :] == 7).all()


def test_branches_of_the_operator_in_tf32():
    # The other types: tests/test_conv_branches.py. Rates of both axes differ, and so do kernels.
    x = channels_last(random((1, 36, 9, 8), FLOAT))
    weights = [channels_last(random((40, 36, *kernel), FLOAT)) for kernel in ((3, 3), (1, 5))]
    biases, padding, rates = [random((40,), FLOAT) for _ in weights], [2, 5, 0, 2], [2, 5, 1, 1]

    def right(d, cut=lambda t: t):
        sums = [
            F.conv2d(cut(x).to(d), cut(w).to(d), b.to(d), 1, padding[i : i + 2], rates[i : i + 2])
            for i, w, b in zip((0, 2), weights, biases)
        ]
        return torch.relu(torch.cat(sums, 1))

    before = host_cuda.runs(KERNEL)
    y = ops().conv_branches(x, weights, biases, [], padding, rates, True, True)
    assert host_cuda.runs(KERNEL) == before + 1
    assert_close(y, right(torch.float64), right(FLOAT, tf32))


@pytest.mark.parametrize("splits", [1, 2])
def test_epilogue(splits):
    case = Case("", 2, 40, 40, (6, 5))
    x, w = channels_last(random((2, 40, 6, 5), HALF)), channels_last(random((40, 40, 3, 3), HALF))
    scale, bias, residual = random((40,), HALF), random((40,), HALF), channels_last(random((2, 40, 6, 5), HALF))
    residual[0, 1, 2, 3] = torch.nan
    out = channels_last(torch.full((2, 40, 6, 5), torch.nan, dtype=HALF))
    run(x, [w], out, case, bias=bias, scale=scale, residual=residual, relu=True, tile=NARROW, splits=splits,
        box=(1, 6, 5, 2))  # fmt: skip

    def right(d):
        y = F.conv2d(x.to(d), w.to(d), None, 1, 1) * scale.to(d).view(1, -1, 1, 1)
        return torch.relu(y + bias.to(d).view(1, -1, 1, 1) + residual.to(d))

    assert_close(out, right(torch.float64), right(HALF))


def test_operators_run_it_where_it_can():
    def conv(x, w):
        return ops().conv(x, w, None, [1, 1], [2, 2], [2, 2], 1, False)

    x, w = random((1, 40, 9, 8), BF16), random((40, 40, 3, 3), BF16)
    before = host_cuda.runs(KERNEL)
    y = conv(channels_last(x), channels_last(w))
    assert host_cuda.runs(KERNEL) == before + 1
    assert_close(y, F.conv2d(x.double(), w.double(), None, 1, 2, 2), F.conv2d(x, w, None, 1, 2, 2))
    assert torch.equal(conv(x, w), y)
    dx = ops().conv_grad_input(y, w, x.shape, [1, 1], [2, 2], [2, 2], 1, False)
    assert host_cuda.runs(KERNEL) == before + 3
    exact, theirs = (torch.nn.grad.conv2d_input(x.shape, w.to(d), y.to(d), 1, 2, 2) for d in (torch.float64, BF16))
    assert_close(dx, exact, theirs)
    # Rows of 72 bytes, fp32 in full precision, another generation: for other kernels.
    conv(x[:, :36].contiguous(), w[:, :36].contiguous())
    conv(x.float(), w.float())
    with host_cuda.device(*host_cuda.A100):
        conv(x, w)
    assert host_cuda.runs(KERNEL) == before + 3
