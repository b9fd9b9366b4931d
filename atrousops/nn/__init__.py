"""The layers: torch.nn.Modules on the operators of this package."""

from atrousops.nn.aspp import ASPP
from atrousops.nn.blocks import conv_norm_relu
from atrousops.nn.branches import FusedBranches
from atrousops.nn.context import ContextModule
from atrousops.nn.conv import (
    AtrousConv1d,
    AtrousConv2d,
    AtrousConv3d,
    AtrousConvTranspose1d,
    AtrousConvTranspose2d,
    AtrousConvTranspose3d,
    FusedConv1d,
    FusedConv2d,
    FusedConv3d,
)
from atrousops.nn.crf import CRFasRNN, DenseCRF
from atrousops.nn.crf_kernels import CRFKernel
from atrousops.nn.multi_scale_roi_align import MultiScaleRoIAlign
from atrousops.nn.permutohedral import PermutohedralFilter
from atrousops.nn.pool import MaxPool1d, MaxPool2d, MaxPool3d, MaxUnpool1d, MaxUnpool2d, MaxUnpool3d
from atrousops.nn.quantized import QuantizedConv2d
from atrousops.nn.roi import RoIAlign, RoIPool
from atrousops.nn.stock import STOCK as STOCK

__all__ = [
    "ASPP",
    "AtrousConv1d",
    "AtrousConv2d",
    "AtrousConv3d",
    "AtrousConvTranspose1d",
    "AtrousConvTranspose2d",
    "AtrousConvTranspose3d",
    "CRFKernel",
    "CRFasRNN",
    "ContextModule",
    "DenseCRF",
    "FusedBranches",
    "FusedConv1d",
    "FusedConv2d",
    "FusedConv3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "MultiScaleRoIAlign",
    "PermutohedralFilter",
    "QuantizedConv2d",
    "RoIAlign",
    "RoIPool",
    "conv_norm_relu",
]
