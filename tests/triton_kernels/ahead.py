"""What Triton's compiler makes of the kernels for GPUs that are not here: registers, spills and shared memory.

python tests/triton_kernels/ahead.py prints the table; with --write it becomes budget.json. The arguments are those of
the launchers on the samples of tests/samples.py; nothing is run. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "compile")]

import every_operator  # noqa: E402
import resources  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

import atrousops as ao  # noqa: E402
from atrousops.dispatch import triton_library  # noqa: E402
from atrousops.triton import _common, _conv_weight, conv  # noqa: E402

BUDGET = Path(__file__).with_name("budget.json")
REGENERATE = "python tests/triton_kernels/ahead.py --write"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# For which every tile of a list is compiled, and not the rule's alone.
TILED = "sm_90"


class Needs(NamedTuple):
    """Of a thread: registers, and bytes (NVIDIA) or registers (AMD) that were spilled to memory; of a block: bytes."""

    registers: int
    spills: int
    shared: int


class Driver:
    """What triton asks of a GPU before it compiles."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.arch]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.arch)

    def get_current_stream(self, device: int) -> int:
        return 0


class _Recorder:
    """Stands for a kernel; a launch compiles it."""

    def __init__(self, kernel: Any, found: dict[str, Any]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*args: Any, **meta: Any) -> None:
            compiled = self.kernel.warmup(*args, grid=grid, **meta)
            self.found[name_of(self.kernel, args, meta)] = compiled

        return start


def name_of(kernel: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> str:
    """With the dtype of its first pointer, its constants, warps and stages, which tell variants apart."""
    constants = [str(value) for param, value in zip(kernel.params, args) if param.is_constexpr]
    name = f"{kernel.__name__}<{', '.join([str(args[0].dtype).removeprefix('torch.'), *constants])}>"
    return " ".join([name, *(f"{key.removeprefix('num_')} {value}" for key, value in sorted(meta.items()))])


@contextlib.contextmanager
def recorded(arch: str) -> Iterator[dict[str, Any]]:
    """Inside, backend "triton" is forced on CPU tensors, and launches compile for `arch`; by name, what they made."""
    found: dict[str, Any] = {}
    before = _common.wrap_triton, triton_library.interpreted
    _common.wrap_triton = lambda kernel: _Recorder(kernel, found)
    # The public functions may go to Triton, whose launchers still choose as for a GPU.
    triton_library.interpreted = lambda: True
    triton.runtime.driver.set_active(Driver(arch))
    try:
        with ao.backend("triton"):
            yield found
    finally:
        _common.wrap_triton, triton_library.interpreted = before
        # Lets triton look for a GPU again.
        triton.runtime.driver._active = None


def compile_samples(arch: str) -> dict[str, Any]:
    """Every operator's kernels, forward and backward."""
    with recorded(arch) as found:
        for name, case in every_operator.CASES.items():
            dtypes = (torch.float32, torch.bfloat16)
            if name.startswith("conv2d"):
                dtypes += (torch.float64, torch.float16)
            for dtype in dtypes:
                every_operator.prepared(case, dtype, channels_last=True).run()
            if name.startswith("conv2d"):
                every_operator.prepared(case, torch.bfloat16, channels_last=False).run()
        if arch == TILED:
            with every_tile():
                _many_channels()
    return found


@contextlib.contextmanager
def every_tile() -> Iterator[None]:
    """Inside, every tile of a list is compiled, not the chosen one alone."""

    def start(layers: Any, tiles: Any, device: Any, launch: Any) -> None:
        for tile in tiles:
            launch(tile)

    with mock.patch.object(conv, "start_tiled", start), mock.patch.object(_conv_weight, "start_tiled", start):
        yield


def _many_channels() -> None:
    """What the samples lack: wide results, TF32, and what follows a convolution in its launch."""
    w = torch.ones(128, 64, 3, 3)
    x = torch.ones(1, 64, 9, 9).contiguous(memory_format=torch.channels_last)
    y = torch.ones(1, 128, 9, 9).contiguous(memory_format=torch.channels_last)
    around = ((1, 1), (1, 1), (1, 1), 1)
    for dtype in (torch.float32, torch.bfloat16):
        a, b, c = x.to(dtype), w.to(dtype), y.to(dtype)
        conv.conv_epilogue(a, b, b[:, 0, 0, 0], c, "relu", *around, True)
        conv.conv_grad_weight(c, a, (3, 3), *around, True)
    conv.conv_epilogue(a, w[:64, :1].to(dtype), b[:64, 0, 0, 0], a, "hardswish", (1, 1), (1, 1), (1, 1), 64)


def needs(compiled: Any, arch: str) -> Needs:
    """From the machine code."""
    shared = compiled.metadata.shared
    if arch.startswith("gfx"):
        counts = {name: int(n) for name, n in re.findall(r"\.(\w+_count):\s+(\d+)", compiled.asm["amdgcn"])}
        # Scalar registers are spilled to vector registers.
        return Needs(counts["vgpr_count"], counts.get("vgpr_spill_count", 0), shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = resources.cuobjdump()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    registers, stack, _, local = map(int, match.groups())
    return Needs(registers, stack + local, shared)


def measured(arch: str) -> dict[str, Needs]:
    """By kernel, what it needs."""
    return {name: needs(compiled, arch) for name, compiled in sorted(compile_samples(arch).items())}


def read_budget() -> dict[str, dict[str, Needs]]:
    """By kernel and architecture."""
    file = json.loads(BUDGET.read_text())
    return {
        name: {arch: Needs(*row) for arch, row in zip(file["architectures"], rows) if row is not None}
        for name, rows in file["kernels"].items()
    }


def compiler() -> str:
    """The release of triton, whose budget holds for no other."""
    return triton.__version__


def budget_compiler() -> str:
    """The release of triton that the budget is one of."""
    return json.loads(BUDGET.read_text())["triton"]


def main(arguments: list[str]) -> int:
    """Prints or writes what the kernels need."""
    with ProcessPoolExecutor(2) as pool:
        found = dict(zip(TARGETS, pool.map(measured, TARGETS)))
    names = sorted(found[TILED])
    if "--write" in arguments:
        rows = [f"    {json.dumps(n)}: {json.dumps([found[a].get(n) for a in TARGETS])}" for n in names]
        head = [f'  "triton": "{compiler()}",', f'  "architectures": {json.dumps(list(TARGETS))},']
        BUDGET.write_text("\n".join(["{", *head, '  "kernels": {', ",\n".join(rows), "  }", "}"]) + "\n")
        return 0
    print("| kernel | " + " | ".join(TARGETS) + " |")
    print("|" + " --- |" * (1 + len(TARGETS)))
    for n in names:
        print(f"| `{n}` | " + " | ".join(" / ".join(map(str, found[a].get(n, ["-"]))) for a in TARGETS) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
