"""What the kernels of wgmma do beside products, counted in their machine code: the way out of a tile's sums, and what
each consumer does to learn of its tile."""

import re

import paths
import pytest

WIDE = r"WgmmaTile<(bfloat16|half), 128, 256, .*"
# An epilogue's parts, each told by an instruction that only it has.
SCALE, SUMMAND, RESIDUAL = r"\bFMUL\b", r"\bFADD\b", "LDSM"
# A wait that does not find at once what it waits for.
LATE = "GLOBALTIMER"
ROUNDED = "STSM"
PRODUCTS = "[HIQ]GMMA"
# The last of a line's 1024 bytes.
LAST = r"STG\.E\.128 .*\+0x380\]"
# Of a warp: 16 rows of 256 columns are 128 sums a lane. A bias is 128 additions, a residual as many and 128 that take
# pairs apart. 10 are of blocks in pairs, which release a stage in both; a residual has two more stages.
BUDGETS = {
    "plain": (f"{SCALE}|{SUMMAND}|{RESIDUAL}", 330),
    "bias and ReLU": (f"{SCALE}|{RESIDUAL}", 480),
    "bias, residual and ReLU": (SCALE, 800),
}


# Whole numbers are rounded to fp32 first, one instruction a sum.
ROUNDED_SUMS = 128
INT8 = r"WgmmaInto<WgmmaTile<signed char, 128, 256, .*"
E4M3 = r"WgmmaInto<WgmmaTile<c10::Float8_e4m3fn, 128, 128, .*"


def behind_products(code: paths.Code) -> int:
    """The block that waits for a tile's last products."""
    (block,) = code.where(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0 *$")
    return block


def loops(code: paths.Code) -> dict[int, int]:
    """Where the code from the last products on jumps back to, and the block it comes from: a tile's loop, and of e4m3
    one of its steps within.
    """
    behind = behind_products(code)
    (products,) = code.where(PRODUCTS)
    return {to: block for block, after in code.after.items() if block >= behind for to in after if to < products}


def assert_vectors(way: list[str]) -> None:
    moved = [text for text in way if re.search(r"\b(LDG|STG|LD|ST)\.", text)]
    assert moved
    assert all(re.search(r"\bSTG\.E\.128 ", text) for text in moved), moved


@pytest.mark.parametrize("what", BUDGETS)
@pytest.mark.parametrize("tile", [WIDE, INT8])
def test_an_epilogue_of_whole_rows(tile, what):
    without, most = BUDGETS[what]
    most += ROUNDED_SUMS * (tile == INT8)
    kernels = paths.code(rf"conv_wgmma_kernel<{tile}>")
    assert len(kernels) == (4 if tile == WIDE else 2)
    for name, code in kernels.items():
        way = code.longest(behind_products(code), ROUNDED, f"{without}|{LATE}")
        assert len(way) <= most, name
        assert_vectors(way)
        # 16 pieces of 16 columns, of which a lane stores 16 bytes.
        assert sum("STSM" in text for text in way) == sum("STG.E.128" in text for text in way) == 16, name
        assert sum("LDSM.16.M88.4" in text for text in way) == (16 if without == SCALE else 0), name


@pytest.mark.parametrize("kernel", ["conv_wgmma_kernel", "conv_wgmma_weight_kernel"])
def test_sums_that_stay_as_they_are(kernel):
    """Parts of a sum, in fp32: 32 stores of a lane."""
    kernels = paths.code(rf"{kernel}<{WIDE}>")
    assert kernels
    for name, code in kernels.items():
        way = code.longest(behind_products(code), LAST, ROUNDED)
        assert len(way) <= 450, name
        assert_vectors(way)
        assert sum("STG.E.128" in text for text in way) == 32, name


def test_sums_of_e4m3_are_added_in_fp32_after_each_stage():
    """64 of a lane, in a loop that has little else; the products themselves begin at zero."""
    kernels = paths.code(rf"conv_wgmma_kernel<{E4M3}>")
    assert len(kernels) == 2
    for name, code in kernels.items():
        _, step = sorted(loops(code))
        end = loops(code)[step]
        way = code.shortest(step, end) + code.blocks[end]
        assert sum("FADD" in text for text in way) == 64, name
        assert len(way) <= 150, name


def test_consumers_read_of_their_tile_what_another_warp_found():
    kernels = paths.code(r"conv_wgmma_kernel<.*>")
    assert len(kernels) == 25
    for name, code in kernels.items():
        (products,) = code.where(PRODUCTS)
        assert len(loops(code)) == (2 if "Float8" in name else 1), name
        way = [text for text in code.shortest(min(loops(code)), products) if not re.search(r"\bCS2R R\d+, SRZ", text)]
        assert len(way) < 40, name
        assert not any("MUFU" in text for text in way), name


def test_as_many_stages_as_shared_memory_holds():
    for kernel in ("conv_wgmma_kernel", "conv_wgmma_weight_kernel"):
        for name in paths.code(rf"{kernel}<.*>"):
            columns, stages = map(int, re.search(r"128, (\d+), .*, (\d+)>", name).groups())
            # 227 KB, and 1 KB of alignment; 16 KB of rows on their way out, 4 times what is known of a tile.
            each = 128 * (128 + columns)
            left = (227 - 16) * 1024 - 4 * (8 * columns + 128) - 2048 - 512
            assert stages == min(left // each, 8), name


def test_blocks_alone_keep_their_cache():
    """A wait in the scope of a cluster empties the L1 cache, and an arrival there waits for all memory: only the two
    barriers of a pair do, at the beginning and the end, and no stage of the ring.
    """
    for code in paths.code(r"conv_wgmma_weight_kernel<.*>").values():
        assert not code.where(r"CCTL\.IVALL")
    for name, code in paths.code(r"conv_wgmma_kernel<.*>").items():
        emptied = sum("CCTL.IVALL" in text for block in code.blocks.values() for text in block)
        fences = sum("MEMBAR.ALL.GPU" in text for block in code.blocks.values() for text in block)
        assert (emptied, fences) == (2, 2), name
