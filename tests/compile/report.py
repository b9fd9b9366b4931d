"""What the kernels need on an H100, as a Markdown table.

python tests/compile/report.py, with the CUDA library built; no GPU takes part and nothing is measured.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

import resources

from atrousops.dispatch import planner

ARCH = "sm_90a"
# Of a multiprocessor of compute capability 9.0; registers are given to a warp 256 at a time, and a block takes 1 KiB of
# shared memory beside its own, which cuobjdump counts in.
REGISTERS, REGISTER_UNIT, WARPS, BLOCKS = 65536, 256, 64, 32
SHARED, SHARED_UNIT, RESERVED = 228 << 10, 128, 1 << 10
# Multiprocessors, shared memory of a block, capability.
H100 = (132, 227 << 10, 90)


class Kernel(NamedTuple):
    """Threads and bytes of a block, registers of a thread; blocks of a multiprocessor, and the share of its warps."""

    name: str
    threads: int
    registers: int
    static: int
    dynamic: int
    blocks: int
    occupancy: float


# Eight warps' rows of 128 bytes on their way out (wgmma_rows.cuh); a stage has two barriers beside its boxes.
PIECES = 8 * 16 * 128


def dynamic_shared(name: str) -> int:
    """What csrc/cuda asks for at launch: the pipeline's stages and the rows' offsets (conv_*mma*.cuh, shared_bytes)."""
    if match := re.match(r"context_module_kernel<\w+, (\d+)>", name):
        return context_shared(int(match[1]))
    if match := re.match(r"conv_wgmma_weight_kernel<WgmmaTile<\w+, (\d+), (\d+), .*, (\d+)>>", name):
        rows, columns, stages = map(int, match.groups())
        return stages * (128 * (rows + columns) + 16) + PIECES
    if match := re.match(r"conv_wgmma_kernel<(?:WgmmaInto<)?WgmmaTile<[\w: ]+, (\d+), (\d+), .*, (\d+)>", name):
        rows, columns, stages = map(int, match.groups())
        # What is known of four tiles ahead, with two barriers each; 16 bytes of each row.
        known = 4 * (112 + 8 * columns + 16)
        return stages * (128 * (rows + columns) + 16) + PIECES + known + rows * 16
    match = re.match(r"conv_mma(_weight)?_kernel<(\S+), MmaTile<(\d+), (\d+), \d+, \d+, (\d+), \d+>", name)
    if not match:
        return 0
    rows, columns, stages = (int(match[i]) for i in (3, 4, 5))
    depth = 32 if match[2].startswith("Mma16") else 16
    offsets = 4 * depth if match[1] else rows
    return stages * 64 * (rows + columns) + 8 * offsets


def context_shared(chunks: int) -> int:
    """Of the basic context module on a map of 64 x 64, as the planner has it."""
    reach = [1, 1, 2, 4, 8, 16, 1, 0]
    return planner.plan_context((1, 8 * chunks, 64, 64), reach, 2, H100, lambda: math.inf).shared_memory


def resident_blocks(threads: int, registers: int, shared: int, of_all: int = SHARED) -> int:
    """Blocks that a multiprocessor with `of_all` bytes of shared memory holds at a time, with `shared` as cuobjdump and
    the launch have it, in sum.
    """
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    # Warps are spread over four schedulers, each with a quarter of the registers.
    by_registers = 4 * (REGISTERS // 4 // of_warp) // warps
    by_shared = of_all // (-(-max(shared, RESERVED) // SHARED_UNIT) * SHARED_UNIT)
    return min(BLOCKS, WARPS // warps, by_registers, by_shared)


def kernels() -> list[Kernel]:
    """Every kernel of ours."""
    threads = resources.most_threads(ARCH)
    found = []
    for name, each in resources.resources().items():
        if not resources.is_ours(name):
            continue
        needs, dynamic = each[ARCH], dynamic_shared(name)
        most = threads.get(name, 1024)
        blocks = resident_blocks(most, needs.registers, needs.shared + dynamic)
        occupancy = blocks * -(-most // 32) / WARPS
        static = max(0, needs.shared - RESERVED)
        found.append(Kernel(name, most, needs.registers, static, dynamic, blocks, occupancy))
    return found


def line(cells: Iterable[str]) -> str:
    """Of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def rows() -> list[str]:
    """A line for each kernel."""
    return [line([f"`{k.name}`", *map(str, k[1:6]), f"{k.occupancy:.0%}"]) for k in kernels()]


def main() -> int:
    """The table."""
    why = resources.problem()
    if why:
        print(why)
        return 1
    head = ["kernel", "threads", "registers", "static shared", "dynamic shared", "blocks", "occupancy"]
    print(f"Kernels on {ARCH} (nvcc {resources.compiler()}); bytes of shared memory, blocks of a multiprocessor\n")
    print(line(head), line(["---"] * len(head)), *rows(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
