"""Compiles the operators' sources against other torches' headers: python tests/compile/other_torch.py 2.10.0 2.11.0.

Every file of the CPU; of CUDA those whose headers hold all that is asked of torch, by nvcc too where there is one. Only
torch/include/torch is there, in build/torch-VERSION: this Python's where that is the version, or else its wheel's.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA = ("conv", "conv_quantized", "context_module", "mean_field", "max_unpool")
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def headers(version: str) -> Path:
    """The include folder of a version of torch."""
    folder = ROOT / "build" / f"torch-{version}"
    if not (folder / "complete").exists() and importlib.metadata.version("torch").partition("+")[0] == version:
        installed = Path(str(importlib.metadata.distribution("torch").locate_file("torch/include/torch")))
        (folder / "torch" / "include").mkdir(parents=True, exist_ok=True)
        (folder / "torch" / "include" / "torch").symlink_to(installed)
        (folder / "complete").touch()
    if not (folder / "complete").exists():
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as wheels:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "--dest", wheels, f"torch=={version}"], check=True)
            (wheel,) = Path(wheels).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [n for n in archive.namelist() if n.startswith("torch/include/torch/")])
        (folder / "complete").touch()
    return folder / "torch" / "include"


def commands(include: Path) -> dict[str, list[str]]:
    """What compiles each file."""
    csrc = ROOT / "csrc"
    common = ["-std=c++20", f"-I{csrc}", TARGET]
    host = ["c++", "-x", "c++", "-fsyntax-only", *common, "-isystem", str(include), "-Wno-unknown-pragmas"]
    cuda = [*host, "-DATROUSOPS_HOST_CUDA", "-DATROUSOPS_SM90A", "-DATROUSOPS_LIBRARY=atrousops_host_cuda"]
    found = {str(f): [*host, "-DATROUSOPS_X86=1", str(f)] for f in [csrc / "library.cpp", *csrc.glob("cpu/*.cpp")]}
    found |= {str(f): [*cuda, str(f)] for f in [csrc / "cuda" / f"{name}.cu" for name in CUDA]}
    if shutil.which("nvcc"):
        file = str(csrc / "cuda" / "max_unpool.cu")
        nvcc = ["nvcc", "-arch=sm_80", "--expt-relaxed-constexpr", "-DUSE_CUDA", *common, "-isystem", str(include)]
        found["nvcc " + file] = [*nvcc, "-c", "-o", os.devnull, file]
    return found


def failures(version: str) -> list[str]:
    """The first errors of each file that does not compile."""

    def compile_one(item: tuple[str, list[str]]) -> str:
        run = subprocess.run(item[1], capture_output=True, text=True, check=False)
        errors = [line for line in run.stderr.splitlines() if "error" in line] or run.stderr.splitlines()
        return "\n".join([f"torch {version}: {item[0]} does not compile", *errors[:3]]) if run.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [text for text in pool.map(compile_one, commands(headers(version)).items()) if text]


if __name__ == "__main__":
    (ROOT / "build").mkdir(exist_ok=True)
    found = [text for version in sys.argv[1:] for text in failures(version)]
    print("\n".join(found) or f"the source compiles against torch {', '.join(sys.argv[1:])}")
    sys.exit(bool(found))
