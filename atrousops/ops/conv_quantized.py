"""conv_quantized: a convolution of int8 or float8_e4m3fn numbers, with residual and activation, for inference."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from atrousops import reference
from atrousops.common.checks import bad_choice, bad_type, bad_value, check_device, check_floating
from atrousops.common.conv_arguments import Arguments, check_conv, output_size
from atrousops.common.values import transformed
from atrousops.dispatch import backends, libraries
from atrousops.ops._conv_epilogue import ACTIVATIONS
from atrousops.ops._prepacked import prepacked
from atrousops.ops._register import foreign, jit_traces, register
from atrousops.ops.conv import conv2d
from atrousops.reference.conv_quantized import LARGEST, quantize

_NAME = "conv_quantized"
_INPUTS = (torch.float32, torch.bfloat16, torch.float16)
# Products of int8 whose sum 32 bits surely hold; the kernel adds channels of zeros, so that a group's fill 16 bytes.
_MOST_PRODUCTS, _MOST_ZEROS = (2**31 - 1) // 128**2, 15
# oneDNN reads activations as uint8, in which this value means zero.
_ZERO = 128


def conv_quantized(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    weight_scale: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(convolution of quantised numbers + bias + residual), without gradients.

    y[n, k, o] = bias[k] + input_scale weight_scale[k] sum over r, c of weight[k, c, r] q[n, c, stride o + dilation r -
    padding], where q is the input divided by its scale, rounded half to even and clamped to what weight's dtype holds.
    On a CPU with VNNI (oneDNN), and on GPUs from compute capability 8.0 on (our kernel), int8 products are summed in
    32-bit integers. On GPUs from 8.9 on our kernel multiplies float8 and sums in fp32, or in what their tensor cores
    have for that. No GPU has run these kernels yet. Otherwise, and in graphs, `conv2d` sums in fp32, in which the
    products of both dtypes are exact; so do GPUs with kernels that `atrousops selfcheck` has not found right.

    Shapes:
        input: (N, C, H, W) or (C, H, W), float32, bfloat16 or float16; int8 cannot represent NaN.
        weight: (K, C / groups, R, S), int8 or float8_e4m3fn.
        input_scale: one positive number, float32; weight_scale: (K,), float32.
        residual: broadcasts with the output, or None. activation: None or a name that `conv2d` takes.
        output: as conv2d's, in the input's dtype, rounded once; channels_last where 8 bits are multiplied.

    Raises:
        ArgumentError, ArgumentTypeError: shapes or dtypes that do not fit.

    Source: torchao's conventions: a static scale for the tensor of activations (PerTensor), one for each row of
    weights (PerRow), both symmetric.
    """
    _check(input, weight, bias, input_scale, weight_scale, activation)
    scales, around = (input_scale, weight_scale), (stride, padding, dilation, groups)
    body = _body(input, weight)
    if body is _by_kernel:
        return _by_kernel(input, weight, bias, scales, around, residual, activation)
    if body is not _dequantized and input.dim() == 3:
        y = body(input.unsqueeze(0), weight, bias, scales, around, None if residual is not None else activation)
        y = y.squeeze(0)
    else:
        y = body(input, weight, bias, scales, around, None if residual is not None else activation)
    return (y if residual is None else _finished(y, residual, activation)).to(input.dtype)


