"""Readable pure-PyTorch definitions: the oracle in tests, and the last fallback."""

from atrousops.reference.context_module import context_module
from atrousops.reference.conv import conv
from atrousops.reference.conv_branches import conv_branches
from atrousops.reference.conv_quantized import conv_quantized
from atrousops.reference.conv_transpose import conv_transpose
from atrousops.reference.max_pool import max_pool
from atrousops.reference.max_unpool import max_pool_backward, max_unpool, max_unpool_backward
from atrousops.reference.mean_field import mean_field
from atrousops.reference.permutohedral import permutohedral_apply, permutohedral_lattice
from atrousops.reference.roi_align import roi_align, roi_align_backward
from atrousops.reference.roi_pool import gather_maxima, roi_pool, roi_pool_backward, roi_pool_with_argmax

__all__ = [
    "context_module",
    "conv",
    "conv_branches",
    "conv_quantized",
    "conv_transpose",
    "gather_maxima",
    "max_pool",
    "max_pool_backward",
    "max_unpool",
    "max_unpool_backward",
    "mean_field",
    "permutohedral_apply",
    "permutohedral_lattice",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "roi_pool_with_argmax",
]
