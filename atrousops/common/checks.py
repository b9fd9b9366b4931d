"""The format of error messages: the argument, the rule, the value received, and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor
from torch.masked import MaskedTensor


class ArgumentError(ValueError, RuntimeError):
    """A bad value or shape. Also a RuntimeError, because that is what PyTorch raises for it."""


class ArgumentTypeError(TypeError, RuntimeError):
    """A bad type or dtype. Also a RuntimeError, because that is what PyTorch raises for it."""


class DeviceError(RuntimeError):
    """A device on which kernels compute wrong values."""


def bad_value(op: str, argument: str, rule: str, got: object, remedy: str = "") -> NoReturn:
    """Raises ArgumentError: "op: argument must RULE; got GOT. REMEDY"."""
    raise ArgumentError(_text(op, argument, rule, got, remedy))


def bad_choice(op: str, argument: str, known: Iterable[object], got: object) -> NoReturn:
    """Raises ArgumentError for an unknown name, and suggests the known name that is closest."""
    names = [str(name) for name in known]
    bad_value(op, argument, f"be one of {', '.join(names)}", repr(got), meant(got, names))


def meant(got: object, known: Iterable[str]) -> str:
    """ "Did you mean NAME?" if one of the known names is close, else an empty string."""
    near = difflib.get_close_matches(str(got), known, 1)
    return f"Did you mean {near[0]}?" if near else ""


def check_least(op: str, argument: str, got: float, least: int) -> None:
    """Raises ArgumentError for a number below the least that is allowed, and for NaN."""
    if not got >= least:
        bad_value(op, argument, f"be at least {least}", got)


def bad_type(op: str, argument: str, rule: str, got: object, remedy: str = "") -> NoReturn:
    """Raises ArgumentTypeError with the same wording."""
    raise ArgumentTypeError(_text(op, argument, rule, got, remedy))


def check_device(op: str, like: str, where: Tensor, remedy: str = "", **others: Tensor | None) -> None:
    """Raises ArgumentError unless the others are on the device of `where`, argument `like`: kernels read raw addresses.

    Keyword names are the names of the arguments; None is skipped. `remedy` replaces the hint how to move the tensor.
    """
    for name, value in others.items():
        if value is not None and value.device != where.device:
            remedy = remedy or f"Move it there: {name}.to({like}.device)."
            bad_value(op, name, f"be on {where.device}, as {like}", value.device, remedy)


def check_floating(op: str, argument: str, value: object, dtypes: Iterable[torch.dtype]) -> None:
    """Raises ArgumentTypeError unless a value is a tensor of one of these dtypes and not a MaskedTensor."""
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        bad_type(op, argument, f"be a tensor of {', '.join(most)} or {last}", got)
    check_not_masked(op, argument, value)


def check_not_masked(op: str, argument: str, value: Tensor) -> None:
    """Raises ArgumentTypeError for a MaskedTensor, on which torch.where recurses without end."""
    if isinstance(value, MaskedTensor):
        bad_type(op, argument, "be no MaskedTensor", "one", f"Fill what is masked: {argument}.to_tensor(value).")


def _text(op: str, argument: str, rule: str, got: object, remedy: str) -> str:
    return f"{op}: {argument} must {rule}; got {got}." + (f" {remedy}" if remedy else "")
