"""Which backend runs an operator, and why the others do not.

Backends: `cuda`, `triton`, `cpu` are ours; `aten` is PyTorch (or torchvision) itself; `reference` is readable PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator

import torch

from atrousops.common.checks import bad_value
from atrousops.dispatch import libraries, probe, triton_library, verdicts
from atrousops.dispatch.devices import constant_in_graphs
from atrousops.dispatch.probe import Verdict

log = logging.getLogger("atrousops")

NAMES = ("cuda", "triton", "cpu", "aten", "reference")
# Backends with kernels for torch.ops.atrousops; the dispatcher selects by device. Triton compiles its kernels at their
# first call. "meta" has only shapes and is not a backend.
COMPILED = ("cpu", "cuda", "triton", "meta")
# Devices on which PyTorch's kernels are compared with ours.
PLANNED = ("cpu", "cuda")
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Operators that PyTorch or torchvision also has.
HAS_ATEN = frozenset({"conv", "conv_quantized", "conv_transpose", "max_pool", "max_unpool", "roi_align", "roi_pool"})
# Operators of which we have kernels for CUDA alone.
_CUDA_ALONE = frozenset(libraries.CUDA_OPERATORS)
# Operators whose verdicts are not looked up here. Plans look up the verdict of each kernel of a convolution
# (dispatch/choice.py); operators without another implementation are checked at their first call (ops/_first_call.py).
_HELD_ELSEWHERE = frozenset({"conv", "conv_transpose", "permutohedral", "mean_field"})

_forced: list[str | None] = [os.environ.get("ATROUSOPS_BACKEND") or None]
if _forced[0] is not None and _forced[0] not in NAMES:
    bad_value("ATROUSOPS_BACKEND", "the variable", f"be one of {', '.join(NAMES)}", repr(_forced[0]))


def can_run(name: str, op: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Whether backend `name` can run operator `op` on this device and dtype, and if not, why."""
    if name == "reference":
        return Verdict(True, "pure PyTorch, any device")
    if name == "aten":
        if op in HAS_ATEN:
            return Verdict(True, "PyTorch's own operator")
        return Verdict(False, "PyTorch has no such operator")
    if name in ("cpu", "triton") and op in _CUDA_ALONE:
        return Verdict(False, f"we have a kernel for {op} on CUDA alone")
    if name in ("cpu", "cuda"):
        part = libraries.cpu if name == "cpu" else libraries.cuda
        if part.problem is not None:
            return Verdict(False, f"the {name.upper()} library is missing: {part.problem}")
        if device.type != name:
            return Verdict(False, f"the tensors are on {device}")
        if dtype not in FLOATING:
            return Verdict(False, f"{dtype} is not one of float64, float32, bfloat16, float16")
        if name == "cuda" and not _has_cuda_kernel(op):
            return Verdict(False, f"there is no CUDA kernel for {op} yet")
        if name == "cuda":
            return probe.verdict(device)
        return Verdict(True, f"our {name.upper()} kernel")
    if name == "triton":
        return _can_run_triton(device, dtype)
    bad_value("backend", "name", f"be one of {', '.join(NAMES)}", repr(name))


def _can_run_triton(device: torch.device, dtype: torch.dtype) -> Verdict:
    if libraries.triton.problem is not None:
        return Verdict(False, libraries.triton.problem)
    if device.type not in ("cpu", *triton_library.KEYS):
        return Verdict(False, f"the tensors are on {device}")
    if device.type == "cpu" and not triton_library.interpreted():
        return Verdict(False, "the tensors are on cpu, and Triton runs there only under TRITON_INTERPRET=1")
    if dtype not in FLOATING:
        return Verdict(False, f"{dtype} is not one of float64, float32, bfloat16, float16")
    return Verdict(True, "our Triton kernel, interpreted" if triton_library.interpreted() else "our Triton kernel")


@constant_in_graphs
def _has_cuda_kernel(op: str) -> bool:
    return _registered(op)


@functools.cache
def _registered(op: str) -> bool:
    # There is no operator called permutohedral.
    schema = {"permutohedral": "permutohedral_apply"}.get(op, op)
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"atrousops::{schema}", "CUDA")


def own(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Our backend that would run `op` if none is forced; "" if there is none, or it has not passed its check."""
    name = _able(op, device, dtype)
    return "" if name and _unproved(name, op, device) else name


def unproved(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why our backend for `op` runs only if forced: it has not passed `atrousops selfcheck`."""
    name = _able(op, device, dtype)
    return _unproved(name, op, device) if name else ""


def _unproved(name: str, op: str, device: torch.device) -> str:
    if name == "cpu" or op in _HELD_ELSEWHERE:
        return ""
    return verdicts.why_not(name, op, str(device))


def _able(op: str, device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cpu":
        return "cpu" if can_run("cpu", op, device, dtype).ok else ""
    if can_run("cuda", op, device, dtype).ok:
        return "cuda"
    return "triton" if can_run("triton", op, device, dtype).ok and _triton_serves(device) else ""


@constant_in_graphs
def _triton_serves(device: torch.device) -> bool:
    # Kernels are registered for all GPUs of a process: Triton's if the library supports none of them.
    if device.type == "cuda" and libraries.cuda.problem is None and probe.runs_nowhere():
        triton_library.take_over()
    return triton_library.serves(device)


def choose(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs `op`: the forced one, else the first of ours that can, else reference.

    Raises ArgumentError if a backend is forced that cannot run this.
    """
    forced = _forced[0]
    if device.type == "meta" and dtype in FLOATING and libraries.has_schemas:
        return "meta"
    if forced is not None:
        verdict = can_run(forced, op, device, dtype)
        if not verdict.ok:
            bad_value(
                op,
                "backend",
                "be able to run this call",
                f"{forced!r}, but {verdict.reason}",
                "Leave the choice to atrousops with backend(None).",
            )
        return forced
    # Written out for the common case, because this runs on every call.
    if device.type == "cpu" and libraries.has_operators and dtype in FLOATING and op not in _CUDA_ALONE:
        return "cpu"
    ours = own(op, device, dtype) if device.type in triton_library.KEYS else ""
    return ours or ("aten" if op in HAS_ATEN else "reference")


def forced() -> str | None:
    """The backend forced by `backend()` or ATROUSOPS_BACKEND, if any."""
    return _forced[0]


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Forces one backend inside the `with` block, for the whole process; None restores the automatic choice.

    Args:
        name: one of "cuda", "triton", "cpu", "aten", "reference", or None.

    Raises:
        ArgumentError: the name is none of these. A backend that cannot run a call raises at that call.
    """
    if name is not None and name not in NAMES:
        bad_value("backend", "name", f"be one of {', '.join(NAMES)} or None", repr(name))
    before = _forced[0]
    with triton_library.forced(name == "triton"):
        _forced[0] = name
        try:
            yield
        finally:
            _forced[0] = before


triton_library.install()
if _forced[0] == "triton":
    triton_library.force(True)
