"""An emulated GPU in this process: see run.py. Started by startup/sitecustomize.py."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
from pathlib import Path

import kernels
import torch
import torch_operators


@functools.cache
def start() -> ctypes.CDLL:
    """Puts the emulated device under torch; $ATROUSOPS_EMULATED names the folder that the build made."""
    folder = Path(os.environ["ATROUSOPS_EMULATED"])
    library = ctypes.CDLL(str(folder / "lib" / "libcudart.so.13"))
    kernels.install(library, folder)
    # Its operators are replaced too, once they are registered.
    with contextlib.suppress(ImportError):
        import torchvision  # noqa: F401
    torch_operators.install(torch_operators.Runtime(library))
    # Its kernels are machine code.
    torch.backends.cudnn.enabled = False
    # Tests that switch TF32 name this flag on the way.
    torch._C._set_cudnn_enabled = lambda wanted: None
    if report := os.environ.get("ATROUSOPS_EMULATED_LAUNCHES"):
        atexit.register(_report, library, Path(report))
    return library


def _report(library: ctypes.CDLL, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}\t{count}" for name, count in kernels.launches(library).items()]
    (folder / f"{os.getpid()}.tsv").write_text("\n".join(lines) + "\n")
