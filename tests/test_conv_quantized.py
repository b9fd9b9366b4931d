"""conv_quantized: exact sums of narrow numbers, scaled and rounded once."""

import copy
import io

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close

import atrousops as ao
from atrousops import reference
from atrousops.common.checks import ArgumentError, ArgumentTypeError
from atrousops.nn import FusedConv2d, QuantizedConv2d
from atrousops.ops import conv_quantized as module
from atrousops.ops.conv_quantized import conv_quantized
from atrousops.reference.conv_quantized import LARGEST, quantize

DTYPES = (torch.int8, torch.float8_e4m3fn)
ONE = torch.ones(())
# Input, output channels, kernel, then stride, padding, dilation, groups.
SHAPES = {
    "a block of channels": ((2, 64, 17, 15), 32, (3, 3), 1, 2, 2, 1),
    "no block of channels": ((1, 37, 19, 20), 21, (3, 3), 1, 3, 3, 1),
    "taps in padding only": ((1, 16, 9, 9), 16, (3, 3), 1, 12, 12, 1),
    "pointwise": ((2, 48, 11, 7), 24, (1, 1), 1, 0, 1, 1),
    "strides": ((1, 16, 21, 18), 24, (3, 3), (2, 3), 1, 1, 1),
    "groups": ((1, 24, 12, 12), 12, (3, 3), 1, 2, 2, 3),
    "other zeros on one side": ((1, 19, 12, 13), 5, (2, 3), 1, "same", 3, 1),
    "one image alone": ((20, 12, 13), 8, (3, 3), 1, 1, 1, 1),
}


# Not by `_has_vnni`: were it wrong, every test of that route would be skipped.
VNNI = torch.cpu._is_vnni_supported() and module._runs_on_cpu("onednn::qconv_pointwise")
needs_vnni = pytest.mark.skipif(not VNNI, reason="this CPU, or this PyTorch, has no VNNI convolution")


def use_kernel(monkeypatch):
    """The CUDA kernels, on the CPU."""
    if host_cuda.problem():
        pytest.skip(host_cuda.problem())
    host_cuda.load()
    monkeypatch.setattr(module, "_kernel", torch.ops.atrousops_host_cuda.conv_quantized.default)
    monkeypatch.setattr(module, "_body", lambda *_: module._by_kernel)


@pytest.fixture(params=["vnni", "kernel", "dequantised", "reference"])
def route(request, monkeypatch):
    """Who sums: oneDNN's integers, our CUDA kernels, PyTorch's fp32, or the definition."""
    if request.param == "kernel":
        use_kernel(monkeypatch)
    if request.param == "vnni":
        if not VNNI:
            pytest.skip("this CPU, or this PyTorch, has no VNNI convolution")
        assert module._has_vnni()
    if request.param == "dequantised":
        monkeypatch.setattr(module, "_has_vnni", lambda: False)
    with ao.backend("reference" if request.param == "reference" else None):
        yield request.param


def narrow(shape, dtype, seed):
    """Whole numbers, which both dtypes hold and fp32 sums exactly."""
    numbers = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed))
    return (numbers if dtype == torch.int8 else numbers // 8).to(dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_sums_are_exact(name, dtype, channels_last, route):
    size, outputs, kernel, stride, padding, dilation, groups = SHAPES[name]
    x = narrow(size, dtype, 1)
    w = narrow((outputs, size[-3] // groups, *kernel), dtype, 2)
    around = (stride, padding, dilation, groups)
    exact = F.conv2d(x.double(), w.double(), None, *around)
    assert exact.abs().max() < 2**24
    x = x.float()
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    y = conv_quantized(x, w, None, ONE, torch.ones(outputs), *around)
    assert y.dtype == torch.float32
    assert torch.equal(y.double(), exact)


def quantised(channels=37, outputs=21, dtype=torch.int8, wide=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, channels, 14, 15, generator=generator).to(wide)
    w = quantize(torch.randn(outputs, channels, 3, 3, generator=generator), torch.tensor(3 / LARGEST[dtype]), dtype)
    scales = torch.tensor(2.5 / LARGEST[dtype]), torch.rand(outputs, generator=generator) / 10
    bias, residual = torch.randn(outputs, generator=generator).to(wide), torch.randn(2, outputs, 14, 15).to(wide)
    return x, w, bias, scales, residual


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "hardswish", "silu"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_bias_residual_and_activation(dtype, wide, with_residual, activation, route):
    """PyTorch's error is that of the same convolution in fp32 of the same numbers, rounded once."""
    x, w, bias, scales, residual = quantised(dtype=dtype, wide=wide)
    residual = residual if with_residual else None
    before = [t.clone() for t in (x, w, bias, *scales)]
    y = conv_quantized(x, w, bias, *scales, 1, 2, 2, residual=residual, activation=activation)

    def plain(kind):
        q = quantize(x, scales[0], dtype).to(kind) * scales[0].to(kind)
        weight = w.to(kind) * scales[1].to(kind).view(-1, 1, 1, 1)
        found = F.conv2d(q, weight, bias.to(kind), padding=2, dilation=2)
        found = found if residual is None else found + residual.to(kind)
        return found if activation is None else getattr(F, activation)(found)

    exact = plain(torch.float64)
    assert y.dtype == wide
    assert_close(y, exact, plain(torch.float32).to(wide))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, w, bias, *scales), strict=True))


