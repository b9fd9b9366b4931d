"""Dense prediction for PyTorch: atrous convolution, unpooling, RoIAlign, the permutohedral dense CRF, and the networks."""

__version__ = "0.1.0"

from atrousops import functional
from atrousops.backends import backend

__all__ = ["__version__", "backend", "functional"]
