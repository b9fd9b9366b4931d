"""Dense prediction for PyTorch: atrous convolution, unpooling, RoIAlign, the dense CRF, and whole networks."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from atrousops import functional, nn
from atrousops.common.version import __version__
from atrousops.dispatch.backends import backend
from atrousops.info import info
from atrousops.nn import *  # noqa: F403
from atrousops.proof.run import selfcheck
from atrousops.surgery.autotune import autotune
from atrousops.surgery.convert import convert, revert
from atrousops.surgery.explain import explain
from atrousops.surgery.optimize import optimize
from atrousops.surgery.report import optimization_report

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
    "selfcheck",
]
__all__ += nn.__all__

# Imported on first use: they import torchvision, which takes as long as importing torch.
_LAZY = ("engine", "models")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"atrousops.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