def _finished(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    y = y if residual is None else y + residual
    return y if activation is None else ACTIVATIONS[activation].function(y)


def _check(
    input: Tensor, weight: Tensor, bias: Tensor | None, input_scale: Tensor, weight_scale: Tensor, activation: Any
) -> None:
    check_floating(_NAME, "input", input, _INPUTS)
    check_floating(_NAME, "weight", weight, LARGEST)
    for name, scale, shape in (("input_scale", input_scale, ()), ("weight_scale", weight_scale, weight.shape[:1])):
        if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
            got = scale.dtype if isinstance(scale, Tensor) else type(scale).__name__
            bad_type(_NAME, name, "be a tensor of float32", got)
        if scale.shape != shape:
            bad_value(_NAME, name, f"have shape {tuple(shape)}", tuple(scale.shape))
    check_device(_NAME, "input", input, weight=weight, bias=bias, input_scale=input_scale, weight_scale=weight_scale)
    if bias is not None and bias.shape != weight.shape[:1]:
        bad_value(_NAME, "bias", f"have shape {tuple(weight.shape[:1])}", tuple(bias.shape))
    if activation is not None and activation not in ACTIVATIONS:
        bad_choice(_NAME, "activation", ACTIVATIONS, activation)
    if torch.is_grad_enabled() and input.requires_grad:
        remedy = "Call it in torch.no_grad(), or detach the input."
        bad_value(_NAME, "input", "want no gradient, as rounding has none", "one that requires it", remedy)


def _body(input: Tensor, weight: Tensor) -> Any:
    """The implementation for these tensors."""
    backend = backends.choose(_NAME, input.device, input.dtype)
    if backend == "reference":
        return _reference
    if torch.compiler.is_compiling() or jit_traces() or transformed() or foreign(input, weight):
        return _dequantized
    real = type(input) is not FakeTensor and input.numel() * weight.numel() > 0
    if real and backend == "cuda":
        return _by_kernel if _kernel_takes(input, weight) else _dequantized
    integers = real and weight.dtype == torch.int8 and input.is_cpu and torch.backends.mkldnn.enabled and _has_vnni()
    return _by_onednn if integers else _dequantized


def chosen(input: Tensor, weight: Tensor) -> str:
    """What computes a call with these tensors: "reference", "onednn", "cuda", or "dequantised" for `conv2d` in fp32."""
    body = _body(input, weight)
    return {_reference: "reference", _by_onednn: "onednn", _by_kernel: "cuda"}.get(body, "dequantised")


def _kernel_takes(input: Tensor, weight: Tensor) -> bool:
    if weight.dtype == torch.int8:
        return (weight.shape[1] + _MOST_ZEROS) * weight[0, 0].numel() <= _MOST_PRODUCTS
    return torch.cuda.get_device_capability(input.device) >= (8, 9)


@cache
def _has_vnni() -> bool:
    """Whether oneDNN sums products of 8 bits in 32: older instructions saturate pairs of them in 16.

    PyTorch's main branch after 2.14 has these operators for XPU only.
    """
    if not all(map(_runs_on_cpu, ("onednn::qconv_pointwise", "onednn::qconv_prepack"))):
        return False
    return bool(torch.cpu._is_vnni_supported()) and _sums_exactly()


def _runs_on_cpu(name: str) -> bool:
    return torch._C._dispatch_has_kernel(name) and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


def _sums_exactly() -> bool:
    """Whether sums of the largest numbers are exact: ONEDNN_MAX_CPU_ISA can select the older instructions."""
    x, scales = torch.full((1, 64, 4, 4), 127.0, device="cpu"), torch.ones(16, device="cpu")
    w = torch.full((16, 64, 1, 1), 127, dtype=torch.int8, device="cpu")
    y = _by_onednn(x, w, None, (scales[0], scales), (1, 0, 1, 1), None)
    return bool(y.eq(64 * 127**2).all())


def _reference(input: Tensor, weight: Tensor, bias: Any, scales: Any, around: Any, activation: str | None) -> Tensor:
    a = _arguments(quantize(input, scales[0], weight.dtype), weight, around)
    geometry = (a.stride, a.padding, a.dilation, a.groups)
    y = reference.conv_quantized(input, weight, bias, scales[0], scales[1], *geometry)
    return y if activation is None else ACTIVATIONS[activation].function(y)


def _arguments(q: Tensor, weight: Tensor, around: tuple[Any, ...]) -> Arguments:
    return check_conv(_NAME, 2, q, weight, None, *around)


def _dequantized(input: Tensor, weight: Tensor, bias: Any, scales: Any, around: Any, activation: str | None) -> Tensor:
    """The sums by a convolution in fp32 of the narrow numbers, in which their products are exact."""
    q = quantize(input, scales[0], weight.dtype)
    if torch.is_autocast_enabled(input.device.type):
        with torch.autocast(input.device.type, enabled=False):
            y = conv2d(q.float(), weight.float(), None, *around)
    else:
        y = conv2d(q.float(), weight.float(), None, *around)
    y = y * (scales[0] * scales[1]).view(-1, 1, 1)
    y = y if bias is None else y + bias.float().view(-1, 1, 1)
    return y if activation is None else ACTIVATIONS[activation].function(y)


class _Packed(NamedTuple):
    """Weights in oneDNN's format, the scale of inputs as a number, and the weights' zero points."""

    weight: Tensor
    scale: float
    zeros: Tensor


def _by_kernel(
    input: Tensor, weight: Tensor, bias: Any, scales: Any, around: Any, residual: Tensor | None, activation: str | None
) -> Tensor:
    """With residual and activation, where the kernel knows them; otherwise it leaves fp32 for those."""
    # As wide as the input, in the weights' dtype: what is checked is its shape.
    a = _arguments(weight.detach().as_strided(input.shape, (0,) * input.dim()), weight, around)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    size = output_size(x.shape, weight.shape, a)
    knows = activation in (None, "relu")
    if residual is not None:
        knows = knows and residual.dtype == x.dtype and residual.shape == size[4 - input.dim() :]
    added = residual if knows else None
    if added is not None and input.dim() == 3:
        added = added.unsqueeze(0)
    geometry = (a.stride, a.padding, a.dilation, a.groups)
    y: Tensor = _kernel(x, weight, bias, *scales, added, *geometry, knows and activation == "relu", not knows)
    y = y if input.dim() == 4 else y.squeeze(0)
    return y if knows else _finished(y, residual, activation).to(input.dtype)


def _by_onednn(input: Tensor, weight: Tensor, bias: Any, scales: Any, around: Any, activation: str | None) -> Tensor:
    signed = input.float().mul(scales[0].reciprocal()).round_().clamp_(-128, 127).to(torch.int8)
    q = signed.view(torch.uint8).add_(_ZERO)
    a = _arguments(q.view(torch.int8), weight, around)
    if a.padding[:2] != a.padding[-2:]:
        top, left, bottom, right = a.padding
        q, a = F.pad(q, (left, right, top, bottom), value=_ZERO), a._replace(padding=(0, 0))
    geometry = (a.stride, a.padding[:2], a.dilation, a.groups)
    packed = _packed_of(weight, scales, geometry)
    name, numbers = ("none", ()) if activation is None else ACTIVATIONS[activation][1:]
    bias = None if bias is None else bias.float()
    qconv = torch.ops.onednn.qconv_pointwise
    of_input, of_weight = (q, packed.scale, _ZERO), (packed.weight, scales[1], packed.zeros)
    y: Tensor = qconv(*of_input, *of_weight, bias, *geometry, 1.0, 0, torch.float32, name, list(numbers), "")
    return y


def _packed_of(weight: Tensor, scales: tuple[Tensor, Tensor], geometry: tuple[Any, ...]) -> _Packed:
    def make() -> _Packed:
        scale = float(scales[0])
        inner = torch.ops.onednn.qconv_prepack(weight.detach(), scales[1], scale, _ZERO, *geometry)
        return _Packed(inner, scale, torch.zeros(len(weight), dtype=torch.int64))

    return prepacked(weight, scales, geometry, make)


def _fake(
    input, weight, bias, input_scale, weight_scale, residual, stride, padding, dilation, groups, relu, float32
) -> Tensor:
    size = output_size(input.shape, weight.shape, Arguments(tuple(stride), tuple(padding), tuple(dilation), groups, ()))
    y = input.new_empty(size, dtype=torch.float32 if float32 else input.dtype)
    return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y


_kernel: Any = register(_NAME, fake=_fake) if libraries.cuda.problem is None else None
