"""FLOPs of our convolutions for `torch.utils.flop_counter.FlopCounterMode`: the same as PyTorch's, on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

Shape = Sequence[int]


def _conv(x: Shape, w: Shape, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return conv_flop_count(list(x), list(w), list(out_shape))


def _conv_transpose(x: Shape, w: Shape, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return conv_flop_count(list(x), list(w), list(out_shape), transposed=True)


def _conv_grad_weight(grad: Shape, x: Shape, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    def exchanged(shape: Shape) -> list[int]:
        return [shape[1], shape[0], *shape[2:]]

    return conv_flop_count(exchanged(x), exchanged(grad), exchanged(out_shape))


def _side_by_side(x: Shape, weights: Sequence[Shape], *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return sum([conv_flop_count(list(x), list(w), list(out_shape)) for w in weights])


def _onednn(x: Shape, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    # With a residual the arguments are (residual, weight, bias), else (weight, bias); the bias is 1-D or None.
    w = args[1] if args[1] is not None and len(args[1]) > 1 else args[0]
    return conv_flop_count(list(x), list(w), list(out_shape))


_FORMULAS = {
    "atrousops::conv": _conv,
    "atrousops::conv_epilogue": _conv,
    "atrousops::conv_transpose": _conv_transpose,
    "atrousops::conv_grad_input": _conv_transpose,
    "atrousops::conv_grad_weight": _conv_grad_weight,
    "atrousops::conv_branches": _side_by_side,
    "atrousops::context_module": _side_by_side,
    "mkldnn::_convolution_pointwise": _onednn,
}


def register_formulas() -> None:
    """Registers the existing operators with PyTorch's counter."""
    for name, formula in _FORMULAS.items():
        namespace, operator = name.split("::")
        target = getattr(getattr(torch.ops, namespace), operator, None)
        if target is not None and target not in flop_registry:
            register: Any = register_flop_formula(target)
            register(formula)
