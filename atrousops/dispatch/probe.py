"""Whether the CUDA library runs on a device: checked once per device, before any of its kernels is chosen."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch

from atrousops.dispatch import libraries
from atrousops.dispatch.devices import constant_in_graphs, gpu_index


class Verdict(NamedTuple):
    """Whether something can run, and if not, why."""

    ok: bool
    reason: str


class Facts(NamedTuple):
    """The facts that decide whether the library runs on a device.

    name: of the GPU; capability: 10 major + minor; driver, runtime: CUDA's versions, 1000 major + 10 minor, of the
    driver and in the library; code: the targets it was compiled for, such as sm_90a and, as PTX, compute_80.
    """

    name: str
    capability: int
    driver: int
    runtime: int
    code: tuple[str, ...]


@constant_in_graphs
def verdict(device: torch.device) -> Verdict:
    """Whether the CUDA library runs on a GPU; the first call for each takes milliseconds and starts a kernel."""
    if not torch.cuda.is_available():
        # No tensor can be on such a device, but plans can be made for it.
        return Verdict(True, "there is no GPU to ask")
    return _verdict(gpu_index(str(device)))


@functools.cache
def _verdict(index: int) -> Verdict:
    judged = judge(facts(index))
    if not judged.ok:
        return judged
    problem = run(index)
    return Verdict(False, f"a trivial kernel failed on {torch.device('cuda', index)}: {problem}") if problem else judged


@functools.cache
def runs_nowhere() -> bool:
    """Whether the library was compiled for none of this machine's GPUs. Starts no kernel."""
    found = [judge(facts(index)).ok for index in range(torch.cuda.device_count())]
    return bool(found) and not any(found)


def judge(found: Facts) -> Verdict:
    """The verdict that is possible without starting a kernel."""
    if not has_code(found.capability, found.code):
        major, minor = divmod(found.capability, 10)
        return Verdict(
            False,
            f"{found.name} has capability {major}.{minor}, and the CUDA library code for {', '.join(found.code)}",
        )
    # Within a major version an older driver supports a newer runtime.
    if found.driver // 1000 < found.runtime // 1000:
        return Verdict(
            False,
            f"the driver knows CUDA {version(found.driver)}, and the CUDA library was built with "
            f"{version(found.runtime)}: update the driver, or build with that CUDA or an older one",
        )
    return Verdict(True, "our CUDA kernel")


def has_code(capability: int, code: Sequence[str]) -> bool:
    """Whether a device of this capability can load one of the codes.

    Machine code runs on the same major version with the same or a later minor version; with a suffix "a" only on the
    same version. PTX runs on all later versions.
    """
    for each in code:
        kind, number, exact = re.fullmatch(r"(sm|compute)_(\d+)(a?)", each).groups()  # type: ignore[union-attr]
        least = int(number)
        if exact:
            fits = capability == least
        else:
            fits = capability >= least and (kind == "compute" or capability // 10 == least // 10)
        if fits:
            return True
    return False


def version(number: int) -> str:
    """13.0 for 13000."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "nothing"


@functools.cache
def _cuda() -> ctypes.CDLL:
    library = ctypes.CDLL(libraries.cuda.path)
    library.atrousops_cuda_code.restype = ctypes.c_char_p
    return library


def versions() -> tuple[int, int]:
    """CUDA versions as in Facts: of the driver, and of the runtime in the library."""
    driver, runtime = ctypes.c_int(), ctypes.c_int()
    _cuda().atrousops_cuda_versions(ctypes.byref(driver), ctypes.byref(runtime))
    return driver.value, runtime.value


def facts(index: int) -> Facts:
    """Collects the facts from torch, the driver and the library."""
    driver, runtime = versions()
    gpu = torch.cuda.get_device_properties(index)
    code = tuple(_cuda().atrousops_cuda_code().decode().split(","))
    return Facts(gpu.name, 10 * gpu.major + gpu.minor, driver, runtime, code)


# Seconds allowed for a trivial kernel, including loading the library's code and queueing.
LIMIT = 30.0


def run(index: int) -> str:
    """Starts a trivial kernel on a GPU and waits up to LIMIT seconds for it; returns the problem, or "".

    If the device hangs, the waiting thread is left running: the driver cannot stop it.
    """
    text = ctypes.create_string_buffer(1024)
    arguments = (index, text, len(text))
    waiting = threading.Thread(target=_cuda().atrousops_cuda_probe, args=arguments, name="probe", daemon=True)
    waiting.start()
    waiting.join(LIMIT)
    return f"it did not end within {LIMIT:g} s" if waiting.is_alive() else text.value.decode(errors="replace")
