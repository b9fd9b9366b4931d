"""The machine: what it is called, what it can do at best, and how time is taken on it."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import atrousops as ao
from atrousops.bench.registry import DTYPES
from atrousops.common.testing import clock_of
from atrousops.dispatch import backends
from atrousops.dispatch.measured import cpu_name

# Bytes of a copy from memory, larger than any cache.
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass
class Ceilings:
    """The best that was measured here: bytes/s of a copy, read and written; FLOP/s of a square product by dtype."""

    copy: float = float("nan")
    gemm: dict[str, float] = field(default_factory=dict)

    def peak(self, dtype: str) -> float:
        """FLOP/s at which a row of this dtype can be computed: a CPU without 16-bit hardware computes it in fp32."""
        return max(self.gemm[dtype], self.gemm["fp32"] if dtype in ("bf16", "fp16") else 0.0)


def ceilings(device: torch.device, dtypes: Collection[str]) -> Ceilings:
    """Measures them."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), device)
    measured = dict.fromkeys(["fp32", *dtypes])
    return Ceilings(2 * COPY_BYTES[device.type] / seconds, {dtype: _gemm_peak(dtype, device) for dtype in measured})


def _gemm_peak(dtype: str, device: torch.device) -> float:
    # Doubled until one product takes a while: a machine without hardware for a dtype is slow at it.
    n, best = 512, 0.0
    while True:
        a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
        with tf32(dtype):
            seconds = _fastest(lambda a=a, b=b: torch.matmul(a, b), device)  # type: ignore[misc]
        best = max(best, 2.0 * n**3 / seconds)
        if seconds > (0.02 if device.type == "cpu" else 0.001) or n == 8192:
            return best
        n *= 2


def _fastest(function: Callable[[], object], device: torch.device) -> float:
    function()
    clock = clock_of(device)
    return min(clock(function) for _ in range(5))


@contextlib.contextmanager
def tf32(dtype: str) -> Iterator[None]:
    """Inside it, fp32 may be multiplied as TF32 exactly if the dtype is "tf32"; and cuDNN looks for its best kernel."""
    cudnn, matmul, allow = torch.backends.cudnn, torch.backends.cuda.matmul, dtype == "tf32"
    before = matmul.allow_tf32
    with cudnn.flags(True, True, deterministic=cudnn.deterministic, allow_tf32=allow):
        matmul.allow_tf32 = allow
        try:
            yield
        finally:
            matmul.allow_tf32 = before


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call has from PyTorch's allocator at most, beyond what was there before it."""
    if device.type != "cuda":
        return _peak_of_trace(function)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_trace(function: Callable[[], object]) -> int:
    # The CPU's allocator keeps no count of its own; the profiler hears of every piece it hands out or takes back.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(path := os.path.join(folder, "trace.json"))
        events = json.loads(Path(path).read_text())["traceEvents"]
    pieces = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(itertools.accumulate((size for _, size in pieces), initial=0))


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on: machine, versions, threads, and the commit if there is one."""
    facts = ao.info()
    return {
        "device": device_name(device),
        "cpu": cpu_name(),
        "isa": facts["cpu"]["isa"],
        "torch_isa": facts["cpu"]["torch_isa"],
        "cores": facts["cpu"]["cores"],
        "threads": facts["cpu"]["threads"],
        "load": load(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "versions": facts["versions"] | _peers(),
        "build": facts["build"],
        "libraries": {part["name"]: part["problem"] or "loaded" for part in facts["libraries"]},
        "forced_backend": backends.forced(),
        "variables": facts["environment"],
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """The name of the machine's folder of results, such as "amd-epyc-avx2-2-threads" or "nvidia-h100-80gb-hbm3"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_name()} {ao.info()['cpu']['isa'] or 'no library'} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def load() -> float | None:
    """How many processes wanted to run in the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "l2": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
    }


def _driver() -> str | None:
    try:
        found = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[1] if found else None


def _peers() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torchvision", "numpy", "pydensecrf", "pydensecrf2", "monai", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, with "+" if it has changes."""
    root = Path(ao.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = [
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return done[0] + ("+" if done[1] else "")
