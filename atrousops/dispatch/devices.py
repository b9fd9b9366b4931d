"""The machine as a plan sees it: its threads, and its rates from the files in machines/."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from atrousops.common.checks import bad_value
from atrousops.dispatch import libraries, triton_library

F = TypeVar("F", bound=Callable[..., Any])

# Rates by name, and a list of exceptions; see atrousops/dispatch/machines/README.md.
Rates = dict[str, Any]

_FOLDER = Path(__file__).resolve().parent / "machines"
_FACTS = ("multiprocessors", "shared_memory", "capability")
_TEXTS = ("name", "date", "measured", "guessed")
_CLASSES = ("float", "half", "float16", "tf32", "double")
_UNITS = {"GFLOP/s": 1e9, "TFLOP/s": 1e12, "GB/s": 1e9}


class Device(NamedTuple):
    """The machine as a plan sees it; fields from `multiprocessors` on are for GPUs.

    kind: "cpu", "cuda", or "triton" for a GPU that uses Triton.
    shared_memory: bytes per block.
    capability: 10 major + minor.
    precision: of multiplications: "half" for both 16-bit types, "float", "tf32" or "double".
    """

    kind: str
    threads: int
    rates: Rates
    multiprocessors: int = 0
    shared_memory: int = 0
    capability: int = 0
    precision: str = "float"


def cpu_device(dtype: torch.dtype, channels_last: bool) -> Device:
    """This machine's CPU with the rates for a dtype and memory format."""
    return cpu(_cpu_machine(), dtype, channels_last, torch.get_num_threads())


def cpu(machine: str, dtype: torch.dtype, channels_last: bool, threads: int) -> Device:
    """A CPU of atrousops/dispatch/machines: "amx", "avx512", "avx2" or "plain"."""
    return Device("cpu", threads, cpu_rates(machine, dtype, channels_last))


def gpu_device(dtype: torch.dtype, channels_last: bool, device: str = "cuda") -> Device:
    """A GPU of this machine, or else an H100 or MI300X, with the rates for a dtype and memory format.

    device: as str(torch.device), "cuda" for the current one.
    """
    machine = "h100" if torch.version.hip is None else "mi300x"
    facts = _gpu(gpu_index(device)) if torch.cuda.is_available() else gpu_facts(machine)
    return gpu(gpu_kind(), facts, dtype, channels_last, tf32_allowed(), machine)


def gpu_kind() -> str:
    """The kernels that are planned on GPUs: "cuda", or "triton" if that library is missing or runs on none of them."""
    replaced = libraries.cuda.problem is not None or triton_library.took_over()
    return "triton" if replaced and triton_library.installed() else "cuda"


def gpu(
    kind: str,
    facts: tuple[int, int, int],
    dtype: torch.dtype,
    channels_last: bool,
    tf32: bool,
    machine: str = "h100",
) -> Device:
    """A GPU with the given multiprocessors, bytes of shared memory and capability, and the rates of a known GPU."""
    precision = precision_of(dtype, tf32)
    return Device(kind, 1, gpu_rates(machine, facts[0], precision, channels_last), *facts, precision)


def precision_of(dtype: torch.dtype, tf32: bool) -> str:
    """The precision in which a GPU multiplies a dtype, as in `Device`."""
    return {torch.float64: "double", torch.float32: "tf32" if tf32 else "float"}.get(dtype, "half")


def device_of(device: str, dtype: torch.dtype, channels_last: bool) -> Device:
    """`cpu_device` or `gpu_device`, by the name of a torch.device: "cpu", "cuda", "cuda:1"."""
    return cpu_device(dtype, channels_last) if device == "cpu" else gpu_device(dtype, channels_last, device)


def gpu_index(device: str) -> int:
    """The index in "cuda:1"; the current device for "cuda"."""
    number = device.partition(":")[2]
    return int(number) if number else torch.cuda.current_device()


def is_emulated(device: torch.device | str = "cuda") -> bool:
    """Whether a GPU is emulated by this project's tests, according to its name; its times mean nothing.

    Every report on a device must check this. False for a CPU, and if there is no GPU.
    """
    where = torch.device(device)
    return where.type == "cuda" and torch.cuda.is_available() and names_emulated(torch.cuda.get_device_name(where))


def names_emulated(gpu: str) -> bool:
    """The same, by the name of the GPU."""
    return "EMULATED" in gpu


def is_captured(device: torch.device) -> bool:
    """Whether the current stream of a GPU is capturing a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def constant_in_graphs(function: F) -> F:
    """The same as torch.compiler.assume_constant_result, without its slow import of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def tf32_allowed() -> bool:
    """torch.backends.cudnn.allow_tf32, or the newer fp32_precision setting for convolutions; not on ROCm."""
    return torch.version.hip is None and torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32"


def allow_tf32(t: torch.Tensor) -> bool:
    """Whether fp32 may be multiplied as TF32: on a GPU, if PyTorch's own convolutions would do so."""
    return t.is_cuda and tf32_allowed()


@cache
def _gpu(index: int) -> tuple[int, int, int]:
    gpu = torch.cuda.get_device_properties(index)
    # ROCm has no such setting and no such property.
    shared = getattr(gpu, "shared_memory_per_block_optin", None) or gpu.shared_memory_per_block
    return gpu.multi_processor_count, shared, 10 * gpu.major + gpu.minor


@cache
def _cpu_machine() -> str:
    isa = torch.backends.cpu.get_cpu_capability()
    if isa == "AVX512" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return "amx"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(isa, "plain")


