"""Argument checks of conv and conv_transpose. Messages begin with PyTorch's phrase, if it has one, and add a remedy."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from atrousops.common.checks import bad_type, bad_value, check_device
from atrousops.common.values import is_autocast

_INT64 = 1 << 63
_HUGE = 1 << 31
_C_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "c10::Half",
    torch.bfloat16: "c10::BFloat16",
}


class Arguments(NamedTuple):
    """Checked arguments, one entry per spatial axis; `padding` holds all the low sides, then all the high ones."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...]


def output_size(input_size: Sequence[int], weight_size: Sequence[int], a: Arguments) -> tuple[int, ...]:
    """(N, K, *) of a convolution of (N, C, *) with weights (K, C / groups, *)."""
    rank = len(a.stride)
    axes = zip(input_size[2:], a.padding[:rank], a.padding[-rank:], a.dilation, weight_size[2:], a.stride)
    sizes = [(i + lo + hi - d * (k - 1) - 1) // s + 1 for i, lo, hi, d, k, s in axes]
    return (input_size[0], weight_size[0], *sizes)


def transposed_size(input_size: Sequence[int], kernel_size: Sequence[int], a: Arguments) -> tuple[int, ...]:
    """The spatial sizes of the result of a transposed convolution of (N, K, *)."""
    axes = zip(input_size[2:], a.stride, a.padding, a.dilation, kernel_size, a.output_padding)
    return tuple([(i - 1) * s - 2 * p + d * (k - 1) + e + 1 for i, s, p, d, k, e in axes])


def in_pytorch_alone(sizes: Sequence[int], a: Arguments) -> bool:
    """Whether it is a transposed convolution without outputs, which passed its check and which kernels refuse."""
    return min(sizes) < 1 or any([e >= max(s, d) for e, s, d in zip(a.output_padding, a.stride, a.dilation)])


def check_conv(
    op: str, rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Arguments:
    """Raises ArgumentError or ArgumentTypeError if PyTorch would not accept these arguments for a convolution."""
    _check_tensors(op, input, weight, bias)
    groups = _check_groups(op, groups)
    stride = _positive(op, "stride", _ints(op, "stride", stride, rank), "non-positive stride is not supported.")
    dilation = _ints(op, "dilation", dilation, rank)
    _positive(op, "dilation", dilation, "dilation should be greater than zero.")
    padding = padding.decode("ascii", "replace") if isinstance(padding, bytes) else padding
    text = padding if isinstance(padding, str) else None
    if text is None:
        padding = _not_negative(
            op, "padding", _ints(op, "padding", padding, rank), "negative padding is not supported."
        )
    _check_ranks(op, rank, input, weight)
    _check_weight(op, weight, groups)
    if input.shape[-rank - 1] != weight.shape[1] * groups:
        why = f"weight.shape[1] * groups = {weight.shape[1]} * {groups}"
        remedy = f"Give weight {input.shape[-rank - 1] // groups} input channels a group."
        _bad_channels(op, rank, input, weight, f"groups={groups}", weight.shape[1] * groups, why, remedy)
    _check_bias(op, weight, bias, weight.shape[0], "")
    kernel = tuple(weight.shape[2:])
    if text is not None:
        low, high = _text_padding(op, text, kernel, stride, dilation)
    else:
        low = high = padding
    padded = [size + lo + hi for size, lo, hi in zip(input.shape[-rank:], low, high)]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    if any(e > p for e, p in zip(extent, padded)):
        phrase = (
            f"Calculated padded input size per channel: ({_by(padded)}). Kernel size: ({_by(extent)}). "
            "Kernel size can't be greater than actual input size: add padding or lower dilation."
        )
        rule = f"be at least as large as the dilated kernel, {_by(extent)}, once padded"
        bad_value(op, "input", rule, _by(padded), phrase)
    size = [(p - e) // s + 1 for p, e, s in zip(padded, extent, stride)]
    _check_count(op, "padding", tuple(low), (*input.shape[:-rank], weight.shape[0], *size), padded)
    # A step beyond the map takes nobody anywhere; times a size it would leave 64 bits.
    if max(stride) > _HUGE:
        stride = tuple([min(s, max(p, 1)) for s, p in zip(stride, padded)])
    # One tap has no distance to others, and oneDNN (PyTorch 2.14) may crash where it is given one.
    dilation = tuple([1 if d > 1 and k == 1 else d for d, k in zip(dilation, kernel)])
    return Arguments(stride, low if low == high else low + high, dilation, groups, ())


def check_conv_transpose(
    op: str,
    rank: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> Arguments:
    """Raises ArgumentError or ArgumentTypeError if PyTorch would not accept these for a transposed convolution."""
    _check_tensors(op, input, weight, bias)
    groups = _check_groups(op, groups)
    stride = _positive(op, "stride", _ints(op, "stride", stride, rank), "non-positive stride is not supported.")
    dilation = _ints(op, "dilation", dilation, rank)
    _positive(op, "dilation", dilation, "dilation should be greater than zero.")
    padding = _not_negative(op, "padding", _ints(op, "padding", padding, rank), "negative padding is not supported.")
    extra = _ints(op, "output_padding", output_padding, rank)
    _not_negative(op, "output_padding", extra, "negative output_padding is not supported.")
    _check_ranks(op, rank, input, weight)
    _check_weight(op, weight, groups)
    if input.shape[-rank - 1] != weight.shape[0]:
        remedy = f"Give weight {input.shape[-rank - 1]} at dimension 0."
        _bad_channels(op, rank, input, weight, "transposed=1", weight.shape[0], "weight.shape[0]", remedy)
    _check_bias(op, weight, bias, weight.shape[1] * groups, "transposed=1, ")
    a = Arguments(stride, padding, dilation, groups, extra)
    batched = input if input.dim() == rank + 2 else input.unsqueeze(0)
    if any([e >= max(s, d) for e, s, d in zip(extra, stride, dilation)]) and batched.shape[0] > 0:
        phrase = "output padding must be smaller than either stride or dilation."
        bad_value(op, "output_padding", "be smaller than stride or dilation on every axis", extra, phrase)
    sizes = transposed_size(batched.shape, weight.shape[2:], a)
    if min(sizes) < 1 and not (min(sizes) == 0 and _may_be_without_outputs(batched, weight, a)):
        rule = "leave an output of at least 1 on every axis"
        phrase = (
            f"Given input size per channel: ({_by(input.shape[-rank:])}). Calculated output size per channel: "
            f"({_by(sizes)}). Output size is too small: lower padding."
        )
        bad_value(op, "padding", rule, f"an output of {_by(sizes)}", phrase)
    name, steps = ("stride", stride) if max(stride) > max(dilation) else ("dilation", dilation)
    _check_count(op, name, steps, (*input.shape[:-rank], weight.shape[1] * groups, *sizes), sizes)
    # As in check_conv, where the stride alone allows the output padding.
    taps = zip(dilation, weight.shape[2:], extra, stride)
    return a._replace(dilation=tuple([1 if d > 1 and k == 1 and e < s else d for d, k, e, s in taps]))


def _may_be_without_outputs(input: Tensor, weight: Tensor, a: Arguments) -> bool:
    """Whether PyTorch answers a transposed convolution without outputs: of an empty batch, and where oneDNN runs."""
    if input.shape[0] == 0:
        return True
    if torch.compiler.is_compiling() or input.numel() == 0 or not (input.is_cpu and weight.is_cpu):
        return False
    parts = a.stride, a.padding, a.dilation, True, a.output_padding, a.groups
    chosen: Any = torch._C._select_conv_backend(input, weight, None, *parts, None)
    return not chosen.name.startswith("Slow")


def _check_count(op: str, name: str, values: tuple[int, ...], size: Sequence[int], lengths: Sequence[int]) -> None:
    """Raises ArgumentError, about the argument that did it, where a result or a padded map leaves 64 bits."""
    count = 1
    for n in (*size, *lengths):
        if type(n) is not int:
            return
    for n in size:
        count *= max(n, 1)
    if count >= _INT64 or max(lengths) >= _INT64:
        rule = "keep the output below 2^63 elements and the padded input below 2^63 positions"
        bad_value(op, name, rule, values, f"Use a smaller {name}.")


def _check_tensors(op: str, input: Any, weight: Any, bias: Any) -> None:
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            bad_type(op, name, "be a Tensor", type(value).__name__)
    for name, value in [("weight", weight)] if bias is None else [("weight", weight), ("bias", bias)]:
        # Of an input on meta PyTorch tells the shape that weights anywhere make of it.
        if value.device != input.device and not input.is_meta:
            remedy = f"{_types(input, name, value)}: use {name}.to(input.device)."
            check_device(op, "input", input, remedy, **{name: value})
        if value.dtype != input.dtype and not is_autocast(input.device.type):
            # PyTorch checks the bias first.
            also = name == "weight" and bias is not None and bias.dtype != input.dtype
            of_bias = f"{_types(input, 'bias', bias)}, " if also else ""
            phrase = f"{of_bias}{_types(input, name, value)}: use {name}.to(input.dtype)."
            bad_type(op, name, f"have input's dtype, {input.dtype}", value.dtype, phrase)


def _types(input: Tensor, name: str, value: Tensor) -> str:
    """PyTorch's message about the two, on either device."""
    if name == "bias" and input.dtype in _C_TYPES and value.dtype in _C_TYPES and input.device == value.device:
        return f"Input type ({_C_TYPES[input.dtype]}) and bias type ({_C_TYPES[value.dtype]}) should be the same"
    theirs, ours = input.type(), value.type()
    phrase = f"Input type ({theirs}) and {name} type ({ours}) should be the same"
    if value.dtype != input.dtype and input.device == value.device:
        theirs, ours = (t.rpartition(".")[2].removesuffix("Tensor") for t in (theirs, ours))
        phrase += f", expected scalar type {theirs} but found {ours}"
    return phrase


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _check_groups(op: str, groups: Any) -> int:
    if isinstance(groups, (tuple, list)):
        bad_type(op, "groups", "be an int", repr(groups))
    (groups,) = _ints(op, "groups", groups, 1)
    _positive(op, "groups", (groups,), "non-positive groups is not supported.")
    return groups


def _ints(op: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    many = isinstance(value, (tuple, list))
    values = value if many else (value,)
    try:
        ints = tuple(operator.index(v) for v in values)
    except (TypeError, RuntimeError):
        ints = ()
    if len(ints) != len(values) or any([isinstance(v, bool) for v in values]):
        bad_type(op, name, f"be an int or a tuple of {rank} ints" if rank > 1 else "be an int", repr(value))
    if any([not -_INT64 <= v < _INT64 for v in ints]):
        phrase = "Overflow when unpacking long long: give what fits into 64 bits."
        (bad_type if many else bad_value)(op, name, "be smaller than 2^63", repr(value), phrase)
    if len(ints) not in (1, rank):
        phrase = (
            f"expected {name} to be a single integer value or a list of {rank} values to match the convolution "
            f"dimensions, but got {name}={list(ints)}."
        )
        bad_value(op, name, f"have 1 or {rank} entries" if rank > 1 else "have 1 entry", repr(value), phrase)
    return ints * rank if len(ints) == 1 else ints


def _positive(op: str, name: str, values: tuple[int, ...], phrase: str) -> tuple[int, ...]:
    if min(values) < 1:
        bad_value(op, name, "be positive", values, phrase + " Use 1 or more.")
    return values


def _not_negative(op: str, name: str, values: tuple[int, ...], phrase: str) -> tuple[int, ...]:
    if min(values) < 0:
        bad_value(op, name, "not be negative", values, phrase + " Use 0 or more, or slice the input.")
    return values


def _check_ranks(op: str, rank: int, input: Tensor, weight: Tensor) -> None:
    got = tuple(weight.shape)
    if weight.dim() < 3:
        phrase = "weight should have at least three dimensions"
        bad_value(op, "weight", f"have {rank + 2} dimensions", got, f"{phrase}: (output, input / groups, kernel).")
    if weight.dim() != rank + 2:
        d = weight.dim()
        phrase = f"Expected {d}-dimensional input for {d}-dimensional weight"
        bad_value(op, "weight", f"have {rank + 2} dimensions", got, f"{phrase}: use conv{d - 2}d, or another weight.")
    if input.dim() not in (rank + 1, rank + 2):
        expected = f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {op}"
        phrase = f"{expected}, but got input of size: {list(input.shape)}."
        bad_value(op, "input", f"have {rank + 1} or {rank + 2} dimensions", tuple(input.shape), phrase)
    if min(weight.shape[2:]) < 1:
        phrase = "kernel size should be greater than zero."
        bad_value(op, "weight", "have a kernel of at least 1 on every axis", got, phrase)


def _check_weight(op: str, weight: Tensor, groups: int) -> None:
    k, got = weight.shape[0], tuple(weight.shape)
    expected, but = f"Given groups={groups}, expected weight to be", f"but got weight of size {list(got)} instead"
    if k < groups:
        phrase = f"{expected} at least {groups} at dimension 0, {but}."
        bad_value(op, "weight", "have a channel for every group", got, phrase)
    if k % groups:
        phrase = f"{expected} divisible by {groups} at dimension 0, {but}."
        bad_value(op, "weight", f"have a multiple of groups = {groups} at dimension 0", got, phrase)


def _bad_channels(
    op: str, rank: int, input: Tensor, weight: Tensor, given: str, channels: int, why: str, remedy: str
) -> NoReturn:
    # PyTorch's message has the batch dimension of one that it adds.
    size = list(input.shape) if input.dim() == rank + 2 else [1, *input.shape]
    phrase = (
        f"Given {given}, weight of size {list(weight.shape)}, expected input{size} to have {channels} channels, "
        f"but got {size[1]} channels instead. {remedy}"
    )
    bad_value(op, "input", f"have {channels} channels ({why})", tuple(input.shape), phrase)


def _check_bias(op: str, weight: Tensor, bias: Tensor | None, channels: int, given: str) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        phrase = (
            f"Given {given}weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {channels} "
            f"elements, but got bias of size {list(bias.shape)} instead."
        )
        bad_value(op, "bias", f"have shape ({channels},)", tuple(bias.shape), phrase)


def _text_padding(
    op: str, text: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if text == "valid":
        zeros = (0,) * len(kernel)
        return zeros, zeros
    if text != "same":
        phrase = f"Invalid padding string: {text!r}."
        bad_value(op, "padding", "be 'same', 'valid', an int or a tuple of ints", repr(text), phrase)
    if max(stride) > 1:
        phrase = "padding='same' is not supported for strided convolutions: give numbers."
        bad_value(op, "padding", "be a number where stride is not 1", "'same'", phrase)
    total = tuple(d * (k - 1) for d, k in zip(dilation, kernel))
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def computed_in(input: Tensor) -> torch.dtype:
    """The dtype in which PyTorch computes a convolution of this tensor: under autocast it lowers all but float64."""
    kind = input.device.type
    # Not by is_autocast: the first call of a shape enters no file that it needs not.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input.dtype
    lowers = input.is_floating_point() and input.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if lowers else input.dtype
