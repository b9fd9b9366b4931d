"""explain: which kernel runs a call, why, and the least that it must move and compute."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from atrousops import ops
from atrousops.common.checks import bad_type
from atrousops.common.conv_arguments import computed_in
from atrousops.dispatch import backends, choice, planner
from atrousops.dispatch.planner import CallArguments
from atrousops.surgery.explain_row import Row
from atrousops.surgery.explain_stacks import settle_branches, settle_context

# PyTorch's own form of operators that this package has, and what they are called here.
_STOCK: dict[Any, str] = {
    getattr(torch.nn.functional, f"{name}{rank}d{suffix}"): f"{name}{rank}d"
    for name, suffixes in (
        ("conv", [""]),
        ("conv_transpose", [""]),
        ("max_pool", ["", "_with_indices"]),
        ("max_unpool", [""]),
    )
    for suffix in suffixes
    for rank in (1, 2, 3)
}
# What small calls go to.
_STOCK |= {
    torch.max_pool1d: "max_pool1d",
    torch.max_pool1d_with_indices: "max_pool1d",
    torch.max_pool2d: "max_pool2d",
    torch.max_pool3d: "max_pool3d",
    torch._C._nn.max_pool2d_with_indices: "max_pool2d",
    torch._C._nn.max_pool3d_with_indices: "max_pool3d",
    torch._C._nn.max_unpool2d: "max_unpool2d",
    torch._C._nn.max_unpool3d: "max_unpool3d",
}
_STOCK_OPERATORS = {"torchvision::roi_align": "roi_align", "torchvision::roi_pool": "roi_pool"}
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

# What layers call in the place of a public function, and which functions are looked for.
_INSTEAD, _PUBLIC = {"lattice_of": "permutohedral_lattice"}, {*ops.__all__, "conv_quantized"}


@dataclass
class Explanation:
    """The operator calls in order. Prints as a table, or in detail if there is only one."""

    rows: list[Row]

    @property
    def flops(self) -> float:
        """Dense floating-point operations of all calls."""
        return sum(row.flops for row in self.rows)

    @property
    def live_flops(self) -> float:
        """Those that do not multiply padding."""
        return sum(row.flops * row.live_share for row in self.rows)

    @property
    def bytes(self) -> float:
        """Bytes of all calls, every tensor of a call touched once."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "no operator of this package, and none of PyTorch's that it has too"
        return "\n".join(_detail(self.rows[0]) if len(self.rows) == 1 else _table(self))


def explain(call: Callable[..., Any], *inputs: Any, **kwargs: Any) -> Explanation:
    """Says which kernel runs each dense operator of a call, why, and the least it must move and compute.

    Runs `call(*inputs, **kwargs)` once and watches. Give it fake tensors to spend nothing: a model then runs on fake
    copies of its own weights. Stock layers are listed too, with what they would run on once converted;
    normalisations, activations and the like are not. What torch.compile has made is watched uncompiled.

    Args:
        call: a module of any size, one of `atrousops.functional`, or any function that calls them.
        inputs, kwargs: its arguments.

    Returns:
        An Explanation: print it, or read its `.rows`.

    Raises:
        ArgumentTypeError: `call` cannot be called. What the call itself raises passes through.
    """
    if not callable(call):
        bad_type("explain", "call", "be a module or a function", type(call).__name__)
    call = getattr(call, "_orig_mod", call)
    recorder = _Recorder(call)
    fake = next((leaf for leaf in pytree.tree_leaves((inputs, kwargs)) if isinstance(leaf, FakeTensor)), None)
    with torch.compiler.set_stance("force_eager"):
        if fake is not None and isinstance(call, nn.Module):
            mode = fake.fake_mode
            tensors = {**dict(call.named_parameters()), **dict(call.named_buffers())}
            weights: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
            with mode, recorder:
                torch.func.functional_call(call, weights, inputs, kwargs)
        else:
            with recorder:
                call(*inputs, **kwargs)
    return Explanation(recorder.rows)