def test_rounding_by_hand():
    """Halves go to the even number; what is too large becomes the largest, on either side of int8's -128 to 127."""
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0, 127.4])
    assert quantize(x, ONE, torch.int8).tolist() == [0, 2, 2, 0, -2, 127, -128, 127]
    assert quantize(2 * x, 2 * ONE, torch.int8).tolist() == [0, 2, 2, 0, -2, 127, -128, 127]
    # e4m3 has three bits behind the first: from 16 to 32 whole multiples of 2, up to 448.
    x = torch.tensor([17.0, 19.0, 17.1, 1e4, -1e4, 448.0, 0.0])
    assert quantize(x, ONE, torch.float8_e4m3fn).tolist() == [16, 20, 18, 448, -448, 448, 0]


def test_inputs_are_rounded_by_every_route_alike(route):
    """An identity shows the numbers that are multiplied, at and beside every half."""
    halves = torch.arange(-130, 131).float() / 2
    x = torch.cat([halves, halves.nextafter(torch.tensor(1e9)), halves.nextafter(torch.tensor(-1e9))]).view(
        1, 1, 27, 29
    )
    y = conv_quantized(x, torch.ones(1, 1, 1, 1, dtype=torch.int8), None, ONE, torch.ones(1))
    assert torch.equal(y, x.round())


@needs_vnni
def test_changed_weights_and_scales_are_seen():
    x, w, bias, (input_scale, weight_scale), _ = quantised()
    for change in (lambda: w.neg_(), lambda: weight_scale.mul_(2), lambda: input_scale.mul_(1.5), lambda: None):
        y = conv_quantized(x, w, bias, input_scale, weight_scale)
        exact = reference.conv_quantized(x, w, bias, input_scale, weight_scale, (1, 1), (0, 0), (1, 1), 1)
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
        change()


@needs_vnni
def test_threads_change_no_bit():
    x, w, bias, scales, _ = quantised(64, 64)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(conv_quantized(x, w, bias, *scales, 1, 2, 2))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dtype", DTYPES)
def test_transforms_and_tracers(dtype):
    x, w, bias, scales, _ = quantised(dtype=dtype)

    def call(x):
        return conv_quantized(x, w, bias, *scales, 1, 1, activation="relu")

    expected = call(x)
    for other in (torch.compile(call, backend="aot_eager", fullgraph=True), torch.vmap(call), torch.jit.trace(call, x)):
        torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(call(x), expected, rtol=1e-5, atol=1e-5)


def test_wrong_arguments():
    x, w, bias, scales, _ = quantised()

    def refused(error, text, **changes):
        given = {"input": x, "weight": w, "bias": bias, "input_scale": scales[0], "weight_scale": scales[1], **changes}
        with pytest.raises(error, match=text):
            conv_quantized(**given)

    refused(ArgumentTypeError, "input must be a tensor of float32, bfloat16 or float16", input=x.double())
    refused(ArgumentTypeError, "weight must be a tensor of int8 or float8_e4m3fn", weight=w.float())
    refused(ArgumentError, r"weight_scale must have shape \(21,\)", weight_scale=scales[1][:3])
    refused(ArgumentTypeError, "input_scale must be a tensor of float32; got float", input_scale=0.1)
    refused(ArgumentError, r"bias must have shape \(21,\)", bias=bias[:3])
    refused(ArgumentError, "activation must be one of relu", activation="gelu")
    refused(ArgumentError, "input must want no gradient", input=x.clone().requires_grad_())
    refused(ArgumentError, "expected input", input=x[:, :5])
    refused(ArgumentError, "at least as large as the dilated kernel", dilation=20)


