"""nvcc's PTX of csrc/cuda, translated, compiled and kept in build/ptx by the hash of what it was made from.

`python tests/ptx/ptx_build.py` makes all of it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from ptx_parse import Kernel, kernels
from ptx_translate import Translation

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Path(__file__).resolve().parent / "machine"
BUILD = ROOT / "build" / "ptx"
TORCH = Path(torch.__file__).parent / "include"
NVCC = shutil.which("nvcc")
# As CMakeLists.txt has them; -O3 is the Release build's.
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
FLAGS += ["-DATROUSOPS_SM90A", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden"]
# Which machine code the library says that it holds, in probe.cu.
FLAGS += ['-DATROUSOPS_CUDA_CODE="none"']
CXX = ["g++", "-std=c++20", "-fPIC", "-ffp-contract=off", "-frounding-math", "-fvisibility=hidden", f"-I{MACHINE}"]


def problem() -> str | None:
    """Why no PTX can be run here, or None."""
    return None if NVCC else "there is no nvcc to make PTX"


def digest(*parts: bytes | str) -> str:
    h = hashlib.sha256()
    for part in parts:
        h.update(part.encode() if isinstance(part, str) else part)
        h.update(b"\0")
    return h.hexdigest()[:24]


def vector_flags() -> list[str]:
    """fma and half precision in hardware, where this CPU has them."""
    flags = re.search(r"^flags.*", Path("/proc/cpuinfo").read_text(), re.M)
    return [f"-m{name}" for name in ("fma", "f16c") if flags and f" {name} " in flags[0] + " "]


def run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(str(c) for c in command)}\n{done.stderr[-3000:]}")


def replaced(path: Path, text: str) -> None:
    """Another process may read it meanwhile."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def test_sources() -> list[Path]:
    """Small kernels around single instructions, which the emulation of the source is tested with."""
    return [ROOT / "csrc" / "host_cuda" / f"{name}.cpp" for name in ("test_arch", "test_tma", "test_wgmma")]


@functools.cache
def newest_source() -> float:
    """When a file that nvcc may read was last changed."""
    others = {ROOT / "csrc" / name for name in ("cpu", "fake_cuda", "host_cuda")}
    read = (file for file in (ROOT / "csrc").rglob("*") if file.is_file() and not others & set(file.parents))
    return max(file.stat().st_mtime for file in read)


def ptx_of(source: Path) -> Path:
    """The PTX of a .cu: what `make cuda` kept, or made here, again when a file it includes from csrc has changed."""
    kept = ROOT / "build" / "cuda" / "fake_cuda" / "ptx" / f"{source.stem}.ptx"
    if kept.exists() and kept.stat().st_mtime > newest_source():
        return kept
    made, record = BUILD / f"{source.stem}.ptx", BUILD / f"{source.stem}.json"
    named = re.search(r"_sm(\d+a?)$", source.stem)
    arch = "90a" if source.suffix == ".cpp" else named[1] if named else "80"
    command = [str(NVCC), "-ptx", "-gencode", f"arch=compute_{arch},code=compute_{arch}", *FLAGS]

    def state(files: Iterable[str]) -> str:
        return digest(*command, *(f.encode() + (ROOT / f).read_bytes() for f in files if (ROOT / f).exists()))

    if record.exists() and made.exists():
        known = json.loads(record.read_text())
        if known["state"] == state(known["files"]):
            return made
    BUILD.mkdir(parents=True, exist_ok=True)
    new, includes = made.with_suffix(f".{os.getpid()}.ptx"), BUILD / f"{source.stem}.{os.getpid()}.d"
    run(*command, "-MD", "-MF", includes, "-I", ROOT / "csrc", "-isystem", TORCH, "-o", new, "-x", "cu", source)
    found = re.findall(r"[^\s\\:]+", includes.read_text())
    inside = {os.path.relpath(f, ROOT) for f in found if Path(f).resolve().is_relative_to(ROOT / "csrc")}
    includes.unlink()
    new.replace(made)
    replaced(record, json.dumps({"state": state(sorted(inside)), "files": sorted(inside)}))
    return made