class _Recorder(TorchFunctionMode):
    """Sees every call of PyTorch and of our operators, and learns from the Python stack on whose behalf it is made.

    So no operator or layer has to know that it can be watched, and not being watched costs nothing.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.rows: list[Row] = []
        modules = call.named_modules() if isinstance(call, nn.Module) else ()
        self._names = {id(module): name or type(module).__name__ for name, module in modules}
        # Kept alive while its call is the last one, so that no other frame can be taken for it.
        self._frame: FrameType | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        ours, stock = _identify(func)
        here = sys._getframe(1)
        public, inside_reference = _public_call(here)
        if public is not None:
            if public is not self._frame:
                self._frame = public
                self.rows.append(_row(self._module(here), _name(public), public.f_locals))
            # An operator bears one name on every floor; what else a function calls are its helpers.
            fused = getattr(func, "__name__", "").startswith(("_convolution_pointwise", "qconv_pointwise"))
            main = stock or fused or ours.split("_")[0] == re.sub(r"[123]d$", "", _name(public)).split("_")[0]
            stack = _name(public) == "context_module"
            if (main or (stack and ours)) and not inside_reference:
                _settle(self.rows[-1], ours, fake=any(isinstance(arg, FakeTensor) for arg in args))
                if stack:
                    settle_context(self.rows[-1], ours, public.f_locals)
                elif _name(public) == "conv_branches":
                    settle_branches(self.rows[-1], ours, public.f_locals)
                _count_bytes(self.rows[-1], (args, kwargs, result))
        elif stock:
            row = _row(self._module(here), stock, _named_arguments(stock, args, kwargs))
            row.backend = row.kernel = "aten"
            instead = f"ours: {row.plan.kernel}" if row.plan else f"ours: atrousops.functional.{stock}"
            row.reason = f"stock, not converted ({instead})"
            _count_bytes(row, (args, kwargs, result))
            self.rows.append(row)
        return result

    def _module(self, frame: FrameType | None) -> str:
        while frame is not None and self._names:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in self._names:
                return self._names[id(owner)]
            frame = frame.f_back
        return ""


def _identify(func: Any) -> tuple[str, str]:
    """The name of an operator of ours, or the public name of what PyTorch has as well; empty where it is neither."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        name = packet._qualified_op_name
        return (name.removeprefix("atrousops::") if name.startswith("atrousops::") else ""), _STOCK_OPERATORS.get(
            name, ""
        )
    return "", _STOCK.get(func, "")


def _name(frame: FrameType) -> str:
    return _INSTEAD.get(frame.f_code.co_name, frame.f_code.co_name)


def _public_call(frame: FrameType | None) -> tuple[FrameType | None, bool]:
    """The outermost public function of ours that this frame works for, and whether its reference does."""
    found, inside_reference = None, False
    while frame is not None and frame.f_code is not explain.__code__:
        where = frame.f_globals.get("__name__", "")
        if where.startswith("atrousops.ops") and _name(frame) in _PUBLIC:
            found = frame
        inside_reference |= where.startswith("atrousops.reference")
        frame = frame.f_back
    return found, inside_reference


def _row(module: str, operator: str, arguments: dict[str, Any]) -> Row:
    input = next(value for value in arguments.values() if isinstance(value, Tensor))
    multiplied = arguments["weight"] if operator == "conv_quantized" else input
    row = Row(
        module,
        operator,
        tuple(input.shape),
        computed_in(multiplied) if operator.startswith("conv") else input.dtype,
        _is_channels_last(input),
        backend="reference",
        kernel="reference",
        reason=_why_not_ours(operator, input),
        device=_compiled_for(input),
        own=backends.own(re.sub(r"[123]d$", "", operator), input.device, input.dtype),
    )
    if operator.startswith("conv") and operator != "conv_branches" and row.dtype in backends.FLOATING:
        row.plan = _plan(operator, arguments, input, row.dtype)
        row.bytes = row.plan.bytes_floor
    return row


def _settle(row: Row, ours: str, fake: bool) -> None:
    """Fills in who runs the row, from the operator that was called for it: one of ours, or PyTorch's."""
    planned = row.plan is not None and row.plan.kernel != "aten"
    # Fake tensors go to PyTorch's operator whatever is planned for real ones.
    forced = backends.forced()
    meant = (row.own if planned else "") if forced is None else forced
    if ours or (fake and meant in backends.COMPILED):
        row.backend = forced or row.own
        # Where Triton is forced beside a CUDA library the plan is of that one's kernels.
        theirs = row.backend == "triton" and row.plan is not None and row.plan.kernel not in planner.kernels("triton")
        if row.plan is not None and planned and not theirs:
            row.kernel, row.reason = row.plan.kernel, row.plan.reason
        elif row.plan is None or row.backend == "triton":
            row.kernel = ours or re.sub(r"[123]d$", "", row.operator)
            row.reason = "our Triton kernel" if row.backend == "triton" else "our kernel"
        else:
            row.kernel = ours
        if ours == "conv_epilogue":
            row.reason += ", residual and activation in its launch"
    elif row.backend not in backends.COMPILED:
        # An operator of ours may still use PyTorch's for a part.
        row.backend = row.kernel = "aten"
        if row.plan is not None and not planned:
            row.reason = row.plan.reason


def _why_not_ours(operator: str, input: Tensor) -> str:
    if backends.forced() is not None:
        return f"forced by backend({backends.forced()!r})"
    op = re.sub(r"[123]d$", "", operator)
    if backends.own(op, input.device, input.dtype):
        return "PyTorch's own operator"
    if unproved := backends.unproved(op, input.device, input.dtype):
        return unproved
    verdict = backends.can_run(_compiled_for(input), op, input.device, input.dtype)
    return "PyTorch's own operator" if verdict.ok else verdict.reason


