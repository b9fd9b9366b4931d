"""Dense prediction for PyTorch: atrous convolution, unpooling, RoIAlign, the dense CRF, and whole networks."""

__version__ = "0.1.0"

from atrousops import functional, nn
from atrousops.backends import backend
from atrousops.convert import convert
from atrousops.info import info
from atrousops.nn import *  # noqa: F403

__all__ = ["__version__", "backend", "convert", "functional", "info", "nn"]
__all__ += nn.__all__
