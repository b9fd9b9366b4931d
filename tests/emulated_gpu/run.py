"""Runs a Python command on an emulated GPU: python tests/emulated_gpu/run.py -m pytest -m gpu tests/cuda

The command's processes find torch's CUDA runtime replaced (csrc/fake_cuda), this package's kernels executed from their
PTX (tests/ptx), and PyTorch's own CUDA operators computed by its CPU kernels. `make emulated-gpu` builds it all.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> dict[str, str]:
    """What a process needs in order to be emulated, from the build's folder fake_cuda."""

    def first(name: str, value: Path | str) -> str:
        return os.pathsep.join([str(value), *filter(None, [os.environ.get(name)])])

    return {
        **os.environ,
        "ATROUSOPS_EMULATED": str(folder),
        "ATROUSOPS_LIBRARY": str(folder),
        "LD_PRELOAD": str(folder / "lib" / "libcudart.so.13"),
        "LD_LIBRARY_PATH": first("LD_LIBRARY_PATH", folder / "lib"),
        "PYTHONPATH": first("PYTHONPATH", f"{ROOT / 'tests' / 'emulated_gpu' / 'startup'}{os.pathsep}{ROOT}"),
        # It compiles for hardware.
        "ATROUSOPS_TRITON": "none",
        # Every tensor is a block of its own, freed in its stream's order.
        "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync",
    }


def main() -> None:
    folder = Path(os.environ.get("ATROUSOPS_EMULATED_BUILD", ROOT / "build" / "cuda" / "fake_cuda")).resolve()
    if not (folder / "registers.json").exists():
        raise SystemExit(f"{folder} is not built: make emulated-gpu")
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment(folder))


if __name__ == "__main__":
    main()
