"""Verdicts: which of our kernels have passed `atrousops selfcheck` on a GPU.

A kernel of ours is chosen automatically on a GPU only if its family passed there, with this build, driver and torch.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from atrousops.dispatch import devices, libraries, probe
from atrousops.dispatch.measured import Store
from atrousops.dispatch.planner import CallArguments

log = logging.getLogger("atrousops")

# The fallbacks of csrc/cuda/conv.cu if addresses or strides do not allow the planned kernel; they must have passed too.
_INSTEAD = {
    "depthwise": ("grouped",),
    "wgmma": ("mma", "simt"),
    "wgmma_strided": ("wgmma", "mma", "simt"),
    "mma": ("simt",),
}


class Identity(NamedTuple):
    """The set-up that a verdict is valid for: GPU model, driver, torch and library.

    backend: "cuda" or "triton"; capability: such as "9.0"; driver: its release, if known, and the CUDA version that it
    supports; library: the first digits of a digest of the compiled library, or of Triton's kernels.
    """

    backend: str
    gpu: str
    capability: str
    driver: str
    torch: str
    library: str


class TimedCall(NamedTuple):
    """A convolution that was timed, described by the planner's arguments.

    precision: as in `devices.Device`; itemsize: bytes per element.
    """

    arguments: CallArguments
    precision: str
    channels_last: bool
    itemsize: int


class Rate(NamedTuple):
    """Seconds of a call of ours and of PyTorch's operator or operators; `call` is given for a convolution."""

    what: str
    ours: float
    aten: float
    call: TimedCall | None = None


class Finding(NamedTuple):
    """The verdict on a family of kernels: whether it passed, the number of cases, the problem, and the speed."""

    ok: bool
    reason: str
    cases: int = 0
    rates: tuple[Rate, ...] = ()


def family_of(call: CallArguments, kernel: str) -> str:
    """The family of one of the planner's kernels in a call, such as "forward wgmma".

    If wgmma reads with a stride, its TMA copies skip elements and start at negative coordinates: "forward
    wgmma_strided". We know of no other kernel that combines both, so this is a separate family.
    """
    steps = call.kind in ("forward", "weight_grad") and max(call.stride) > 1
    return f"{call.kind} {kernel}_strided" if kernel == "wgmma" and steps else f"{call.kind} {kernel}"


_Key = tuple[Identity, str]
_answers: dict[tuple[str, str, str], str] = {}
_said: list[str] = []


@devices.constant_in_graphs
def why_not(backend: str, family: str, device: str) -> str:
    """Why a family of kernels is not chosen automatically on a GPU, or ""; cached.

    Args:
        backend: "cuda" or "triton".
        family: an operator's name, or for convolutions a kind and one of the planner's kernels, such as "forward
            wgmma".
        device: as str(torch.device). If there is no such GPU, plans assume one, and the result is "".
    """
    # Fast path for a device with an index, as tensors have.
    answer = _answers.get((backend, family, device))
    if answer is not None:
        return answer
    if not there_is(device):
        return ""
    key = (backend, family, numbered(device))
    return _answers.setdefault(key, _why_not(*key))


def _why_not(backend: str, family: str, device: str) -> str:
    found, gpu = known(backend, device), identity(backend, device).gpu
    if not found:
        problem = _nothing_known(backend, device)
        _say(f"{problem}; PyTorch's operators run there until then, and backend({backend!r}) forces ours")
        return problem
    kind, _, kernel = family.partition(" ")
    for each in (family, *[f"{kind} {other}" for other in _INSTEAD.get(kernel, ())]):
        finding = found.get(each)
        if finding is None:
            return f"{each} has not been checked on {gpu}: run `atrousops selfcheck`"
        if not finding.ok:
            return f"{each} failed its check on {gpu}: {finding.reason}"
    return ""


def _nothing_known(backend: str, device: str) -> str:
    now = identity(backend, device)
    others = [of for of, _ in _verdicts.of(device) if of.backend == backend]
    if not others:
        return f"our {backend} kernels have not been checked on {now.gpu}: run `atrousops selfcheck`"
    # The last entry in the file is the latest.
    then = others[-1]
    names = [n for n in Identity._fields if getattr(then, n) != getattr(now, n)]
    changed = ", ".join(f"{n} {getattr(then, n)}, now {getattr(now, n)}" for n in names)
    return f"our {backend} kernels were checked on another set-up ({changed}): run `atrousops selfcheck` again"


