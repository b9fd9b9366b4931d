"""Loads the compiled libraries once, and remembers what failed and why."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

_FOLDER = Path(__file__).resolve().parent


# What the Python files call; csrc/library.cpp has their schemas.
OPERATORS = (
    "conv",
    "conv_grad_input",
    "conv_grad_weight",
    "conv_transpose",
    "flush_subnormals",
    "has_subnormals",
    "max_pool",
    "max_pool_backward",
    "max_pool_codes",
    "max_pool_values",
    "max_unpool",
    "max_unpool_backward",
    "mean_field",
    "permutohedral_apply",
    "permutohedral_lattice",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
)


@dataclass(frozen=True)
class Part:
    """One compiled part of the package: where it should be, and why it is not in use (None if it is)."""

    name: str
    path: str
    problem: str | None


def _load_operators(name: str, filename: str) -> Part:
    path = _FOLDER / "lib" / filename
    if os.environ.get("ATROUSOPS_LIBRARY", "auto") == "none":
        return Part(name, str(path), "switched off by ATROUSOPS_LIBRARY=none")
    if not path.exists():
        compiler = "nvcc" if name == "cuda" else "a C++ compiler"
        return Part(name, str(path), f"not built: reinstall with {compiler} present (pip install .)")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return Part(name, str(path), f"did not load: {error}")
    missing = [op for op in OPERATORS if not hasattr(torch.ops.atrousops, op)]
    if missing:
        return Part(name, str(path), f"older than the Python files, without {', '.join(missing)}: build it again")
    return Part(name, str(path), None)


def _load_planner() -> tuple[ModuleType | None, Part]:
    path = str(_FOLDER / "_C")
    if os.environ.get("ATROUSOPS_LIBRARY", "auto") == "none":
        return None, Part("_C", path, "switched off by ATROUSOPS_LIBRARY=none")
    try:
        module = importlib.import_module("atrousops._C")
    except ImportError as error:
        return None, Part("_C", path, f"did not load: {error}")
    return module, Part("_C", module.__file__ or path, None)


def _load_cuda() -> Part:
    name, filename = "cuda", "libatrousops_cuda.so"
    if cpu.problem is not None:
        return Part(name, str(_FOLDER / "lib" / filename), "its schemas are in the CPU library, which is missing")
    if torch.version.cuda is None:
        return Part(name, str(_FOLDER / "lib" / filename), "this torch was built without CUDA")
    return _load_operators(name, filename)


cpu = _load_operators("cpu", "libatrousops_cpu.so")
cuda = _load_cuda()
planner, _planner_part = _load_planner()
parts = (cpu, cuda, _planner_part)
has_operators = cpu.problem is None
