"""The one way an operator gets its fake kernel, autograd, transforms and autocast, and is called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from atrousops.common.checks import ArgumentError, check_device
from atrousops.common.values import is_autocast, transformed
from atrousops.dispatch import libraries, triton_library
from atrousops.ops import _batches
from atrousops.ops._routes import (
    CALLS,
    PLAIN,
    PLAIN_CALLS,
    PLAIN_TYPES,
    autocasts,
    is_kernels,
    is_plain,
    is_watched,
    on_plain,
    wants_grad,
)

_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU"}
_autocast_library = torch.library.Library("atrousops", "FRAGMENT") if libraries.has_schemas else None

# What traces a call brings these, and they know every registered operator.
_KNOWN = frozenset({*PLAIN, FakeTensor, FunctionalTensor})
_transforms = torch._C._are_functorch_transforms_active

# Those that PyTorch's operators say, for torch.jit.trace; `_decompositions` fills it.
IN_PYTORCH: dict[str, Callable[..., Any]] = {}
# By operator what `register` was given as `fake`.
FAKES: dict[str, Callable[..., Any]] = {}


def foreign(*values: Any) -> bool:
    """Whether one of the tensors has rules of its own: a subclass, or a layout with another memory than strides.

    PyTorch's operators know what to do with them, ours do not.
    """
    for t in values:
        if type(t) in _KNOWN:
            if t.layout is not torch.strided or t.is_nested:
                return True
        elif isinstance(t, Tensor):
            return True
    return False


def stands_in(*values: Any) -> bool:
    """Whether one stands for a tensor and is none, as the proxies of torch.fx do: it records what it is given to."""
    if torch.compiler.is_compiling():
        return False
    return any([not isinstance(v, Tensor) and hasattr(type(v), "__torch_function__") for v in values])


def functionalized() -> tuple[bool, bool]:
    """Whether torch.func.functionalize is among the transforms at work, and whether it is alone."""
    kinds = {level.key() for level in _functorch.get_interpreter_stack() or ()}
    return _functorch.TransformType.Functionalize in kinds, len(kinds) == 1


def jit_traces() -> bool:
    """Whether torch.jit.trace records: Who reads its graph, a counter of operations or C++, knows PyTorch's alone."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def register(
    name: str,
    *,
    fake: Callable[..., Any],
    otherwise: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    autocast: str | None = None,
    anchored: bool = False,
) -> Callable[..., Any]:
    """Registers what belongs to operator `atrousops::name`, if there are kernels: a compiled library's, or Triton's.

    Args:
        name: of the operator.
        fake: its result's shape, on fake and meta tensors.
        otherwise: the same in PyTorch's operators, for tensors that no kernel can read: batched ones, and subclasses.
        backward, setup_context: its derivative; `keep` what both directions need.
        jvp: its forward-mode derivative; by default that of an operator that is linear in its first tensor, whose
            `setup_context` keeps all others in their order.
        vmap: its rule for a further batch dimension; by default that of an operator on entries of the leading one.
        anchored: the backward does not read the input, though the operator is not linear in it: recorded eager calls
            return, and hand to `backward`, one output more, without elements, by which a gradient's own graph leads to
            the input as PyTorch's does.
        autocast: "lower" casts floating tensors to the autocast dtype, "float32" to fp32; None leaves dtypes alone.

    Returns:
        The operator, to be called with all of its arguments, tensors first. torch.library's autograd is Python between
        two passes through the dispatcher, which costs a small call more than all else, and knows no transforms; eager
        calls do without it, and record the same backward.
    """
    if not libraries.has_schemas:
        return CALLS.setdefault(name, otherwise or _missing)
    qualified = f"atrousops::{name}"
    operator = getattr(torch.ops.atrousops, name).default
    alone = len(operator._schema.returns) == 1
    if backward is not None and alone:
        backward = _none_for_none(backward)
    FAKES[name] = _on_one_device(operator, fake)
    torch.library.register_fake(qualified, FAKES[name])
    triton_library.register_rule(name)
    if backward is not None:
        setup = _without_zeros(setup_context) if alone else setup_context
        torch.library.register_autograd(qualified, backward, setup_context=setup)
    if autocast is not None:
        for device, key in _AUTOCAST_KEYS.items():
            _register_autocast(name, device, key, autocast)
    rules = _Rules(operator, otherwise or operator, backward, setup_context, jvp, vmap, anchored)
    PLAIN_CALLS[name] = rules.run, rules.eager.apply if rules.differentiable else operator
    return CALLS.setdefault(name, _caller(rules, autocast))


