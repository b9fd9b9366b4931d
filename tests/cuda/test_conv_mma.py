"""The tensor-core convolutions, every tile and precision, on small problems that each have a reason."""

from dataclasses import dataclass

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, tf32
from shapes import channels_last

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Case:
    """A convolution; a transposed one goes from K channels to C."""

    why: str
    n: int
    c: int
    k: int
    size: tuple[int, ...]
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1

    def __str__(self):
        return self.why.replace(" ", "-")

    def short(self, transposed: bool) -> bool:
        """Sums of so few products that nobody rounds: three tf32 products are no match, and are not offered there."""
        ends = (self.c, self.k // self.groups) if transposed else (self.k, self.c // self.groups)
        ones = torch.ones(1, self.c, *self.size), torch.ones(*ends, *(self.kernel,) * len(self.size))
        return float(stock(self, transposed, *ones, None).mean()) < 128

    @property
    def rest(self):
        rank = len(self.size)
        return [self.stride] * rank, [self.padding] * rank, [self.dilation] * rank, self.groups


WIDE = (
    Case("one tile, one tap", 1, 32, 64, (8, 8), kernel=1, padding=0),
    Case("rows and columns beyond the last full tile", 3, 40, 72, (7, 9)),
    Case("more steps than stages, all but the centre tap dead", 1, 200, 16, (5, 6), padding=9, dilation=9),
    Case("live regions of every kind", 2, 16, 24, (13, 11), padding=4, dilation=4),
    Case("strides with dilation", 2, 24, 16, (11, 12), stride=2, padding=3, dilation=3),
    Case("one axis", 2, 16, 16, (37,), padding=2, dilation=2),
    Case("three axes", 1, 16, 8, (4, 5, 3)),
    Case("groups", 2, 48, 32, (6, 5), groups=2),
    Case("a single position", 1, 64, 64, (1, 1), padding=5, dilation=5),
    Case("channels not a multiple of a stage", 1, 24, 8, (5, 5)),
)
NARROW = (
    Case("21 channels", 2, 21, 21, (12, 9), padding=2, dilation=2),
    Case("1 channel to 33", 1, 1, 33, (9, 7)),
    Case("3 channels to 1", 2, 3, 1, (8, 5), stride=3),
    Case("33 channels to 65", 1, 33, 65, (5, 7), padding=3, dilation=3),
    Case("groups of 5 and 7", 1, 10, 14, (6, 6), groups=2),
)
TRANSPOSED = (
    Case("phases", 1, 16, 24, (5, 4), kernel=4, stride=2),
    Case("phases without taps", 1, 16, 16, (4, 4), kernel=2, stride=3, padding=0),
    Case("dilated phases", 2, 24, 40, (5, 6), kernel=3, stride=2, padding=2, dilation=3),
    Case("stride one, all but the centre tap dead", 1, 32, 64, (4, 5), padding=7, dilation=7),
    Case("groups", 1, 32, 48, (4, 4), groups=2, stride=2),
)
ODD_TRANSPOSED = (
    Case("21 channels", 1, 21, 21, (6, 5), kernel=4, stride=2),
    Case("1 to 3 channels", 1, 1, 3, (6, 5), kernel=3, stride=1),
)
TILES = (0, 1, 2)  # 128 x 128, 128 x 64, 64 x 64; 3 is for rows that are not aligned, 4 the first with fewer stages


def random(size, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size).to(dtype)


def ops():
    host_cuda.load()
    return torch.ops.atrousops_host_cuda


def stock(case: Case, transposed: bool, x, w, b):
    name = f"conv{'_transpose' if transposed else ''}{len(case.size)}d"
    if transposed:
        return getattr(F, name)(x, w, b, case.stride, case.padding, 0, case.groups, case.dilation)
    return getattr(F, name)(x, w, b, case.stride, case.padding, case.dilation, case.groups)


def check(case: Case, dtype, tile: int, splits=1, allow_tf32=False, transposed=False, weights_last=True, last=True):
    c, k = case.c, case.k
    allow_tf32 = allow_tf32 or (dtype == torch.float32 and case.short(transposed))
    x = random((case.n, c, *case.size), dtype)
    first, second = (c, k) if transposed else (k, c)
    w = random((first, second // case.groups, *(case.kernel,) * len(case.size)), dtype)
    b = random((k,), dtype)
    exact, theirs = (stock(case, transposed, *(t.to(d) for t in (x, w, b))) for d in (torch.float64, dtype))
    if allow_tf32:
        # PyTorch has no TF32 on the CPU: the error of rounding the operands stands for its own.
        theirs = stock(case, transposed, tf32(x), tf32(w), b)
    out = torch.full(exact.shape, torch.nan, dtype=dtype)
    out = channels_last(out) if last else out
    ops().test_conv_mma(
        channels_last(x) if last else x, channels_last(w) if weights_last else w, b, None, None, out, *case.rest,
        transposed, False, 0, tile, splits, allow_tf32,
    )  # fmt: skip
    assert_close(out, exact, theirs)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_forward(case, dtype):
    for tile in TILES if dtype != torch.float32 else TILES[1:]:
        check(case, dtype, tile)


@pytest.mark.parametrize("case", WIDE[:4], ids=str)
def test_tf32(case):
    for tile in TILES:
        check(case, torch.float32, tile, allow_tf32=True)
    check(Case("21 channels", 1, 21, 21, (7, 6)), torch.float32, 3, allow_tf32=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WIDE[:4], ids=str)
def test_fewer_stages(case, dtype):
    for transposed in (False, True):
        check(case, dtype, 4, allow_tf32=dtype == torch.float32, transposed=transposed)


# On slices of devices that small problems fill: 256 channels in two groups, of as many positions.
@pytest.mark.parametrize(
    ("chip", "positions", "dtype", "tile"),
    [
        (host_cuda.A100, (20, 30), torch.bfloat16, "128, 128, 64, 64, 4"),
        (host_cuda.RTX_4090, (20, 30), torch.bfloat16, "128, 128, 64, 64, 3"),
        (host_cuda.RTX_5090, (20, 30), torch.float16, "128, 128, 64, 64, 3"),
        (host_cuda.RTX_4090, (20, 30), torch.float32, "128, 128, 64, 64, 3"),
        # One tile a multiprocessor, and the others without work: the smallest is done first.
        (host_cuda.A100, (8, 9), torch.bfloat16, "64, 64, 32, 32, 4"),
        (host_cuda.RTX_4090, (8, 9), torch.bfloat16, "64, 64, 32, 32, 4"),
        # Less than any such device has: what a block has no room for is not started.
        ((128, 89, 48 << 10, 48 << 10, 1 << 20), (20, 30), torch.bfloat16, "64, 64, 32, 32, 4"),
    ],
    ids=["A100", "RTX-4090", "RTX-5090", "RTX-4090-tf32", "A100-few", "RTX-4090-few", "48-KB"],
)
def test_the_tile_that_a_device_has_room_for(chip, positions, dtype, tile):
    case = Case("", 1, 64, 256, positions, kernel=1, padding=0, groups=2)
    before = host_cuda.runs(f"MmaTile<{tile}")
    with host_cuda.device(16, *chip[1:]):
        check(case, dtype, -1, allow_tf32=dtype == torch.float32)
    assert host_cuda.runs(f"MmaTile<{tile}") == before + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NARROW, ids=str)
def test_rows_that_are_not_aligned(case, dtype):
    check(case, dtype, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed(case, dtype):
    for tile in TILES if dtype != torch.float32 else TILES[1:]:
        check(case, dtype, tile, transposed=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ODD_TRANSPOSED, ids=str)
def test_transposed_rows_that_are_not_aligned(case, dtype):
    check(case, dtype, 3, transposed=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_sums_in_a_fixed_order(dtype):
    case = Case("deep", 1, 136, 24, (6, 7), padding=3, dilation=3)
    results = []
    for splits in (2, 2, 5):
        torch.manual_seed(3)
        results.append(check(case, dtype, 2, splits))
    assert torch.equal(results[0], results[1])
    check(Case("odd", 2, 21, 21, (6, 7)), dtype, 3, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layouts_of_input_and_weights(dtype):
    for transposed in (False, True):
        for weights_last in (False, True):
            for last in (False, True):
                check(WIDE[1], dtype, 2, transposed=transposed, weights_last=weights_last, last=last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [2, 3])
def test_epilogue_and_channel_offset(dtype, tile):
    c, k, first = (16, 24, 8) if tile == 2 else (5, 7, 3)
    x, w = channels_last(random((2, c, 6, 5), dtype)), channels_last(random((k, c, 3, 3), dtype))
    for fp32 in (True, False):
        scale, bias = (random((k,), torch.float32 if fp32 else dtype) for _ in range(2))
        residual = channels_last(random((2, k, 6, 5), dtype))
        residual[0, 1, 2, 3] = torch.nan
        for splits in (1, 2):
            wide = channels_last(torch.full((2, k + first + 5, 6, 5), 7.0, dtype=dtype))
            ops().test_conv_mma(
                x, w, bias, scale, residual, wide, [1, 1], [1, 1], [1, 1], 1, False, True, first, tile, splits, False
            )

            right, same = (
                torch.relu(
                    F.conv2d(x.to(d), w.to(d), None, 1, 1) * scale.to(d).view(1, -1, 1, 1)
                    + bias.to(d).view(1, -1, 1, 1)
                    + residual.to(d)
                )
                for d in (torch.float64, dtype)
            )
            assert_close(wide[:, first : first + k], right, same)
            assert (wide[:, :first] == 7).all()
            assert (wide[:, first + k :] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned_pointers_take_the_narrow_tile(dtype):
    case = WIDE[1]
    base = random((case.n * 7 * 9 * 40 + 1,), dtype)
    x = base[1:].view(case.n, 7, 9, 40).movedim(-1, 1)
    w, out = random((72, 40, 3, 3), dtype), channels_last(torch.empty((case.n, 72, 7, 9), dtype=dtype))
    call = ops().test_conv_mma
    with pytest.raises(RuntimeError, match="aligned to 16 bytes"):
        call(x, w, None, None, None, out, *case.rest, False, False, 0, 0, 1, False)
    call(x, w, None, None, None, out, *case.rest, False, False, 0, -1, 1, False)
    assert_close(out, F.conv2d(x.double(), w.double(), None, 1, 1), F.conv2d(x, w, None, 1, 1))


def test_infinity_and_nan_in_full_precision():
    x, w = torch.randn(1, 8, 5, 6), torch.randn(8, 8, 3, 3)
    # Exact in tf32: their small parts are zero.
    w[:, :, 1, 1] = 0.5
    x[0, 1, 2, 2], x[0, 3, 4, 4], x[0, 5, 0, 5] = torch.inf, -torch.inf, torch.nan
    out = channels_last(torch.empty(1, 8, 5, 6))
    case = Case("", 1, 8, 8, (5, 6), padding=7, dilation=7)
    ops().test_conv_mma(x, w, None, None, None, out, *case.rest, False, False, 0, 2, 1, False)
    exact = F.conv2d(x.double(), w[:, :, 1:2, 1:2].double())
    assert torch.equal(out.isnan(), exact.isnan())
    assert torch.equal(out.isinf(), exact.isinf())


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3.4028e38], ids=str)
def test_other_sums_have_the_same_bits_beside_a_value_that_is_not_ordinary(value):
    """A warp that meets infinity, NaN, or what tf32 rounds to infinity splits all its words with care."""
    case = Case("", 1, 16, 24, (9, 10), padding=1)
    x, w = random((1, 16, 9, 10), torch.float32), random((24, 16, 3, 3), torch.float32)
    odd = x.clone()
    odd[0, 3, 4, 5] = value
    plain, beside = (channels_last(torch.full((1, 24, 9, 10), torch.nan)) for _ in range(2))
    for tensor, out in ((x, plain), (odd, beside)):
        ops().test_conv_mma(channels_last(tensor), w, None, None, None, out, *case.rest, False, False, 0, 2, 1, False)
    reached = torch.zeros(9, 10, dtype=torch.bool)
    reached[3:6, 4:7] = True
    assert torch.equal(plain[..., ~reached], beside[..., ~reached])
    assert not torch.equal(plain[..., reached], beside[..., reached])


def weight_gradient(case: Case, x, dy, tile: int, splits: int, allow_tf32: bool) -> torch.Tensor:
    """Held to fp64."""
    dtype = x.dtype
    w = torch.zeros((case.k, case.c // case.groups, *(case.kernel,) * len(case.size)), dtype=dtype)

    def right(d):
        v = w.to(d).requires_grad_()
        return torch.autograd.grad(stock(case, False, x.to(d), v, None), v, dy.to(d))[0]

    out = torch.full(w.shape, torch.nan, dtype=dtype)
    ops().test_conv_mma_weight(channels_last(dy), channels_last(x), out, *case.rest, tile, splits, allow_tf32)
    exact = right(torch.float64)
    if allow_tf32:
        assert (out - exact).abs().max() <= 2.0**-9 * (1 + exact.abs().max())
    else:
        assert_close(out, exact, right(dtype))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*WIDE, *NARROW], ids=str)
def test_weight_gradient(case, dtype):
    x = random((case.n, case.c, *case.size), dtype)
    w = torch.zeros((case.k, case.c // case.groups, *(case.kernel,) * len(case.size)), dtype=dtype)
    dy = torch.randn_like(stock(case, False, x, w, None))
    aligned = case in WIDE
    for tile, splits in ((0, 1), (1, 1), (1, 3), (3, 1), (3, 2)) if aligned else ((2, 1), (2, 3)):
        for allow_tf32 in (False, True) if dtype == torch.float32 else (False,):
            short = dy.numel() // case.k < 128
            if dtype == torch.float32 and not allow_tf32 and (tile in (0, 3) or short):
                continue
            weight_gradient(case, x, dy, tile, splits, allow_tf32)


# On slices of devices that small problems fill: five taps of 128 x 128 weights in two groups.
@pytest.mark.parametrize(
    ("chip", "tile"),
    [
        (host_cuda.A100, "128, 128, 64, 64, 4"),
        (host_cuda.RTX_4090, "128, 128, 64, 64, 3"),
        (host_cuda.RTX_5090, "128, 128, 64, 64, 3"),
        # Less than any such device has: what a block has no room for is not started.
        ((128, 89, 48 << 10, 48 << 10, 1 << 20), "64, 64, 32, 32, 4"),
    ],
    ids=["A100", "RTX-4090", "RTX-5090", "48-KB"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_weight_gradient_s_tile_that_a_device_has_room_for(chip, tile, dtype):
    case = Case("", 1, 256, 256, (30,), kernel=5, padding=2, groups=2)
    x, dy = (random((1, 256, 30), dtype) for _ in range(2))
    before = host_cuda.runs(f"MmaTile<{tile}")
    with host_cuda.device(16, *chip[1:]):
        weight_gradient(case, x, dy, -1, 1, allow_tf32=dtype == torch.float32)
    assert host_cuda.runs(f"MmaTile<{tile}") == before + 1


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_of_threads_gives_the_same_weight_gradient(dtype, seed):
    """Lines are found by some warps for all; more steps than stages, of every tile."""
    case = Case("", 2, 72, 40, (9, 11), padding=2, dilation=2)
    x, dy = (random((2, channels, 9, 11), dtype) for channels in (72, 40))
    for tile, splits in ((0, 1), (1, 2), (3, 1)):
        allow_tf32 = dtype == torch.float32 and tile != 1
        first = weight_gradient(case, x, dy, tile, splits, allow_tf32)
        with host_cuda.order(seed, ahead=seed == 2):
            assert torch.equal(first, weight_gradient(case, x, dy, tile, splits, allow_tf32))


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_threads_gives_the_same_bits(seed):
    case = Case("", 1, 72, 40, (6, 7), padding=2, dilation=2)
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(3)
        first = check(case, dtype, 2, 2)
        torch.manual_seed(3)
        with host_cuda.order(seed):
            assert torch.equal(first, check(case, dtype, 2, 2))
