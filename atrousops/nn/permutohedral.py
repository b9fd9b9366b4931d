"""High-dimensional Gaussian filtering as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from atrousops import ops
from atrousops.common.checks import bad_value
from atrousops.nn.in_place import leaf
from atrousops.ops.permutohedral import NORMALIZATIONS, Lattice


@leaf
class PermutohedralFilter(nn.Module):
    """Filters values with a Gaussian in feature space, y_i = sum_j exp(-|f_i - f_j|^2 / 2) x_j.

    The module form of `atrousops.functional.permutohedral_filter` (Adams, Baek, Davis, Eurographics 2010).

    Args:
        normalize: None, "none", "symmetric", "before" or "after".

    Shape:
        values (N, C, *), features (N, D, *) in units of standard deviations, or a Lattice built from them; output (N,
        C, *).

    Raises:
        ArgumentError: normalize is none of these; `forward` raises the errors of permutohedral_filter.
    """

    def __init__(self, normalize: str | None = None) -> None:
        super().__init__()
        if normalize is not None and normalize not in NORMALIZATIONS:
            bad_value("PermutohedralFilter", "normalize", f"be None or one of {', '.join(NORMALIZATIONS)}", normalize)
        self.normalize = normalize

    def forward(self, values: Tensor, features: Tensor | Lattice) -> Tensor:
        return ops.permutohedral_filter(values, features, self.normalize)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize!r}"
