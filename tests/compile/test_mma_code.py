"""What the kernels of mma.sync do beside products, counted in their machine code: the way out of a tile's sums. And how
many blocks of a tile find room beside each other."""

import re

import paths
import pytest
import report
import resources

# Of GPUs that have no wgmma: A100 and RTX 3090 and 4090; RTX 5090.
ARCHITECTURES = ("sm_80", "sm_120")
# An epilogue's parts, each told by an instruction that only it has.
SCALE, SUMMAND, READ, ROUNDED = r"\bFMUL\b", r"\bFADD\b", r"\bLDG\b", r"\bF2FP\b"
STORED = r"\bSTG\.E\.128 "
# Of a warp, whose sums are 128, 64 or 32 a lane: in 16 bits without parameters, and with bias, residual and ReLU; the
# same in fp32, as which parts of a sum leave. A bias is an addition a sum, a residual as many, and in 16 bits as many
# that take pairs apart; a ReLU costs nothing there, and is two in fp32.
BUDGETS = {
    "128, 128, 64, 64, .*": ((395, 880), (380, 1080)),
    "128, 64, 64, 32, .*": ((265, 525), (245, 590)),
    "64, 64, 32, 32, .*": ((185, 330), (170, 350)),
}
# Of the weight gradient, whose sums leave in fp32 without an epilogue.
WEIGHT_BUDGETS = {"128, 128, 64, 64": 320, "64, 64, 32, 32": 150}


def kernels(math: str, tile: str, arch: str) -> dict[str, paths.Code]:
    found = paths.code(r"conv_mma_kernel<(?:Mma16<\w+>|MmaTf32), MmaTile<.*, 4, \d>, true, true>", arch)
    named = {name: c for name, c in found.items() if re.fullmatch(rf"\w+<{math}, MmaTile<{tile}>, .*", name)}
    assert named
    return named


def way_out(code: paths.Code, through: str, without: str) -> list[str]:
    """From where the last copies are awaited; without vectors it is a loop."""
    (start,) = code.where(r"DEPBAR\.LE SB0, 0x0 *$")
    return code.longest(start, through, without, loops=False)


def assert_stores(way: list[str], name: str, itemsize: int) -> None:
    """A lane's sums go out by 16 bytes."""
    rows, columns = map(int, re.search(r"MmaTile<\d+, \d+, (\d+), (\d+)", name).groups())
    stores = [text for text in way if re.search(r"\b(STG|ST)\.", text)]
    assert all(re.search(r"\bSTG\.E\.128 ", text) for text in stores), (name, stores)
    assert len(stores) == rows * columns // 32 * itemsize // 16, name


def assert_ways(name: str, code: paths.Code, through: str, most: tuple[int, int], itemsize: int) -> None:
    plain, full = way_out(code, through, f"{SCALE}|{SUMMAND}|{READ}"), way_out(code, through, SCALE)
    for way, budget in zip((plain, full), most):
        assert len(way) <= budget, name
        assert_stores(way, name, itemsize)
    assert all(re.search(r"\bLDG\.E\S*\.128 ", text) for text in full if re.search(READ, text)), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tile", BUDGETS)
def test_an_epilogue(tile, arch):
    rounded, whole = BUDGETS[tile]
    for name, code in kernels(r"Mma16<\w+>", tile, arch).items():
        assert_ways(name, code, ROUNDED, rounded, 2)
        part = way_out(code, STORED, f"{SCALE}|{SUMMAND}|{READ}|{ROUNDED}")
        assert len(part) <= whole[0], name
        assert_stores(part, name, 4)
    for name, code in kernels("MmaTf32", tile, arch).items():
        assert_ways(name, code, STORED, whole, 4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tile", WEIGHT_BUDGETS)
def test_a_weight_gradient(tile, arch):
    """Sums leave as they are, in every precision."""
    found = paths.code(rf"conv_mma_weight_kernel<.*, MmaTile<{tile}, \d, \d>, true>", arch)
    assert found
    for name, code in found.items():
        way = way_out(code, STORED, f"{SUMMAND}|{READ}|{ROUNDED}")
        assert len(way) <= WEIGHT_BUDGETS[tile], name
        assert_stores(way, name, 4)


# fp32 by three products of tf32: of a stage of 16 channels, without its copies, with 48 products. 32 words are split,
# of which the vote and the halves are 6.5 instructions each; the weight gradient also reads them one by one.
SPLIT_BUDGETS = {"conv_mma_kernel": 410, "conv_mma_weight_kernel": 495}


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "sm_90a"])
@pytest.mark.parametrize("kernel", SPLIT_BUDGETS)
def test_a_stage_of_split_products(kernel, arch):
    found = paths.code(rf"{kernel}<MmaSplit, .*>", arch)
    assert found
    for name, code in found.items():
        turn = code.around(r"\bHMMA\b")
        assert len([text for text in turn if text.startswith("HMMA")]) == 48, name
        assert len(turn) <= SPLIT_BUDGETS[kernel], name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_sum_of_parts(arch):
    """A part is read by 16 bytes, with nothing decided in between."""
    found = paths.code(r"conv_mma_sum_kernel<.*>", arch)
    assert len(found) == 3
    for name, code in found.items():
        loads = [text for block in code.blocks.values() for text in block if re.search(r"\bLDG\.E\S*\.128 ", text)]
        assert len(loads) >= (1 if "float" in name.split("<", 1)[1][:6] else 2), name


def test_blocks_beside_each_other():
    """Two, on a multiprocessor of an A100, and of GPUs with 100 KB: there the largest tile has three stages."""
    tile = re.compile(r"conv_mma(?:_weight)?_kernel<.*, MmaTile<(\d+), (\d+), (\d+), (\d+), (\d), (\d)>, .*>")
    found = {name: m.groups() for name in resources.resources() if (m := tile.fullmatch(name))}
    assert found
    for name, (rows, columns, rows_of_warp, columns_of_warp, stages, resident) in found.items():
        warps = int(rows) // int(rows_of_warp) * (int(columns) // int(columns_of_warp))
        for arch, kilobytes in (("sm_80", 164), ("sm_80", 100), ("sm_120", 100)):
            if arch not in resources.architectures_of(name, ["sm_80", "sm_120"]):
                continue
            registers, shared = resources.resources()[name][arch].registers, 1024 + report.dynamic_shared(name)
            blocks = report.resident_blocks(32 * warps, registers, shared, kilobytes << 10)
            alone = resident == "1" or (kilobytes == 100 and (columns, stages) == ("128", "4"))
            assert blocks == 1 if alone else blocks >= 2, (name, arch, kilobytes)
