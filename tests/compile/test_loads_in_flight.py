"""What the kernels bound by memory have under way, counted in their machine code: by Little's law a multiprocessor that
reads its share of an H100's memory (3.0 TB/s of 132) at 600 to 900 ns a load needs 14 to 20 KB, of an H200's up to 30.
The aim is 40 KB; where a kernel has less the table says how much, and keeps it from getting worse."""

import re

import paths
import pytest
import report

AIM = 40
# Kernels; KB under way on a multiprocessor, counting every resident thread's loads between the first and the first use
# of one of them, within a basic block; the least share of loads of 16 bytes.
BUDGETS = {
    # Loads of 4 bytes are of the table of taps.
    r"conv_depthwise_kernel<(float, 4|half, 8|bfloat16, 8)>": (AIM, 0.15),
    r"max_pool_kernel<(half|float), [\w ]+, [48]>": (AIM, 1.0),
    r"place_windows_kernel<(half|float), long, [48]>": (AIM, 1.0),
    # Codes are eight or four bytes of a load of 16 of values.
    r"place_windows_kernel<float, unsigned char, 4>": (AIM, 0.5),
    # One pack a thread: the sums of two spill on sm_120.
    r"place_windows_kernel<half, unsigned char, 8>": (24, 0.5),
    r"roi_align_forward<(half|float), [48], true>": (AIM, 0.25),
    r"roi_pool_forward<(half|float), [48], true>": (AIM, 0.25),
    # Beside gradients, or the pixels that won, a box's bounds and tables.
    r"roi_gather<RoiAlignGather<(half|float), [48], true>>": (AIM, 0.1),
    r"roi_gather<RoiPoolGather<(half|float), [48], true>>": (AIM, 0.1),
    r"mean_field_step<float, .*>": (AIM, 0.3),
    r"lattice_(blur|join|mix)<float>": (AIM, 0),
    r"lattice_slice<float>": (AIM, 0.3),
    r"lattice_splat<float>": (AIM, 0.2),
    # Four values a load where rows are of whole vectors and their addresses aligned, else one.
    r"(transpose|pad)_rows<float, float, (true|false), 4>": (AIM, 1.0),
    r"(transpose|pad)_rows<float, half, true, 4>": (AIM, 1.0),
    r"(transpose|pad)_rows<float, half, false, 4>": (AIM, 0),
    r"(transpose|pad)_rows<float, (half|float), (true|false), 1>": (AIM, 0),
}


def width(opcode: str) -> int:
    """Bytes of a load."""
    match = re.search(r"\.(128|64|[US]16|[US]8)\b", opcode)
    return {"128": 16, "64": 8, "16": 2, "8": 1}[match[1].lstrip("US")] if match else 4


def registers(operand: str, count: int = 1) -> set[int]:
    """Those that an operand names; an address has two."""
    return {
        int(first) + i for first, pair in re.findall(r"\bR(\d+)\b(\.64)?", operand) for i in range(2 if pair else count)
    }


def most_under_way(block: list[str]) -> int:
    """Bytes that a thread has asked for when it first uses some of them, at most; loads come back in order."""
    under_way: list[tuple[set[int], int]] = []
    most = 0
    for text in block:
        opcode, _, operands = re.sub(r"^@!?U?P\w+ +", "", text).partition(" ")
        target, _, sources = operands.partition(",")
        stores = opcode.startswith("STG")
        used = registers(sources, 4 if stores and "128" in opcode else 1) | (registers(target) if stores else set())
        met = [i for i, (loaded, _) in enumerate(under_way) if loaded & used]
        if met:
            most = max(most, sum(size for _, size in under_way))
            del under_way[: met[-1] + 1]
        if opcode.startswith("LDG."):
            under_way.append((registers(target, max(1, width(opcode) // 4)), width(opcode)))
    return max(most, sum(size for _, size in under_way))


@pytest.fixture(scope="module")
def counted() -> dict[str, tuple[float, float]]:
    """KB under way, and the share of loads of 16 bytes, of every kernel of `BUDGETS`."""
    found = {}
    residents = {kernel.name: kernel.threads * kernel.blocks for kernel in report.kernels()}
    for name, code in paths.code("|".join(f"(?:{family})" for family in BUDGETS)).items():
        loads = [width(t) for b in code.blocks.values() for t in b if re.search(r"\bLDG\.", t)]
        most = max(map(most_under_way, code.blocks.values()))
        found[name] = most * residents[name] / 1024, loads.count(16) / len(loads)
    return found


def test_a_block_is_counted_until_the_first_use():
    block = [
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "@P0 LDG.E.64 R8, desc[UR4][R2.64+0x10]",
        "IADD3 R20, R21, R22, RZ",
        "FADD R3, R5, R5",
        "LDG.E.U16 R10, desc[UR4][R2.64]",
        "STG.E.128 desc[UR4][R12.64], R8",
    ]
    assert most_under_way(block) == 16 + 8
    assert most_under_way(block[4:]) == 2
    assert most_under_way(["LDG.E R1, desc[UR4][R2.64]"]) == 4


@pytest.mark.parametrize("family", BUDGETS)
def test_loads_in_flight(counted, family):
    least, share = BUDGETS[family]
    kernels = {name: found for name, found in counted.items() if re.fullmatch(family, name)}
    assert kernels
    for name, (under_way, wide) in kernels.items():
        assert under_way >= least, name
        assert wide >= share, name