def _say(text: str) -> None:
    if not _said:
        _said.append(text)
        log.warning("atrousops: %s", text)


def finding(backend: str, family: str, device: str) -> Finding | None:
    """The verdict on one family on a GPU, if it was checked."""
    return known(backend, numbered(device)).get(family)


def known(backend: str, device: str) -> dict[str, Finding]:
    """The verdicts for a GPU by family, from this process or from the file."""
    now = identity(backend, device)
    return {family: finding for (of, family), finding in _verdicts.of(device).items() if of == now}


def record(backend: str, device: str, found: dict[str, Finding]) -> Path | None:
    """Stores verdicts for this process and later ones; returns the file written, or None.

    No file is written if ATROUSOPS_PLANS=none, or for an emulated GPU, unless ATROUSOPS_PLANS names a folder.
    """
    now = identity(backend, device)
    write = not devices.names_emulated(now.gpu) or bool(os.environ.get("ATROUSOPS_PLANS"))
    path = _verdicts.add(device, {(now, family): finding for family, finding in found.items()}, write=write)
    _answers.clear()
    return path


def there_is(device: str) -> bool:
    """Whether this machine has such a GPU."""
    return torch.get_device_module(torch.device(device)).is_available()


def gpu_name(device: str) -> str:
    """The name of the GPU with this index."""
    where = torch.device(device)
    return torch.get_device_module(where).get_device_properties(where.index).name


def forget() -> None:
    """Clears what was read or recorded in this process; files are kept."""
    for kept in (_answers, _said):
        kept.clear()
    _verdicts.forget()
    for cached in (identity, _digest):
        cached.cache_clear()


def path(device: str) -> Path | None:
    """The file of a GPU's verdicts, beside its measured plans."""
    return _verdicts.path(device)


def numbered(device: str) -> str:
    """The device with an index; by default that of the current GPU."""
    where = torch.device(device)
    index = torch.get_device_module(where).current_device() if where.index is None else where.index
    return f"{where.type}:{index}"


@functools.cache
def identity(backend: str, device: str) -> Identity:
    """The set-up that verdicts on a GPU of this machine, such as "cuda:1", are valid for."""
    where = torch.device(device)
    gpu = torch.get_device_module(where).get_device_properties(where.index)
    capability = f"{gpu.major}.{gpu.minor}" if hasattr(gpu, "major") else ""
    return Identity(backend, gpu.name, capability, _driver(gpu), torch.__version__, _digest(backend))


def _driver(gpu: Any) -> str:
    # Without the library only the release is known; Intel's GPUs report their driver version.
    cuda = probe.versions()[0] if libraries.cuda.problem is None else 0
    api = f"CUDA {probe.version(cuda)}" if cuda else getattr(gpu, "driver_version", "")
    return ", ".join(filter(None, [_release(), api]))


def _release() -> str:
    for file in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        try:
            text = Path(file).read_text()
        except OSError:
            continue
        release = re.search(r"\b\d+(\.\d+)+\b", text)
        return release[0] if release else ""
    return ""


@functools.cache
def _digest(backend: str) -> str:
    if backend == "cuda":
        return _digest_of([Path(libraries.cuda.path)])
    folder = Path(__file__).resolve().parents[1] / "triton"
    origin = libraries.triton.path
    return _digest_of([*sorted(folder.glob("*.py")), *([Path(origin)] if origin else [])])


def _digest_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def rate_from(what: str, ours: float, aten: float, call: list[Any] | None = None) -> Rate:
    """A Rate from its fields in JSON."""
    if call is None:
        return Rate(what, ours, aten)
    arguments, *rest = call
    sizes = CallArguments._make(tuple(a) if isinstance(a, list) else a for a in arguments)
    return Rate(what, ours, aten, TimedCall(sizes, *rest))


def _row(key: _Key, finding: Finding) -> dict[str, Any]:
    of, family = key
    return {"family": family, **of._asdict(), **finding._asdict(), "rates": [rate._asdict() for rate in finding.rates]}


def _entry(row: dict[str, Any]) -> tuple[_Key, Finding]:
    of = Identity(*[str(row[name]) for name in Identity._fields])
    rates = tuple(rate_from(**rate) for rate in row["rates"])
    return (of, str(row["family"])), Finding(bool(row["ok"]), str(row["reason"]), int(row["cases"]), rates)


_verdicts: Store[_Key, Finding] = Store("verdicts", lambda: "-selfcheck", _row, _entry, again="run selfcheck again")