@functools.cache
def all_kernels() -> dict[str, tuple[str, Kernel]]:
    """Every kernel by its mangled name, with the file it is in."""
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(ptx_of, sources()))
    return {k.name: (path.name, k) for path in made for k in kernels(path.read_text())}


@functools.cache
def kernels_of_tests() -> dict[str, tuple[str, Kernel]]:
    """The same of `test_sources`."""
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(ptx_of, test_sources()))
    return {k.name: (path.name, k) for path in made for k in kernels(path.read_text())}


def kernel(name: str) -> tuple[str, Kernel]:
    """A kernel of the library or of the tests, and its file."""
    return all_kernels()[name] if name in all_kernels() else kernels_of_tests()[name]


@functools.cache
def machine_path() -> Path:
    """libptx_machine.so: the engine of csrc/host_cuda and the semantics of PTX."""
    engine = [ROOT / "csrc" / "host_cuda" / f"{name}.{ext}" for name in ("engine", "fiber") for ext in ("cpp", "h")]
    files = sorted(
        [*MACHINE.iterdir(), *engine, ROOT / "csrc/host_cuda/types.h", ROOT / "csrc/host_cuda/encoded_map.h"]
    )
    flags = [*CXX, "-O2", *vector_flags(), f"-I{ROOT / 'csrc'}", "-Wall", "-Wextra"]
    made = BUILD / f"libptx_machine_{digest(*flags, *(f.read_bytes() for f in files))}.so"
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        new = made.with_suffix(f".{os.getpid()}")
        run(*flags, "-shared", "-Wl,-z,defs", *(f for f in files if f.suffix == ".cpp"), "-o", new)
        new.replace(made)
    return made


def compiled(kernel: Kernel, file: str, level: str = "-O1") -> Path:
    """The shared library of one kernel."""
    return compiled_text(Translation(kernel, file).translated(), level)


def compiled_text(text: str, level: str = "-O1") -> Path:
    """The shared library of a translation; "-O0" for one that runs a few times only."""
    flags = [*CXX, level, "-w", *vector_flags()]
    made = BUILD / f"k_{digest(text, (MACHINE / 'ptx.h').read_bytes(), *flags)}.so"
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        # Threads and processes may make it at the same time.
        source = made.with_suffix(f".{os.getpid()}.{threading.get_ident()}.cpp")
        source.write_text(text)
        # What the machine gives is found in it when the library is loaded.
        new = source.with_suffix(".so")
        run(*flags, "-shared", source, "-o", new)
        new.replace(made)
        source.unlink()
    return made


class Dim3(ctypes.Structure):
    """machine/ptx.h's, and the engine's."""

    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


EXECUTE = [ctypes.c_char_p, Dim3, Dim3, ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p]


@functools.cache
def machine() -> ctypes.CDLL:
    """The machine, loaded so that kernels find it."""
    loaded = ctypes.CDLL(str(machine_path()), ctypes.RTLD_GLOBAL)
    loaded.ptx_error.restype = ctypes.c_char_p
    loaded.ptx_execute.argtypes = EXECUTE
    loaded.ptx_add.argtypes = [ctypes.c_void_p]
    loaded.ptx_set_order.argtypes = [ctypes.c_uint64, ctypes.c_int]
    return loaded


def add(library: Path) -> None:
    """From now on launches of the library's kernel run it."""
    machine()
    loaded = ctypes.CDLL(str(library))
    loaded.ptx_entry.restype = ctypes.c_void_p
    machine().ptx_add(loaded.ptx_entry())


def build(names: Iterable[str] | None = None, jobs: int = 2) -> None:
    """Translates and compiles these kernels, or all."""
    known = all_kernels()
    chosen = sorted(names or known, key=lambda n: -len(known[n][1].body))
    machine_path()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda n: compiled(known[n][1], known[n][0]), chosen))


if __name__ == "__main__":
    build(jobs=os.cpu_count() or 2)
