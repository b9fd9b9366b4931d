"""The CUDA kernels of conv_quantized, run on the CPU: quantisation, mma.sync on int8 and float8, and the way out."""

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close
from shapes import channels_last

from atrousops.common.checks import ArgumentError
from atrousops.reference.conv_quantized import LARGEST, quantize

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

INT8, E4M3 = DTYPES = (torch.int8, torch.float8_e4m3fn)
WIDE = (torch.float32, torch.bfloat16, torch.float16)
ONE = torch.ones(())
# As in conv_mma.cu: 128 x 64, 64 x 64, and for int8 128 x 128.
TILES = [(INT8, 1), (INT8, 2), (INT8, 4), (E4M3, 1), (E4M3, 2)]


def ops():
    host_cuda.load()
    return torch.ops.atrousops_host_cuda


@pytest.fixture(params=[host_cuda.H100, host_cuda.RTX_4090], ids=["H100", "RTX-4090"])
def chip(request):
    """Whose kernels run: with wgmma where that can, and without."""
    with host_cuda.device(*request.param):
        yield


def narrow(shape, dtype):
    """Whole numbers of either sign, which both dtypes hold; their sums here are exact in fp32."""
    numbers = torch.randint(-127, 128, shape)
    return (numbers if dtype == INT8 else numbers // 8).to(dtype)


def quantized(x, w, bias=None, scales=None, residual=None, around=((1, 1), (1, 1), (1, 1), 1), relu=False, wide=False):
    scales = (ONE, torch.ones(w.shape[0])) if scales is None else scales
    return ops().conv_quantized(x, w, bias, *scales, residual, *around, relu, wide)


# Why, the input's size, output channels, kernel, stride, padding, dilation, groups.
CASES = {
    "rows and columns beyond the last tile": ((3, 48, 7, 11), 72, 3, 1, 1, 1, 1),
    "more steps than stages": ((1, 336, 5, 6), 16, 3, 1, 1, 1, 1),
    "all but the centre tap dead": ((1, 64, 5, 6), 24, 3, 1, 9, 9, 1),
    "strides with dilation": ((2, 32, 11, 12), 16, 3, 2, 3, 3, 1),
    "more zeros on one side": ((2, 32, 6, 7), 16, 3, 1, (2, 0, 1, 3), 2, 1),
    "groups": ((2, 96, 6, 5), 80, 3, 1, 1, 1, 2),
    "pointwise": ((2, 64, 9, 8), 136, 1, 1, 0, 1, 1),
}


@pytest.mark.parametrize(("dtype", "tile"), TILES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.replace(" ", "-"))
def test_every_tile(case, dtype, tile):
    size, outputs, kernel, stride, padding, dilation, groups = CASES[case]
    x, w = narrow(size, dtype), narrow((outputs, size[1] // groups, kernel, kernel), dtype)
    padding = padding if isinstance(padding, tuple) else (padding, padding) * 2
    top, left, bottom, right = padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    exact = F.conv2d(padded, w.double(), None, stride, 0, dilation, groups)
    assert exact.abs().max() < 2**24
    out = channels_last(torch.full(exact.shape, torch.nan))
    around = ([stride] * 2, list(padding), [dilation] * 2, groups)
    ops().test_conv_mma(channels_last(x), w, None, None, None, out, *around, False, False, 0, tile, 1, False)
    assert torch.equal(out.double(), exact)


@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("outputs", [64, 21, 4], ids=["runs", "no-runs", "half-a-run"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_bias_residual_and_relu(dtype, outputs, wide, chip):
    """PyTorch's error is that of the exact sum finished in fp32 and rounded once."""
    x = torch.randn(2, 24, 7, 6).to(wide)
    scales = torch.tensor(2.5 / LARGEST[dtype]), torch.rand(outputs) / 50
    w = narrow((outputs, 24, 3, 3), dtype)
    sums = F.conv2d(quantize(x, scales[0], dtype).double(), w.double(), None, 1, 1)
    for bias, residual, relu in (
        (None, None, False),
        (torch.randn(outputs).to(wide), None, True),
        (torch.randn(outputs), torch.randn(sums.shape).to(wide), True),
        (torch.randn(2 * outputs)[::2].double(), channels_last(torch.randn(sums.shape).to(wide)), False),
    ):

        def finished(kind, bias=bias, residual=residual, relu=relu):
            y = sums.to(kind) * (scales[0].to(kind) * scales[1].to(kind)).view(-1, 1, 1)
            y = y if bias is None else y + bias.to(kind).view(-1, 1, 1)
            y = y if residual is None else y + residual.to(kind)
            return y.relu() if relu else y

        y = quantized(x, w, bias, scales, residual, relu=relu)
        assert y.dtype == wide
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, finished(torch.float64), finished(torch.float32).to(wide))


def test_sums_of_int8_are_exact_beyond_what_fp32_holds(chip):
    """The largest numbers of both signs: the sum is rounded when it becomes fp32, and never before."""
    x = torch.full((1, 4096, 2, 2), 127.0)
    x[0, 1::2] = 126.0
    w = torch.full((3, 4096, 1, 1), 127, dtype=INT8)
    w[1], w[2, ::3] = -128, -127
    exact = F.conv2d(x.double(), w.double())
    assert exact.abs().max() > 2**25
    assert torch.equal(quantized(x, w, around=((1, 1), (0, 0), (1, 1), 1)), exact.float())


@pytest.mark.parametrize("seed", range(3))
def test_float8_of_every_size(seed, chip):
    """Random numbers of the whole range; products are exact, and the sum is held to twice fp32's error."""
    torch.manual_seed(seed)
    bits = torch.randint(0, 256, (2, 80, 6, 7), dtype=torch.uint8)
    x = bits.view(E4M3).float().nan_to_num(1.0)
    w = (torch.randn(24, 80, 3, 3) * 2.0 ** torch.randint(-6, 6, (24, 80, 3, 3))).clamp(-448, 448).to(E4M3)
    exact = F.conv2d(x.double(), w.double(), None, 1, 1)
    assert_close(quantized(x, w), exact, F.conv2d(x, w.float(), None, 1, 1))


def test_int8_has_zero_for_nan():
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.0]).view(1, 1, 2, 2)
    y = quantized(x, torch.ones(1, 1, 1, 1, dtype=INT8), around=((1, 1), (0, 0), (1, 1), 1))
    assert y.flatten().tolist() == [0, 127, -128, 3]


def test_float8_keeps_nan(chip):
    x = torch.zeros(1, 16, 5, 5)
    x[0, 3, 2, 2] = torch.nan
    y = quantized(x, torch.ones(8, 16, 3, 3).to(E4M3))
    assert y[:, :, 1:4, 1:4].isnan().all()
    assert y.isnan().sum() == 8 * 9


@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_is_quantised_alike(dtype, wide):
    """By 16 channels at once where they lie side by side, and one by one elsewhere; an identity shows the numbers."""
    for channels, groups in ((32, 1), (32, 2), (20, 1), (6, 2)):
        x = (3 * torch.randn(2, channels, 5, 6)).to(wide)
        scale = torch.tensor(5.0 / LARGEST[dtype])
        q = quantize(x, scale, dtype).float()
        w = torch.eye(channels).view(groups, channels // groups, channels)
        w = torch.cat([w[g, :, g * channels // groups :][:, : channels // groups] for g in range(groups)])
        w = w.view(channels, channels // groups, 1, 1).to(dtype)
        several = torch.stack([x, x], -1)[..., 0]
        off = torch.zeros(x.numel() + 1, dtype=wide)[1:].view(2, 5, 6, channels).movedim(-1, 1).copy_(x)
        last = channels_last(torch.cat([x, x], 3))[:, :, :, :6]
        for layout in (x, channels_last(x), several, off, last, x.transpose(2, 3).contiguous().transpose(2, 3)):
            around = ((1, 1), (0, 0), (1, 1), groups)
            y = quantized(layout, w, None, (scale, torch.ones(channels)), None, around, wide=True)
            assert torch.equal(y, q * scale)


def test_every_number_becomes_that_of_pytorch():
    """All of bfloat16 but NaN, in both dtypes."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[~x.isnan()]
    x = F.pad(x, (0, -len(x) % 256)).view(1, 1, -1, 256)
    for dtype in DTYPES:
        y = quantized(x, torch.ones(1, 1, 1, 1).to(dtype), around=((1, 1), (0, 0), (1, 1), 1), wide=True)
        assert torch.equal(y, quantize(x, ONE, dtype).float())


def test_one_and_three_axes():
    for size in ((2, 20, 37), (1, 20, 4, 5, 3)):
        rank = len(size) - 2
        x, w = narrow(size, INT8).float(), narrow((9, 20, *(3,) * rank), INT8)
        conv = F.conv1d if rank == 1 else F.conv3d
        y = quantized(x, w, around=((1,) * rank, (2,) * rank, (2,) * rank, 1))
        assert torch.equal(y.double(), conv(x.double(), w.double(), None, 1, 2, 2))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_of_threads_gives_the_same_bits(dtype, seed, chip):
    x, w = torch.randn(1, 72, 6, 7), torch.randn(40, 72, 3, 3)
    scale = torch.tensor(3 / LARGEST[dtype])
    w, scales = quantize(w, scale, dtype), (scale, torch.rand(40))
    first = quantized(x, w, scales=scales)
    with host_cuda.order(seed, ahead=seed == 2):
        assert torch.equal(quantized(x, w, scales=scales), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [128, 123])
@pytest.mark.parametrize("chip", [host_cuda.H100, host_cuda.RTX_4090], ids=["wgmma", "mma"])
def test_wgmma_where_there_is(chip, channels, dtype):
    """With channels of zeros to fill 16 bytes too; sums are the same."""
    x, w = narrow((2, channels, 9, 8), dtype), narrow((72, channels, 3, 3), dtype)
    x = x.to(torch.bfloat16)
    exact = F.conv2d(x.double(), w.double(), None, 1, 2, 2)
    scale = torch.rand(72)
    for wide in (torch.bfloat16, torch.float32):
        before = {c.name: c.runs for c in host_cuda.coverage()}
        with host_cuda.device(*chip):
            y = quantized(x.to(wide), w, None, (ONE, scale), None, ((1, 1), (2, 2), (2, 2), 1))
        ran = " ".join(c.name for c in host_cuda.coverage() if c.runs > before[c.name])
        is_wgmma = chip is host_cuda.H100 and wide == torch.bfloat16
        assert ("conv_wgmma_kernel" in ran, "conv_mma_kernel" in ran) == (is_wgmma, not is_wgmma)
        finished = (exact.float() * scale.view(-1, 1, 1)).to(wide)
        assert_close(y, exact * scale.double().view(-1, 1, 1), finished)


def test_what_no_kernel_runs():
    x, w = torch.ones(1, 16, 3, 3), torch.ones(8, 16, 3, 3)
    with host_cuda.device(*host_cuda.A100):
        quantized(x, w.to(INT8))
        with pytest.raises((RuntimeError, ArgumentError), match=r"conv_quantized: .*needs compute capability 8\.9"):
            quantized(x, w.to(E4M3))
    with host_cuda.device(*host_cuda.RTX_4090):
        quantized(x, w.to(E4M3))
    with pytest.raises(RuntimeError, match="may leave 32 bits"):
        quantized(torch.ones(1, 131073, 1, 1), torch.ones(1, 131073, 1, 1).to(INT8), around=((1, 1), (0, 0), (1, 1), 1))


def test_wrong_arguments():
    x, w, scales = torch.ones(1, 16, 3, 3), torch.ones(8, 16, 3, 3, dtype=INT8), (ONE, torch.ones(8))
    for text, change in (
        ("input must be float32", {"x": x.double()}),
        ("weight must be int8 or float8_e4m3fn", {"w": w.float()}),
        ("channels must agree", {"x": x[:, :5]}),
        ("scales must be float32", {"scales": (ONE, torch.ones(3))}),
        ("bias must have one entry", {"bias": torch.ones(3)}),
        ("residual must have", {"residual": x}),
    ):
        with pytest.raises(RuntimeError, match=f"conv_quantized: .*{text}"):
            quantized(**{"x": x, "w": w, "scales": scales, **change})


@pytest.mark.parametrize("dtype", [INT8, E4M3, torch.int16])
def test_convolutions_without_scales_refuse_these_dtypes(dtype):
    """Their tensor-core kernels would read them as fp32."""
    x, w = torch.zeros(1, 64, 9, 9).to(dtype), torch.zeros(32, 64, 3, 3).to(dtype)
    with pytest.raises(RuntimeError, match="conv: dtype must be float64"):
        ops().conv(x, w, None, [1, 1], [1, 1], [1, 1], 1, False, 0)
    with pytest.raises(RuntimeError, match="conv: dtype must be float64"):
        ops().conv_grad_weight(torch.zeros(1, 32, 9, 9).to(dtype), x, [3, 3], [1, 1], [1, 1], [1, 1], 1, False, 0)
