"""Dense prediction for PyTorch: atrous convolution, unpooling, RoIAlign, the dense CRF, and whole networks."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

from atrousops import functional, nn
from atrousops._report import optimization_report
from atrousops.autotune import autotune
from atrousops.backends import backend
from atrousops.convert import convert, revert
from atrousops.explain import explain
from atrousops.info import info
from atrousops.nn import *  # noqa: F403
from atrousops.optimize import optimize

if TYPE_CHECKING:
    from atrousops import engine as engine
    from atrousops import models as models

__all__ = [
    "__version__",
    "autotune",
    "backend",
    "convert",
    "explain",
    "functional",
    "info",
    "nn",
    "optimization_report",
    "optimize",
    "revert",
]
__all__ += nn.__all__

# Imported when they are first asked for: they bring torchvision, which takes as long to import as torch.
_LAZY = ("engine", "models")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"atrousops.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