def test_backends():
    x, w, bias, scales, _ = quantised()
    why = {"cuda": "the tensors are on cpu|the CUDA library is missing"}
    for name in ("cpu", "cuda", "triton"):
        match = why.get(name, "we have a kernel for conv_quantized on CUDA alone")
        with ao.backend(name), pytest.raises(ArgumentError, match=match):
            conv_quantized(x, w, bias, *scales)
    assert ao.info()["operators"]["conv_quantized"]["cpu"]["runs"] == "aten"


def test_which_weights_the_kernel_takes(monkeypatch):
    """Those whose sums 32 bits hold, with up to 15 channels of zeros; float8 from compute capability 8.9 on."""
    x = torch.ones(1, 1, 1, 1)
    for channels, takes in ((131071 - 15, True), (131071 - 14, False)):
        assert module._kernel_takes(x, torch.ones(1, channels, 1, 1, dtype=torch.int8)) == takes
    assert not module._kernel_takes(x, torch.ones(1, 15000, 3, 3, dtype=torch.int8))
    weight = torch.ones(1, 1, 1, 1).to(torch.float8_e4m3fn)
    for capability, takes in (((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert module._kernel_takes(x, weight) == takes


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_that_broadcasts_is_added_afterwards(dtype, monkeypatch):
    use_kernel(monkeypatch)
    x, w, bias, scales, _ = quantised(dtype=dtype)
    for residual in (torch.randn(21, 1, 1), torch.randn(2, 21, 14, 15).double()):
        y = conv_quantized(x, w, bias, *scales, 1, 2, 2, residual=residual, activation="relu")
        exact = reference.conv_quantized(x, w, bias, *scales, (1, 1), (2, 2), (2, 2), 1) + residual
        torch.testing.assert_close(y.double(), exact.relu(), rtol=1e-5, atol=1e-5)
        assert y.dtype == x.dtype


def layer(dtype=torch.int8):
    torch.manual_seed(0)
    made = FusedConv2d(8, 6, 3, padding=1)
    return copy.deepcopy(made), QuantizedConv2d.of(made, torch.tensor(4 / LARGEST[dtype]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_a_scale_for_each_channel(dtype):
    """The largest weight of a channel becomes the largest number, and each is off by half a step at most."""
    wide, narrow = layer(dtype)
    largest = wide.weight.abs().amax((1, 2, 3))
    torch.testing.assert_close(narrow.weight_scale, largest / LARGEST[dtype])
    assert narrow.weight.double().abs().amax((1, 2, 3)).eq(LARGEST[dtype]).all()
    scale = narrow.weight_scale.double().view(-1, 1, 1, 1)
    off = (narrow.weight.double() * scale - wide.weight).abs()
    # e4m3 rounds to 4 bits, and below 2^-6 to multiples of 2^-9.
    step = scale if dtype == torch.int8 else torch.maximum(wide.weight.abs() / 8, scale / 512)
    assert (off <= 0.5001 * step).all()


def test_channels_of_zeros():
    wide = FusedConv2d(4, 2, 1)
    torch.nn.init.zeros_(wide.weight)
    made = QuantizedConv2d.of(wide, ONE, torch.int8)
    x = torch.ones(1, 4, 3, 3)
    assert torch.equal(made(x), made.bias.view(1, 2, 1, 1).expand(1, 2, 3, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_leave_narrow_numbers_alone(dtype):
    _, made = layer(dtype)
    before = {name: t.clone() for name, t in made.state_dict().items()}
    made.half().double().to(torch.bfloat16)
    after = made.state_dict()
    assert after["bias"].dtype == torch.bfloat16
    assert all(after[name].dtype == before[name].dtype for name in before if name != "bias")
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before if name != "bias")
    assert made(torch.randn(1, 8, 5, 5).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dicts(dtype):
    wide, made = layer(dtype)
    x = torch.randn(1, 8, 9, 9)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = QuantizedConv2d(8, 6, 3, padding=1, dtype=dtype)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), made(x))
    with pytest.raises(RuntimeError, match="weight_scale"):
        wide.load_state_dict(made.state_dict())
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"weight must be torch\.\w+ here; got torch.float32"):
            made.load_state_dict(wide.state_dict(), strict=strict)
    assert torch.equal(other(x), made(x))
    with pytest.raises(ArgumentError, match=r"dtype must be one of torch.int8"):
        QuantizedConv2d(8, 6, 3, dtype=torch.int16)