def _compiled_for(input: Tensor) -> str:
    """The device that the planner knows for a tensor's; the CPU for one that it does not."""
    return input.device.type if input.device.type in backends.PLANNED else "cpu"


def _count_bytes(row: Row, tensors: Any) -> None:
    if row.plan is None:
        unique = {id(leaf): leaf for leaf in pytree.tree_leaves(tensors) if isinstance(leaf, Tensor)}
        row.bytes += sum(leaf.numel() * leaf.element_size() for leaf in unique.values())


def _plan(operator: str, arguments: dict[str, Any], input: Tensor, dtype: torch.dtype) -> planner.Plan:
    rank = int(operator[-2])
    weight, padding = arguments["weight"], arguments.get("padding", 0)

    def per_axis(value: Any) -> tuple[int, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * rank if len(values) == 1 else values

    dilation = per_axis(arguments.get("dilation", 1))
    if isinstance(padding, str):
        total = [d * (r - 1) if padding == "same" else 0 for d, r in zip(dilation, weight.shape[2:])]
        padding = [*(t // 2 for t in total), *(t - t // 2 for t in total)]
    tensors = (input, weight, arguments.get("bias"))
    call = CallArguments(
        "transposed" if "transpose" in operator else "forward",
        tuple(input.shape) if input.dim() == rank + 2 else (1, *input.shape),
        tuple(weight.shape),
        per_axis(arguments.get("stride", 1)),
        per_axis(padding),
        dilation,
        arguments.get("groups", 1),
        per_axis(arguments.get("output_padding", 0)) if "transpose" in operator else (),
    )
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return choice.plan_call(call, dtype, not input.is_contiguous(), needs_grad, _compiled_for(input))


def _named_arguments(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = _CONV_TRANSPOSE if "transpose" in operator else _CONV
    # Only the convolutions are planned; of the others the first tensor is enough.
    return dict(zip(names, args)) | kwargs


def _is_channels_last(input: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if input.dim() not in formats or input.is_contiguous():
        return False
    return input.is_contiguous(memory_format=formats[input.dim()])


def _detail(row: Row) -> list[str]:
    what = f"{row.operator} on {row.shape} {str(row.dtype).removeprefix('torch.')}"
    lines = [
        (f"{row.module}: " if row.module else "") + what + (" channels_last" if row.channels_last else ""),
        f"  kernel      {row.kernel}" + (f" ({row.backend})" if row.backend != row.kernel else ""),
        f"  reason      {row.reason}",
    ]
    if row.plan is None:
        return [*lines, f"  floor       {row.bytes / 1e6:.2f} MB"] if row.bytes else lines
    live = row.flops * row.live_share
    lines += [
        f"  live taps   {row.live_share:.1%} in {row.plan.regions} regions",
        f"  floor       {row.flops / 1e9:.3f} GFLOP dense, {live / 1e9:.3f} live; {row.bytes / 1e6:.2f} MB",
    ]
    if row.kernel == row.plan.kernel and row.plan.seconds > 0:
        lines.append(f"  predicted   {row.plan.seconds * 1e3:.3f} ms")
        if row.plan.boxes is not None:
            lines.append(f"  boxes       {row.plan.boxes}")
    lost = [c for c in row.plan.candidates if c.kernel != row.kernel]
    reasons = [f"{c.kernel}: {c.reason or f'predicted {c.seconds * 1e3:.3f} ms'}" for c in lost]
    return lines + [f"  {'' if i else 'not':<11} {reason}" for i, reason in enumerate(reasons)]


def _table(explanation: Explanation) -> list[str]:
    header = ("module", "operator", "input", "kernel", "live", "GFLOP", "MB", "reason")
    cells = [header]
    for row in explanation.rows:
        live, flops = (f"{row.live_share:.0%}", f"{row.flops / 1e9:.2f}") if row.plan else ("", "")
        shape = "x".join(map(str, row.shape))
        cells.append((row.module, row.operator, shape, row.kernel, live, flops, f"{row.bytes / 1e6:.1f}", row.reason))
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = {"live", "GFLOP", "MB"}
    lines = [
        "  ".join(f"{text:>{w}}" if head in right else f"{text:<{w}}" for head, text, w in zip(header, line, widths))
        for line in cells
    ]
    kernels = Counter(row.kernel for row in explanation.rows)
    share = explanation.live_flops / explanation.flops if explanation.flops else 1.0
    counts = ", ".join(f"{count} {kernel}" for kernel, count in kernels.most_common())
    total = f"{len(explanation.rows)} calls: {counts}"
    if explanation.flops:
        total += f"; {explanation.flops / 1e9:.2f} GFLOP dense, {share:.0%} of it live"
    return [line.rstrip() for line in lines] + [f"{total}; {explanation.bytes / 1e6:.1f} MB"]
