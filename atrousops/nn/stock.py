"""The PyTorch layers that ours replace."""

from __future__ import annotations

from torch import nn

from atrousops.nn import conv, pool

_LAYERS: tuple[type[nn.Module], ...] = (
    *(conv.AtrousConv1d, conv.AtrousConv2d, conv.AtrousConv3d),
    *(conv.AtrousConvTranspose1d, conv.AtrousConvTranspose2d, conv.AtrousConvTranspose3d),
    *(conv.FusedConv1d, conv.FusedConv2d, conv.FusedConv3d),
    *(pool.MaxPool1d, pool.MaxPool2d, pool.MaxPool3d),
    *(pool.MaxUnpool1d, pool.MaxUnpool2d, pool.MaxUnpool3d),
)

# Our type -> PyTorch's. For tools that look up a layer's exact type in a table, such as FLOP counters; `table` is
# thop.profile's register_hooks or ptflops.pytorch_ops.MODULES_MAPPING: table.update({ours: table[stock] for ours, stock
# in atrousops.nn.STOCK.items() if stock in table})
STOCK: dict[type[nn.Module], type[nn.Module]] = {
    layer: next(base for base in layer.__mro__ if base.__module__.startswith("torch.nn.")) for layer in _LAYERS
}
