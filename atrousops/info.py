"""info: the parts of this installation, and which backends run here."""

from __future__ import annotations

import ctypes
import os
import pkgutil
import platform
from pathlib import Path
from typing import Any

import torch

from atrousops import ops
from atrousops.common.version import __version__
from atrousops.dispatch import backends, libraries
from atrousops.dispatch.devices import is_emulated

DEVICES = ("cpu", "cuda")


class Info(dict[str, Any]):
    """The facts by section; prints as text."""

    def __str__(self) -> str:
        return _render(self)


def info() -> Info:
    """Facts about this installation, as `atrousops info` prints them.

    Sections: `versions`, `cpu` (the instruction set in use, those compiled, threads), `cuda` (the devices, and whether
    one is emulated), `libraries` (loaded, or why not), `build`, `environment` (the ATROUSOPS_ variables that are set),
    `operators` (for cpu and cuda: the backend that runs float32 here, and why each other does not), `weights` (the
    files that come with the package).
    """
    return Info(
        versions=_versions(),
        cpu=_cpu(),
        cuda=_cuda(),
        libraries=[
            {"name": part.name, "path": part.path, "loaded": part.problem is None, "problem": part.problem}
            for part in libraries.parts
        ],
        build=_build(),
        environment={name: os.environ[name] for name in sorted(os.environ) if name.startswith("ATROUSOPS_")},
        operators={name: {device: _who_runs(name, device) for device in DEVICES} for name in operator_names()},
        weights=_weights(),
    )


def operator_names() -> list[str]:
    """The names of the operators; an operator has the same name on every level of the package."""
    return sorted(module.name for module in pkgutil.iter_modules(ops.__path__) if not module.name.startswith("_"))


def cpu_isa() -> str | None:
    """The instruction set that our CPU kernels use here: "plain", "avx2" or "avx512"; None without the library."""
    if not libraries.has_operators:
        return None
    query = ctypes.CDLL(libraries.cpu.path).atrousops_cpu_isa
    query.restype = ctypes.c_char_p
    return query().decode()


def _versions() -> dict[str, str]:
    return {
        "atrousops": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _cpu() -> dict[str, Any]:
    compiled = libraries.planner.isas.split(",") if libraries.planner is not None else []
    return {
        "isa": cpu_isa(),
        "compiled": compiled,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _cuda() -> dict[str, Any]:
    available = torch.cuda.is_available()
    numbers = range(torch.cuda.device_count()) if available else range(0)
    return {
        "torch_built_for": torch.version.cuda,
        "available": available,
        "devices": [torch.cuda.get_device_name(i) for i in numbers],
        "emulated": any(is_emulated(f"cuda:{i}") for i in numbers),
    }


def _build() -> dict[str, str]:
    planner = libraries.planner
    if planner is None:
        return {}
    target = planner.torch_target >> 48
    return {
        "torch": planner.torch_built,
        "oldest_torch": f"{target >> 8}.{target & 0xFF}",
        "compiler": planner.compiler,
    }


def _who_runs(op: str, device: str) -> dict[str, Any]:
    where = torch.device(device)
    verdicts = {name: backends.can_run(name, op, where, torch.float32) for name in backends.NAMES}
    forced = backends.forced()
    if forced is not None and not verdicts[forced].ok:
        runs = None
    else:
        runs = backends.choose(op, where, torch.float32)
    why_not = {name: verdict.reason for name, verdict in verdicts.items() if not verdict.ok}
    unproved = backends.unproved(op, where, torch.float32)
    why_not |= {name: unproved for name in ("cuda", "triton") if unproved and verdicts[name].ok}
    return {"runs": runs, "forced": forced, "why_not": why_not}


def _weights() -> list[dict[str, Any]]:
    folder = Path(__file__).resolve().parent / "weights"
    return [{"name": file.stem, "path": str(file), "bytes": file.stat().st_size} for file in _files(folder)]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


def _render(facts: Info) -> str:
    versions, cpu, cuda, build = facts["versions"], facts["cpu"], facts["cuda"], facts["build"]
    lines = [
        f"atrousops {versions['atrousops']}, torch {versions['torch']}, Python {versions['python']}",
        versions["platform"],
        "",
        f"CPU       {cpu['isa'] or 'our kernels are missing'} (compiled: {', '.join(cpu['compiled']) or 'none'};"
        f" torch: {cpu['torch_isa']}), {cpu['threads']} threads on {cpu['cores']} cores",
        f"CUDA      {', '.join(cuda['devices']) or 'no device'} (torch built for: {cuda['torch_built_for'] or 'none'})",
    ]
    if cuda["emulated"]:
        lines.append("          EMULATED: the CPU executes the kernels' PTX; no GPU is here, and times say nothing")
    if build:
        lines.append(
            f"build     against torch {build['torch']}, runs from torch {build['oldest_torch']} on; {build['compiler']}"
        )
    for part in facts["libraries"]:
        state = "loaded" if part["loaded"] else "MISSING"
        lines.append(f"library   {part['name']:<4} {state}: {part['problem'] or part['path']}")
    lines += [f"variable  {name}={value}" for name, value in facts["environment"].items()]
    lines += [f"weights   {file['name']} ({file['bytes'] / 1e6:.1f} MB)" for file in facts["weights"]]
    lines += ["", *_render_operators(facts["operators"])]
    return "\n".join(lines)


def _render_operators(operators: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    lines = [f"{'operator':<20}" + "".join(f"{'on ' + device:<12}" for device in DEVICES) + "(float32)"]
    for name, devices in operators.items():
        lines.append(f"{name:<20}" + "".join(f"{devices[device]['runs'] or 'none':<12}" for device in DEVICES).rstrip())
    reasons: dict[str, dict[str, None]] = {}
    for name, devices in operators.items():
        for verdict in devices.values():
            for backend, reason in verdict["why_not"].items():
                reasons.setdefault(f"{backend}: {reason}", {})[name] = None
    lines += ["", "why the other backends do not run:"]
    for reason, names in sorted(reasons.items()):
        lines.append(f"  {reason}" + ("" if len(names) == len(operators) else f" ({', '.join(names)})"))
    return lines
