"""Calls of the CUDA operators on CPU tensors, each launch run from nvcc's PTX in place of the kernel's source."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import host_cuda
import ptx_build
from ptx_translate import Translation

# Of this process: how often each kernel ran from PTX.
launched: dict[str, int] = {}

EXECUTOR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Grid(ctypes.Structure):
    """csrc/host_cuda/engine.h's."""

    _fields_ = [
        ("blocks", ptx_build.Dim3),
        ("threads", ptx_build.Dim3),
        ("shared_bytes", ctypes.c_int64),
        ("kernel", ctypes.c_char_p),
        ("cluster", ctypes.c_uint),
    ]


@functools.cache
def demangler() -> ctypes.CDLL:
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    library.__cxa_demangle.argtypes = [ctypes.c_char_p, *[ctypes.c_void_p] * 3]
    return library


def demangled(name: str) -> str:
    status = ctypes.c_int()
    found = demangler().__cxa_demangle(name.encode(), None, None, ctypes.addressof(status))
    if not found:
        raise ValueError(f"{name} is no mangled name")
    text = ctypes.string_at(found).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(found))
    return text


@functools.cache
def by_signature(of_tests: bool) -> dict[str, str]:
    """Mangled names in the PTX by their signature."""
    found: dict[str, str] = {}
    for name in ptx_build.kernels_of_tests() if of_tests else ptx_build.all_kernels():
        key = demangled(name)
        if key in found:
            raise RuntimeError(f"two kernels are called {key}")
        found[key] = name
        # The host's name of a kernel that is no template goes without its parameters.
        if " " not in key.split("(")[0].replace("(anonymous namespace)", ""):
            found[re.sub(r"(?<!^)(?<!:)\(.*", "", key)] = name
    return found


def signature(host_name: str) -> str:
    """ "KernelName<&(void k<float>(int))>" as the host mangles it to "void k<float>(int)"."""
    text = demangled("_ZTI" + host_name.lstrip("*")).removeprefix("typeinfo for ")
    text = text[text.index("<") + 1 : -1].strip().removeprefix("&").strip()
    return text[1:-1] if text.startswith("(") else text


@functools.cache
def mangled(host_name: str) -> str:
    key = signature(host_name)
    for of_tests in (False, True):
        if key in by_signature(of_tests):
            return by_signature(of_tests)[key]
    raise RuntimeError(f"no PTX has {key}")


@functools.cache
def library_of(name: str) -> None:
    file, kernel = ptx_build.kernel(name)
    ptx_build.add(ptx_build.compiled(kernel, file))


_message = ctypes.create_string_buffer(1)


def _execute(grid: int, arguments: int, sizes: int, count: int) -> int | None:
    global _message
    try:
        _launch(Grid.from_address(grid), arguments, (ctypes.c_size_t * count).from_address(sizes))
    except Exception as e:
        _message = ctypes.create_string_buffer(str(e).encode())
        return ctypes.addressof(_message)
    return None


def _launch(grid: Grid, arguments: int, sizes: ctypes.Array[ctypes.c_size_t]) -> None:
    name = mangled(grid.kernel.decode())
    declared = [p.bytes for p in ptx_build.kernel(name)[1].parameters]
    if declared != list(sizes):
        raise RuntimeError(f"{name} takes parameters of {declared} bytes, and got {list(sizes)}")
    library_of(name)
    launched[name] = launched.get(name, 0) + 1
    machine = ptx_build.machine()
    if machine.ptx_execute(name.encode(), grid.blocks, grid.threads, grid.shared_bytes, grid.cluster, arguments):
        raise RuntimeError(machine.ptx_error().decode())


_executor = EXECUTOR(_execute)


@contextlib.contextmanager
def ptx(seed: int = 0, order: str = "") -> Iterator[None]:
    """Inside, torch.ops.atrousops.* on CPU tensors runs the PTX of the CUDA kernels.

    Args:
        seed: of the order of threads and blocks; 0 is ascending.
        order: "apart": lanes of a warp have no order between memory instructions. "ahead": a warp goes on for as long
            as it can before another one runs.
    """
    library = host_cuda.load()
    library.atrousops_host_cuda_set_executor.argtypes = [ctypes.c_void_p]
    ptx_build.machine().ptx_set_order(seed, ("", "apart", "ahead").index(order))
    library.atrousops_host_cuda_set_executor(ctypes.cast(_executor, ctypes.c_void_p))
    try:
        with host_cuda.host_cuda():
            yield
    finally:
        library.atrousops_host_cuda_set_executor(None)


@contextlib.contextmanager
def replaced(name: str, library: Path) -> Iterator[None]:
    """Inside, launches of this kernel run another translation of it."""
    library_of(name)
    ptx_build.add(library)
    try:
        yield
    finally:
        file, kernel = ptx_build.kernel(name)
        ptx_build.add(ptx_build.compiled(kernel, file))


def reached(name: str, check: Callable[[], None]) -> bytes:
    """Whether the check reaches each line of a kernel's body."""
    file, kernel = ptx_build.kernel(name)
    library = ptx_build.compiled_text(Translation(kernel, file, covered=True).translated(), "-O0")
    with replaced(name, library):
        check()
    hits = (ctypes.c_char * (kernel.body.count("\n") + 2)).in_dll(ctypes.CDLL(str(library)), "ptx_hits")
    return bytes(hits)