@cache
def cpu_rates(machine: str, dtype: torch.dtype, channels_last: bool) -> Rates:
    """The rates of a CPU, in operations, bytes and calls per second."""
    file = machine_file(machine)
    if dtype == torch.float64:
        return _double(_rates(machine, "float", channels_last, "cpu"))
    if dtype == torch.float16 and "float16" in file:
        like = file["float16"].get("like")
        return _rates(like, "half", channels_last, "cpu") if like else _rates(machine, "float16", channels_last, "cpu")
    return _rates(machine, "half" if dtype.itemsize == 2 else "float", channels_last, "cpu")


def _double(rates: Rates) -> Rates:
    # fp64 uses im2col and a BLAS GEMM instead of oneDNN, as fast as ours: 1 / 2.8 of fp32. Loops have half the lanes.
    gemm = rates["gemm"] / 2.8
    dense = (
        "aten",
        "aten_pointwise",
        "aten_weight_grad",
        "aten_weight_grad_odd",
        "aten_strided",
        "gemm",
        "gemm_weight",
    )
    groups = ("aten_grouped", "aten_grouped_grad", "aten_depthwise", "aten_depthwise_grad", "aten_strided_grouped")
    loops = (*groups, "aten_strided_odd", "depthwise", "grouped")
    free = dict.fromkeys(("tails", "columns", "results", "pieces"), inf) | {"skips": 0.0, "weight_skips": 0.0}
    exceptions = [e | {"rate": e["rate"] / 2} for e in rates["exceptions"] if e["of"] in loops]
    halves = {name: rates[name] / 2 for name in loops}
    return rates | dict.fromkeys(dense, gemm) | halves | free | {"exceptions": exceptions}


@cache
def gpu_rates(machine: str, multiprocessors: int, precision: str, channels_last: bool) -> Rates:
    """The rates of a GPU: those of the file scaled by multiprocessors; overheads are not scaled."""
    file = machine_file(machine)
    if "like" in file:
        return gpu_rates(file["like"], multiprocessors, precision, channels_last)
    scale = multiprocessors / gpu_facts(machine)[0]
    units = _names()
    rates = _rates(machine, precision, channels_last, "gpu")
    return {n: x * scale if n in units and units[n][0] in ("operations", "bytes") else x for n, x in rates.items()}


def gpu_facts(machine: str) -> tuple[int, int, int]:
    """Multiprocessors, bytes of shared memory per block and capability of a GPU of atrousops/dispatch/machines."""
    facts = machine_file(machine)["facts"]
    return facts["multiprocessors"], facts["shared_memory"], facts["capability"]


@cache
def machine_file(machine: str) -> dict[str, Any]:
    """The content of a file of atrousops/dispatch/machines.

    Raises:
        ArgumentError: a table or key is unknown or missing; the message names the file and the key.
    """
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = _FOLDER / f"{machine}.toml"
    file = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {*_TEXTS, "like", "facts", "units", "common", *_CLASSES}
    _check_keys(path.name, file, known, _TEXTS if "like" in file else (*_TEXTS, "units", "common"))
    if "facts" in file:
        _check_keys(f"{path.name} [facts]", file["facts"], _FACTS, _FACTS)
    return file


def _rates(machine: str, of: str, channels_last: bool, kind: str) -> Rates:
    # For one dtype and memory format: the tables for everything, for both formats, and for this one.
    file, names = machine_file(machine), _names()
    layout = "channels_last" if channels_last else "nchw"
    where = f"{machine}.toml [{of}.{layout}]"
    tables = [file["common"], file[of].get("both", {}), file[of].get(layout, {})]
    merged = {name: value for table in tables for name, value in table.items()}
    if len(merged) < sum(map(len, tables)):
        twice = sorted(n for n in merged if sum(n in table for table in tables) > 1)
        bad_value(where, twice[0], "be given once", "two of it")
    own = [name for name, (_, cpu, gpu) in names.items() if (cpu if kind == "cpu" else gpu)] + ["exceptions"]
    _check_keys(where, merged, own, own)
    units = {"operations": _unit(machine, file, "operations"), "bytes": _unit(machine, file, "bytes")}
    rates: Rates = {n: float(x) * units.get(names[n][0], 1.0) for n, x in merged.items() if n != "exceptions"}
    rates["exceptions"] = [_exception(where, e, units["operations"]) for e in merged["exceptions"]]
    return rates


def _exception(where: str, exception: dict[str, Any], unit: float) -> dict[str, Any]:
    where += " exceptions"
    _check_keys(where, exception, ("of", "when", "rate", "skips"), ("of", "when", "rate"))
    _check_keys(where, exception["when"], libraries.planner.conditions(), ())  # type: ignore[union-attr]
    _check_keys(where, [exception["of"]], [n for n, (unit, *_) in _names().items() if unit == "operations"], ())
    return exception | {"rate": exception["rate"] * unit}


def _unit(machine: str, file: dict[str, Any], quantity: str) -> float:
    unit = file["units"].get(quantity)
    if unit not in _UNITS:
        bad_value(f"{machine}.toml [units]", quantity, f"be one of {', '.join(_UNITS)}", repr(unit))
    return _UNITS[unit]


def _names() -> dict[str, tuple[str, bool, bool]]:
    """Every rate in csrc/core/rates.h with its unit, and whether CPUs and GPUs have it."""
    assert libraries.planner is not None
    return libraries.planner.rates()


def _check_keys(where: str, table: Iterable[str], known: Iterable[str], needed: Iterable[str]) -> None:
    keys, known = set(table), sorted(known)
    for name in sorted(keys.difference(known)):
        bad_value(where, name, f"be one of {', '.join(known)}", "an unknown name")
    for name in needed:
        if name not in keys:
            _missing(where, name)


def _missing(where: str, name: str) -> NoReturn:
    bad_value(where, name, "be given", "nothing")
