"""Public functions: argument checks, fake kernels, autograd, autocast, and the choice of a backend."""

from atrousops.ops import _decompositions, _flops
from atrousops.ops._conv_maps import grad_bias as grad_bias
from atrousops.ops._conv_maps import grad_input as grad_input
from atrousops.ops._conv_maps import grad_weight as grad_weight
from atrousops.ops._decompositions import decompose as decompose
from atrousops.ops._resize_bilinear import resize_bilinear as resize_bilinear
from atrousops.ops.context_module import context_module
from atrousops.ops.conv import conv1d, conv2d, conv3d
from atrousops.ops.conv_branches import conv_branches
from atrousops.ops.conv_transpose import conv_transpose1d, conv_transpose2d, conv_transpose3d
from atrousops.ops.max_pool import max_pool1d, max_pool2d, max_pool3d
from atrousops.ops.max_unpool import max_unpool1d, max_unpool2d, max_unpool3d
from atrousops.ops.mean_field import mean_field
from atrousops.ops.permutohedral import Lattice, permutohedral_filter, permutohedral_lattice
from atrousops.ops.roi_align import roi_align
from atrousops.ops.roi_pool import roi_pool

_flops.register_formulas()
_decompositions.register()

__all__ = [
    "Lattice",
    "context_module",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_branches",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mean_field",
    "permutohedral_filter",
    "permutohedral_lattice",
    "roi_align",
    "roi_pool",
]
