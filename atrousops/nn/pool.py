"""MaxPool1d/2d/3d and MaxUnpool1d/2d/3d: torch.nn's layers on this package's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from atrousops import ops
from atrousops.nn.in_place import in_place_of


class _MaxPool(nn.modules.pooling._MaxPoolNd):
    """Base of the three ranks. No class here adds state, so that a layer of torch.nn can be converted to it."""

    _function: ClassVar[Callable[..., Any]]

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._function(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


@in_place_of(nn.MaxPool1d)
class MaxPool1d(_MaxPool, nn.MaxPool1d):
    """torch.nn.MaxPool1d on functional.max_pool1d; see MaxPool2d."""

    _function = staticmethod(ops.max_pool1d)


@in_place_of(nn.MaxPool2d)
class MaxPool2d(_MaxPool, nn.MaxPool2d):
    """torch.nn.MaxPool2d on functional.max_pool2d: (N, C, H, W) -> (N, C, H_out, W_out).

    With `return_indices="codes"` the second result is one-byte codes, an eighth of the size of PyTorch's indices.
    MaxUnpool2d with the same kernel_size, stride and padding accepts them instead of indices.
    """

    _function = staticmethod(ops.max_pool2d)


@in_place_of(nn.MaxPool3d)
class MaxPool3d(_MaxPool, nn.MaxPool3d):
    """torch.nn.MaxPool3d on functional.max_pool3d; see MaxPool2d."""

    _function = staticmethod(ops.max_pool3d)


class _MaxUnpool(nn.modules.pooling._MaxUnpoolNd):
    """Base of the three ranks."""

    _function: ClassVar[Callable[..., Tensor]]

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._function(input, indices, self.kernel_size, self.stride, self.padding, output_size)


@in_place_of(nn.MaxUnpool1d)
class MaxUnpool1d(_MaxUnpool, nn.MaxUnpool1d):
    """torch.nn.MaxUnpool1d on functional.max_unpool1d; see MaxUnpool2d."""

    _function = staticmethod(ops.max_unpool1d)


@in_place_of(nn.MaxUnpool2d)
class MaxUnpool2d(_MaxUnpool, nn.MaxUnpool2d):
    """torch.nn.MaxUnpool2d on functional.max_unpool2d: (N, C, H, W) -> (N, C, H_out, W_out).

    Takes int64 indices of any pooling, or the uint8 codes of MaxPool2d(..., return_indices="codes").
    """

    _function = staticmethod(ops.max_unpool2d)


@in_place_of(nn.MaxUnpool3d)
class MaxUnpool3d(_MaxUnpool, nn.MaxUnpool3d):
    """torch.nn.MaxUnpool3d on functional.max_unpool3d; see MaxUnpool2d."""

    _function = staticmethod(ops.max_unpool3d)
