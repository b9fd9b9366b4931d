"""Optional packages for some scores."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(package: str, what: str) -> ModuleType:
    """Imports and returns the package. Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ImportError(f"{what} needs {name}, which is not installed: pip install 'atrousops[train]'") from error
