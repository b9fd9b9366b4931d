"""What the CUDA library's machine code needs and holds, kernel by kernel, read with cuobjdump; no GPU takes part.

python tests/compile/resources.py prints the table; with --write it becomes budget.json. With --registers FILE it prints
each kernel's registers by architecture, of another library, as JSON.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "atrousops" / "lib" / "libatrousops_cuda.so"
BUDGET = Path(__file__).with_name("budget.json")
REGENERATE = "python tests/compile/resources.py --write"


def cuobjdump() -> Path | None:
    """The CUDA toolkit's, or the one that comes with triton, and so with torch."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders += [Path(found).resolve().parent for tool in ("cuobjdump", "nvcc") if (found := shutil.which(tool))]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return next((f / "cuobjdump" for f in folders if (f / "cuobjdump").exists()), None)


def problem() -> str | None:
    """Why nothing can be read here, or None."""
    if not LIBRARY.exists():
        return f"{LIBRARY.relative_to(ROOT)} is not built (make cuda; it needs nvcc)"
    return no_tool()


def no_tool() -> str | None:
    """That there is no cuobjdump, or None."""
    return None if cuobjdump() else "no cuobjdump: neither in a CUDA toolkit nor in the triton package"


def _dump(*options: str, library: Path | None = None) -> Iterator[str]:
    tool = cuobjdump()
    assert tool is not None
    # It calls nvdisasm, its neighbour.
    env = dict(os.environ, PATH=os.pathsep.join([str(tool.parent), os.environ.get("PATH", "")]))
    with subprocess.Popen([tool, *options, library or LIBRARY], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise RuntimeError(f"{tool} {options} failed with status {process.returncode}")


def _demangle(symbol: str) -> str:
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = library.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    return ctypes.string_at(text).decode() if status.value == 0 else symbol


@functools.cache
def kernel_name(symbol: str) -> str:
    """A kernel's name with its template arguments, without what changes from build to build."""
    name = _demangle(symbol).removeprefix("void ")
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|CUB_\w+::", "", name)
    depth = 0
    for i, c in enumerate(name):
        depth += {"<": 1, ">": -1}.get(c, 0)
        if c == "(" and depth == 0:
            name = name[:i]
            break
    name = re.sub(r"\((?:bool|int|unsigned char|unsigned int)\)", "", name).replace("atrousops::cuda::", "")
    return name.replace("c10::Half", "half").replace("c10::BFloat16", "bfloat16").replace("> >", ">>")


def is_ours(kernel: str) -> bool:
    """CUB's kernels are the toolkit's, and change with it."""
    return "cub::" not in kernel


@functools.cache
def hopper_only() -> frozenset[str]:
    """Kernels, without template arguments, that stand in csrc/cuda/*_sm90a.cu or in what those include."""
    folder = ROOT / "csrc"
    files = set((folder / "cuda").glob("*_sm90a.cu"))
    files |= {folder / name for f in files for name in re.findall(r'#include "(cuda/\w+\.cuh)"', f.read_text())}
    kernel = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(")
    return frozenset(name for f in files for name in kernel.findall(f.read_text()))


def architectures_of(kernel: str, architectures: list[str]) -> list[str]:
    """Those that a kernel has to be there for."""
    if kernel.split("<")[0] in hopper_only():
        return [a for a in architectures if a == "sm_90a"]
    # Products of float8, which conv_mma_e4m3_sm89.cu asks for.
    return [a for a in architectures if a != "sm_80"] if "<MmaE4m3," in kernel else architectures


@dataclass(frozen=True)
class Needs:
    """Registers of a thread; static shared memory of a block, and stack and local memory of a thread, in bytes."""

    registers: int
    shared: int
    stack: int
    local: int


@functools.cache
def resources() -> dict[str, dict[str, Needs]]:
    """By kernel and architecture."""
    return _resources_and_symbols()[0]


def symbols() -> dict[str, str]:
    """Each kernel's name in the library."""
    return _resources_and_symbols()[1]


def usage(library: Path | None = None) -> Iterator[tuple[str, str, Needs]]:
    """Architecture, kernel's name in the library, needs."""
    arch = symbol = ""
    for line in _dump("-res-usage", library=library):
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            yield arch, symbol, Needs(registers, shared, stack, local)


@functools.cache
def _resources_and_symbols() -> tuple[dict[str, dict[str, Needs]], dict[str, str]]:
    found: dict[str, dict[str, Needs]] = {}
    names: dict[str, str] = {}
    for arch, symbol, needs in usage():
        kernel = kernel_name(symbol)
        names[kernel] = symbol
        each = found.setdefault(kernel, {})
        # The same instance may be in several files.
        each[arch] = max(each.get(arch, Needs(0, 0, 0, 0)), needs, key=_weight)
    return {name: found[name] for name in sorted(found)}, names


def registers_of(library: Path) -> dict[str, dict[str, int]]:
    """By kernel, as the library names it, and architecture."""
    found: dict[str, dict[str, int]] = {}
    for arch, symbol, needs in usage(library):
        found.setdefault(symbol, {})[arch] = needs.registers
    return found


def disassembled(arch: str, kernels: Iterable[str]) -> str:
    """What cuobjdump -sass writes of kernels by their names in the library."""
    return "".join(_dump("-sass", "-arch", arch, "-fun", ",".join(kernels)))


def _weight(needs: Needs) -> tuple[int, ...]:
    # The order in which one need is worse than another.
    return needs.local, needs.stack, needs.registers, needs.shared


@functools.cache
def instructions() -> dict[str, dict[str, Counter[str]]]:
    """By kernel and architecture, how often each instruction stands in the machine code, with its modifiers."""
    architectures = measured().architectures
    # Disassembly takes its time, in processes of its own.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(architectures, pool.map(_instructions, architectures)))
    names = {name for each in found.values() for name in each}
    return {name: {arch: found[arch][name] for arch in architectures if name in found[arch]} for name in sorted(names)}


def _instructions(arch: str) -> dict[str, Counter[str]]:
    return count_instructions(_dump("-sass", "-arch", arch))


def count_instructions(sass: Iterable[str]) -> dict[str, Counter[str]]:
    """By kernel, in the lines that cuobjdump -sass writes."""
    found: dict[str, Counter[str]] = {}
    counter = Counter[str]()
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)")
    for line in sass:
        if match := instruction.match(line):
            counter[match[1]] += 1
        elif match := re.match(r"\s*Function : (\S+)", line):
            counter = found.setdefault(kernel_name(match[1]), Counter())
    return found


def most_threads(arch: str) -> dict[str, int]:
    """By kernel, the threads that its launch bounds let a block have, if it has any."""
    found: dict[str, int] = {}
    for kernel, attribute, value in attributes(_dump("-elf", "-arch", arch)):
        if attribute == "MAX_THREADS":
            x, y, z = (int(each, 16) for each in value.split())
            found[kernel] = x * y * z
    return found


def parameter_bytes(elf: Iterable[str]) -> dict[str, int]:
    """By kernel, the bytes of its parameters, in the lines that cuobjdump -elf writes."""
    named = attributes(elf)
    return {kernel: int(value, 16) for kernel, attribute, value in named if attribute == "CBANK_PARAM_SIZE"}


def library_parameters(arch: str) -> dict[str, int]:
    """The same of the built library."""
    return parameter_bytes(_dump("-elf", "-arch", arch))


def attributes(elf: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Kernel, attribute without EIATTR_, and value, in the lines that cuobjdump -elf writes."""
    kernel = attribute = ""
    for line in elf:
        if match := re.match(r"\.nv\.info\.(\S+)", line):
            kernel = kernel_name(match[1])
        elif match := re.match(r"\s*Attribute:\s+EIATTR_(\w+)", line):
            attribute = match[1]
        elif attribute and (match := re.match(r"\s*Value:\s+(0x\w+(?: 0x\w+)*)", line)):
            yield kernel, attribute, match[1]
            attribute = ""


def compiler() -> str:
    """The release of the toolkit that made the machine code, as "13.0"; empty if it does not say."""
    match = re.search(rb"Cuda compilation tools, release (\d+\.\d+)", LIBRARY.read_bytes())
    return match[1].decode() if match else ""


@dataclass(frozen=True)
class Budget:
    """What budget.json holds: registers in the order of architectures, 0 where there is no such kernel, and the most
    shared memory of them.
    """

    compiler: str
    architectures: list[str]
    registers: dict[str, list[int]]
    shared: dict[str, int]


def measured() -> Budget:
    """The budget that the built library would just keep."""
    ours = {name: each for name, each in resources().items() if is_ours(name)}
    architectures = sorted({arch for each in ours.values() for arch in each}, key=lambda a: int(re.sub(r"\D", "", a)))
    registers = {name: [each[a].registers if a in each else 0 for a in architectures] for name, each in ours.items()}
    shared = {name: max(n.shared for n in each.values()) for name, each in ours.items()}
    return Budget(compiler(), architectures, registers, shared)


def read_budget() -> Budget:
    """budget.json."""
    file = json.loads(BUDGET.read_text())
    kernels = file["kernels"]
    return Budget(
        file["compiler"],
        file["architectures"],
        {name: row["registers"] for name, row in kernels.items()},
        {name: row["shared"] for name, row in kernels.items()},
    )


def write_budget(budget: Budget) -> None:
    """One line a kernel, so that a change shows as one."""
    rows = [
        f"    {json.dumps(name)}: " + json.dumps({"registers": registers, "shared": budget.shared[name]})
        for name, registers in sorted(budget.registers.items())
    ]
    head = [f'  "{key}": {json.dumps(getattr(budget, key))},' for key in ("compiler", "architectures")]
    BUDGET.write_text("\n".join(["{", *head, '  "kernels": {', ",\n".join(rows), "  }", "}"]) + "\n")


def main(arguments: list[str]) -> int:
    """Prints or writes what the built library needs."""
    if "--registers" in arguments:
        if why := no_tool():
            sys.exit(why)
        print(json.dumps(registers_of(Path(arguments[-1]))))
        return 0
    why = problem()
    if why:
        print(why)
        return 1
    budget = measured()
    if "--write" in arguments:
        write_budget(budget)
        print(f"{len(budget.registers)} kernels in {BUDGET.relative_to(ROOT)}")
        return 0
    print("registers on", ", ".join(budget.architectures), "; static shared bytes; kernel")
    for name, registers in sorted(budget.registers.items(), key=lambda row: -max(row[1])):
        print(*(f"{r:4}" for r in registers), f"{budget.shared[name]:6}", name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