def _on_one_device(operator: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake kernel that says of tensors on several devices what the kernels say: a trace comes here alone."""
    names = [argument.name for argument in operator._schema.arguments]

    @functools.wraps(fake)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args)), **kwargs}
        tensors = [
            (name, t)
            for name, value in given.items()
            for t in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(t, Tensor)
        ]
        for name, t in tensors[1:]:
            check_device(operator._opname, tensors[0][0], tensors[0][1], "", **{name: t})
        return fake(*args, **kwargs)

    return checked


def _none_for_none(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Where no gradient comes none goes on, as in PyTorch: an optimiser skips what has none."""

    @functools.wraps(backward)
    def derivative(ctx: Any, grad: Tensor | None) -> Any:
        return (None,) * len(ctx.needs_input_grad) if grad is None else backward(ctx, grad)

    return derivative


def _without_zeros(setup_context: Callable[..., Any] | None) -> Callable[..., Any]:
    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.set_materialize_grads(False)
        if setup_context is not None:
            setup_context(ctx, inputs, output)

    return setup


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves tensors for the derivatives in both directions."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _missing(*args: Any) -> Any:
    raise NotImplementedError("the compiled library is missing")


class _Rules:
    """What is known of an operator, as two classes of autograd functions: one for eager calls, one for transforms."""

    def __init__(
        self,
        operator: Any,
        otherwise: Callable[..., Any],
        backward: Callable[..., Any] | None,
        setup_context: Callable[..., Any] | None,
        jvp: Callable[..., Any] | None,
        vmap: Callable[..., Any] | None,
        anchored: bool,
    ) -> None:
        self.anchored, self.alone = anchored, len(operator._schema.returns) == 1
        self.operator, self.otherwise, self.differentiable = operator, otherwise, backward is not None
        maybe_tensor = torch.OptionalType(torch.TensorType.get())
        self.count = sum(argument.type.isSubtypeOf(maybe_tensor) for argument in operator._schema.arguments)
        self._setup_context, self._jvp = setup_context, jvp
        self.run = on_plain(operator)
        name, parents = operator._opname, (torch.autograd.Function,)
        derivative = staticmethod(backward or _missing)
        # With a `setup_context` of its own a call of the first would cost 10 us more.
        self.eager: Any = type(name, parents, {"forward": staticmethod(self._forward), "backward": derivative})
        body = {
            "forward": staticmethod(self._transformed_forward),
            "setup_context": staticmethod(self._setup),
            "backward": derivative,
            "jvp": staticmethod(self._forward_derivative),
            "vmap": staticmethod(vmap or _batches.over_leading(lambda *args: CALLS[name](*args), self.count)),
        }
        self.transformed: Any = type(name, parents, body)

    def dispatched(self, *args: Any) -> Any:
        """The operator by way of the dispatcher, on tensors that a mode watches."""
        try:
            return self.operator(*args)
        except RuntimeError as error:
            if not is_kernels(self.operator, error):
                raise
            raise ArgumentError(str(error)) from None

    def _forward(self, ctx: Any, *args: Any) -> Any:
        output = self.run(*args)
        if self.alone:
            ctx.set_materialize_grads(False)
        if self.anchored:
            output = (*output, args[0].new_empty(0))
        if self._setup_context is not None:
            self._setup_context(ctx, args, output)
        return output

    def _transformed_forward(self, *args: Any) -> Any:
        if not is_watched() and all([type(t) in PLAIN_TYPES for t in args[: self.count]]):
            return self.run(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.operator(*args)

    def _setup(self, ctx: Any, inputs: tuple, output: Any) -> None:
        if self._setup_context is not None:
            self._setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(True)
        ctx.rest = inputs[self.count :]

    def _forward_derivative(self, ctx: Any, tangent: Tensor, *others: Any) -> Any:
        if self._jvp is not None:
            return self._jvp(ctx, tangent)
        return CALLS[self.operator._opname](tangent, *ctx.saved_tensors, *ctx.rest)


def _caller(rules: _Rules, autocast: str | None) -> Callable[..., Any]:
    operator, count, plain_calls = rules.operator, rules.count, PLAIN_CALLS[rules.operator._opname]

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return rules.otherwise(*args) if _transforms() or foreign(*args[:count]) else operator(*args)
        casts = autocast is not None and autocasts()
        tensors = args[:count] if args[count - 1] is not None else args[: count - 1]
        if is_plain(tensors) and not casts:
            return plain_calls[wants_grad(tensors)](*args)
        if jit_traces() and operator._opname in IN_PYTORCH:
            return IN_PYTORCH[operator._opname](*args)
        if not (transformed() or foreign(*args[:count])):
            return rules.dispatched(*args)
        if casts:
            device = args[0].device.type
            args = tuple([_cast(value, device, str(autocast)) for value in args])
        functional, alone = functionalized()
        if functional and alone:
            return operator(*args)
        # PyTorch's functionalize has no rule for functions of autograd, by which the others know ours.
        if functional or foreign(*args[:count]):
            return rules.otherwise(*args)
        if _batches.outside_its_layer(args[:count]):
            return _batches.inside_its_layer(call, args)
        return rules.transformed.apply(*args)

    return call


def _cast(value: Any, device: str, policy: str) -> Any:
    wants = isinstance(value, Tensor) and value.is_floating_point() and value.device.type == device
    if not wants or value.dtype == torch.float64 or not is_autocast(device):
        return value
    return value.to(torch.float32 if policy == "float32" else torch.get_autocast_dtype(device))


def _register_autocast(name: str, device: str, key: str, policy: str) -> None:
    op = getattr(torch.ops.atrousops, name)

    def cast_and_call(*args: Any, **kwargs: Any) -> Any:
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        args = tuple([_cast(value, device, policy) for value in args])
        kwargs = {k: _cast(value, device, policy) for k, value in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(*args, **kwargs)

    assert _autocast_library is not None
    _autocast_library.impl(name, cast_and_call, key)
