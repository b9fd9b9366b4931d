"""The CUDA kernels, compiled for the CPU and called on CPU tensors: how tests without a GPU run them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import atrousops as ao
from atrousops.dispatch import libraries

ROOT = Path(__file__).resolve().parents[1]


def library_path() -> Path:
    """$ATROUSOPS_HOST_CUDA, or where this Python's build puts the library."""
    named = os.environ.get("ATROUSOPS_HOST_CUDA")
    work = ROOT / "build" / f"cp{sys.version_info.major}{sys.version_info.minor}"
    return Path(named) if named else work / "libatrousops_host_cuda.so"


def problem() -> str | None:
    """Why the kernels cannot be run here, or None."""
    path = library_path()
    return None if path.exists() else f"{path} is not built (cmake -DATROUSOPS_HOST_CUDA=ON)"


@functools.cache
def load() -> ctypes.CDLL:
    """The library, its operators registered as torch.ops.atrousops_host_cuda.*."""
    torch.ops.load_library(str(library_path()))
    library = ctypes.CDLL(str(library_path()))
    library.atrousops_host_cuda_coverage.restype = ctypes.c_char_p
    library.atrousops_host_cuda_set_order_seed.argtypes = [ctypes.c_uint64]
    library.atrousops_host_cuda_set_warps_ahead.argtypes = [ctypes.c_bool]
    library.atrousops_host_cuda_set_device.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_int64] * 3]
    return library


def was_used() -> bool:
    """Whether a test of this process asked for the library."""
    return load.cache_info().currsize > 0


def has(name: str) -> bool:
    """Whether a CUDA kernel is registered for this operator."""
    load()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"atrousops_host_cuda::{name}", "CPU")


def _implementation(name: str) -> Any:
    if has(name):
        return getattr(torch.ops.atrousops_host_cuda, name).default

    def missing(*args: Any) -> Any:
        raise NotImplementedError(f"csrc/cuda registers no {name}")

    return missing


@contextlib.contextmanager
def host_cuda() -> Iterator[None]:
    """Inside, torch.ops.atrousops.* runs the CUDA kernels on CPU tensors, and backend "cpu" is forced.

    Autograd, fake kernels, opcheck and the public functions work as ever. An operator without a CUDA kernel raises.
    """
    load()
    override = torch.library.Library("atrousops", "IMPL")
    try:
        for name in libraries.OPERATORS:
            override.impl(name, _implementation(name), "CPU", allow_override=True)
        with ao.backend("cpu"):
            yield
    finally:
        override._destroy()


@contextlib.contextmanager
def largest_cluster(blocks: int) -> Iterator[None]:
    """Inside, the device has room for clusters of so many blocks, and no more."""
    load().atrousops_host_cuda_set_largest_cluster(blocks)
    try:
        yield
    finally:
        load().atrousops_host_cuda_set_largest_cluster(16)


@contextlib.contextmanager
def order(seed: int, ahead: bool = False) -> Iterator[None]:
    """Inside, threads and blocks run in a random order; 0 is ascending. ahead: a warp goes on for as long as it can."""
    load().atrousops_host_cuda_set_order_seed(seed)
    load().atrousops_host_cuda_set_warps_ahead(ahead)
    try:
        yield
    finally:
        load().atrousops_host_cuda_set_order_seed(default_seed())
        load().atrousops_host_cuda_set_warps_ahead(False)


def default_seed() -> int:
    """The seed of a whole run: $ATROUSOPS_HOST_CUDA_SEED, or 0."""
    return int(os.environ.get("ATROUSOPS_HOST_CUDA_SEED", "0"))


H100 = (132, 90, 227 << 10, 228 << 10, 50 << 20)
A100 = (108, 80, 163 << 10, 164 << 10, 40 << 20)
RTX_4090 = (128, 89, 99 << 10, 100 << 10, 72 << 20)
RTX_5090 = (170, 120, 99 << 10, 100 << 10, 96 << 20)


@contextlib.contextmanager
def device(multiprocessors: int, capability: int, shared: int, shared_per_sm: int, l2: int) -> Iterator[None]:
    """Inside, kernels are chosen as for another device than an H100."""
    load().atrousops_host_cuda_set_device(multiprocessors, capability, shared, shared_per_sm, l2)
    try:
        yield
    finally:
        load().atrousops_host_cuda_set_device(*H100)


@dataclass(frozen=True)
class Counted:
    """How often a kernel or an instruction wrapper ran in this process."""

    kind: str
    name: str
    runs: int


def runs(name: str) -> int:
    """How often kernels with that in their names ran in this process."""
    return sum(counted.runs for counted in coverage() if name in counted.name)


def coverage() -> list[Counted]:
    """Every kernel and wrapper in the library, equal names added up."""
    totals: dict[tuple[str, str], int] = {}
    for line in load().atrousops_host_cuda_coverage().decode().splitlines():
        kind, runs, name = line.split("\t")
        totals[kind, name] = totals.get((kind, name), 0) + int(runs)
    return [Counted(kind, name, runs) for (kind, name), runs in sorted(totals.items())]
