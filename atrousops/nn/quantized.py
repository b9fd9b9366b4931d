"""QuantizedConv2d: a convolution whose weights and inputs are int8 or float8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.nn.conv import FusedConv2d
from atrousops.nn.in_place import leaf
from atrousops.ops.conv_quantized import LARGEST, conv_quantized, quantize

# Integer dtypes with as many bits, because casts of a module leave integers alone.
_BITS = {1: torch.int8, 4: torch.int32}
_NARROW = ("weight", "weight_scale", "input_scale")


def scale_of(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The scales that map these magnitudes to the largest number of dtype; for zero, the smallest normal number."""
    return (largest.double() / LARGEST[dtype]).float().clamp(min=torch.finfo(torch.float32).tiny)


@leaf
class QuantizedConv2d(FusedConv2d):
    """FusedConv2d with int8 or float8_e4m3fn numbers; `atrousops.optimize(..., dtype=...)` makes it from a convolution.

    `forward(input, residual=None, activation=None)`, as FusedConv2d's, without gradients: see `conv_quantized`. It has
    a state of its own, `weight` in the narrow dtype, `weight_scale` (K,) and `input_scale` (), and neither layer loads
    the other's. `half()`, `to(dtype)` and the like change its bias only.

    Shapes:
        as FusedConv2d's.
    """

    weight_scale: Tensor
    input_scale: Tensor

    def __init__(self, *args: Any, dtype: torch.dtype = torch.int8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if dtype not in LARGEST:
            bad_value("QuantizedConv2d", "dtype", f"be one of {', '.join(map(str, LARGEST))}", dtype)
        self._quantize(torch.ones(()), dtype)

    @classmethod
    def of(cls, layer: FusedConv2d, input_scale: Tensor, dtype: torch.dtype) -> QuantizedConv2d:
        """Makes a layer one of this class, in place.

        Args:
            layer: with finite weights.
            input_scale: of its inputs, a number.
            dtype: a key of LARGEST.
        """
        layer.__class__ = cls
        layer.frozen = False  # narrow weights are kept in oneDNN's format in any case
        made = cast("QuantizedConv2d", layer)
        made._quantize(input_scale, dtype)
        return made

    def _quantize(self, input_scale: Tensor, dtype: torch.dtype) -> None:
        wide = self.weight.detach().float()
        scale = scale_of(wide.abs().amax((1, 2, 3)), dtype)
        self.weight = nn.Parameter(quantize(wide, scale.view(-1, 1, 1, 1), dtype), requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", input_scale.to(scale))

    def _function(self, input: Tensor, weight: Tensor, bias: Tensor | None, *around: Any, **after: Any) -> Tensor:  # type: ignore[override]
        return conv_quantized(input, weight, bias, self.input_scale, self.weight_scale, *around, **after)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves all tensors; casts only the bias."""
        narrow = {id(getattr(self, name)) for name in _NARROW}

        def applied(t: Tensor) -> Tensor:
            return fn(t.view(_BITS[t.itemsize])).view(t.dtype) if id(t) in narrow else fn(t)

        return super()._apply(applied, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Refuses weights of another dtype, which a copy would truncate."""
        given = state_dict.get(f"{prefix}weight")
        if isinstance(given, Tensor) and given.dtype != self.weight.dtype:
            errors: list[str] = args[-1]
            errors.append(f"{prefix}weight must be {self.weight.dtype} here; got {given.dtype}.")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        narrow = str(self.weight.dtype).removeprefix("torch.")
        return f"{super().extra_repr()}, {narrow}, input_scale={float(self.input_scale):.3g}"
