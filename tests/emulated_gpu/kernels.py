"""This package's kernels: their PTX, declared to the emulated runtime and executed by the machine of tests/ptx."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import ptx_build
import torch
from ptx_translate import Translation

FIRST_SHARED_BYTE = 1024
SEED = int(os.environ.get("ATROUSOPS_EMULATED_SEED", "0"))
RESOLVER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
_kept: list[object] = []


def install(library: ctypes.CDLL, folder: Path) -> None:
    """From now on launches run the PTX in folder/ptx. Kernels are translated and compiled at their first launch."""
    ptx_build.ptx_of = lambda source: folder / "ptx" / f"{source.stem}.ptx"
    machine = ptx_build.machine()
    machine.ptx_set_memory(ctypes.cast(library.fake_cuda_find_block, ctypes.c_void_p))
    machine.ptx_set_variables(ctypes.cast(library.fake_cuda_variable, ctypes.c_void_p))
    machine.ptx_set_order(SEED, 0)
    library.fake_cuda_set_executor(
        ctypes.cast(machine.ptx_execute, ctypes.c_void_p), ctypes.cast(machine.ptx_error, ctypes.c_void_p)
    )
    compiled = json.loads((folder / "registers.json").read_text())
    later = [a for a in (folder / "architectures").read_text().strip().split(";") if a.startswith("compute_")]
    for name, (file, kernel) in ptx_build.all_kernels().items():
        sizes = (ctypes.c_uint * len(kernel.parameters))(*(p.bytes for p in kernel.parameters))
        static = Translation(kernel, file).shared_arrays()[0] - FIRST_SHARED_BYTE
        codes = [f"{arch.removeprefix('sm_')}:{registers}" for arch, registers in compiled[name].items()]
        codes += [] if "_sm90a" in file else ["compute_89"] if "_sm89" in file else later
        library.fake_cuda_declare(
            name.encode(), sizes, len(sizes), static, kernel.max_threads or 0, ";".join(codes).encode()
        )
    resolver = RESOLVER(_resolve)
    _kept.append(resolver)
    machine.ptx_set_resolver(resolver)


def _resolve(name: bytes) -> int:
    known = ptx_build.all_kernels()
    if name.decode() not in known:
        return 0
    file, kernel = known[name.decode()]
    # The runtime's lock is held: what a collection frees would ask for torch's, whose holder may wait for this one.
    collects = gc.isenabled()
    gc.disable()
    try:
        ptx_build.add(ptx_build.compiled(kernel, file))
    finally:
        if collects:
            gc.enable()
    return 1


@contextlib.contextmanager
def order(seed: int) -> Iterator[None]:
    """Inside, threads and blocks run in another order: ascending for 0."""
    torch.cuda.synchronize()
    ptx_build.machine().ptx_set_order(seed, 0)
    try:
        yield
        torch.cuda.synchronize()
    finally:
        ptx_build.machine().ptx_set_order(SEED, 0)


def launches(library: ctypes.CDLL) -> dict[str, int]:
    """How often each kernel was launched in this process."""
    library.fake_cuda_launches.restype = ctypes.c_char_p
    lines = library.fake_cuda_launches().decode().splitlines()
    return {name: int(count) for name, _, count in (line.partition("\t") for line in lines)}
