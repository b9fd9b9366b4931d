"""Loads the compiled libraries once, and records what failed and why."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch.library import Library

_FOLDER = Path(__file__).resolve().parents[1]


# The list of schemas, one per line, in a C++ raw string: csrc/library.cpp includes it.
SCHEMAS = tuple((_FOLDER / "dispatch" / "schemas.inc").read_text().splitlines()[1:-1])
# Only Triton has this operator: a convolution with residual and activation.
# fmt: off
TRITON_SCHEMAS = (
    "conv_epilogue(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str activation, int[] stride, int[] padding, int[] dilation, int groups, bool allow_tf32=False) -> Tensor",  # noqa: E501
)
# fmt: on
# Defined by the CPU's library alone; elsewhere, and with gradients, PyTorch resizes.
CPU_OPERATORS = ("resize_bilinear",)
# By the CUDA library alone, for inference; elsewhere PyTorch's operators and `conv` make it.
CUDA_OPERATORS = ("conv_quantized",)
OPERATORS = tuple(schema.partition("(")[0] for schema in SCHEMAS)
TRITON_OPERATORS = tuple(schema.partition("(")[0] for schema in TRITON_SCHEMAS)


@dataclass(frozen=True)
class Part:
    """One compiled part of the package: where it should be, and why it is not in use (None if it is)."""

    name: str
    path: str
    problem: str | None


def _load_operators(name: str, filename: str) -> Part:
    # "auto", "none", or a folder to use instead of the package's.
    wish = os.environ.get("ATROUSOPS_LIBRARY", "auto")
    path = (_FOLDER / "lib" if wish in ("auto", "none") else Path(wish)) / filename
    if wish == "none":
        return Part(name, str(path), "switched off by ATROUSOPS_LIBRARY=none")
    if not path.exists():
        compiler = "nvcc" if name == "cuda" else "a C++ compiler"
        return Part(name, str(path), f"not built: reinstall with {compiler} present (pip install .)")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return Part(name, str(path), f"did not load: {error}")
    wanted = OPERATORS + (CPU_OPERATORS if name == "cpu" else CUDA_OPERATORS)
    missing = [op for op in wanted if not hasattr(torch.ops.atrousops, op)]
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


def _load_triton() -> Part:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return Part("triton", str(_FOLDER / "triton"), "the triton package is not installed")
    if os.environ.get("ATROUSOPS_TRITON", "auto") == "none":
        return Part("triton", spec.origin, "switched off by ATROUSOPS_TRITON=none")
    return Part("triton", spec.origin, None)


def _define_missing() -> Library | None:
    """Registers the schemas if Triton has kernels for them and the compiled library did not register them."""
    schemas = zip(OPERATORS + TRITON_OPERATORS, SCHEMAS + TRITON_SCHEMAS)
    missing = [schema for name, schema in schemas if not hasattr(torch.ops.atrousops, name)]
    if triton.problem is not None or not missing:
        return None
    fragment = Library("atrousops", "FRAGMENT")
    for schema in missing:
        fragment.define(schema)
    return fragment


cpu = _load_operators("cpu", "libatrousops_cpu.so")
cuda = _load_cuda()
planner, _planner_part = _load_planner()
# Only searched for: importing takes half a second, and is done by the first call that needs it.
triton = _load_triton()
parts = (cpu, cuda, triton, _planner_part)
has_operators = cpu.problem is None
_defined = _define_missing()
has_schemas = has_operators or triton.problem is None
