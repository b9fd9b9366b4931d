"""The machine code of each family of kernels holds the instructions that its speed rests on, on every architecture."""

import re

import pytest
import resources

# A kernel's name, and instructions it must hold. Names are taken whole, instructions from their beginning.
TENSOR = r"Mma16<half>|Mma16<bfloat16>|MmaTf32|MmaSplit"
HALF = r"Mma16<\w+>"
COPY_16, COPY_4 = r"LDGSTS\.E\.BYPASS\S*\.128$", r"LDGSTS\.E$"
LOAD_16, STORE_16 = r"LDG\.E\S*\.128", r"STG\.E\.128"
FRAGMENT, FRAGMENT_TURNED = r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"
EXPECTED = {
    # Both operands along the reduction; B across it, where weights are laid out so.
    rf"conv_mma_kernel<({TENSOR}), \S.*, true, \w+>": [FRAGMENT, COPY_16, STORE_16],
    r"conv_mma_kernel<(MmaS8|MmaE4m3), .*>": [FRAGMENT, COPY_16, STORE_16],
    r"conv_quantize_kernel<.*>": [LOAD_16, STORE_16],
    rf"conv_mma_kernel<({TENSOR}), \S.*, false, \w+>": [FRAGMENT, FRAGMENT_TURNED, COPY_16, STORE_16],
    r"conv_mma_kernel<(MmaTf32|MmaSplit), .*, false>": [COPY_4],
    rf"conv_mma_weight_kernel<{HALF}, .*, true>": [FRAGMENT_TURNED, COPY_16, STORE_16],
    rf"conv_mma_weight_kernel<{HALF}, .*, false>": [FRAGMENT_TURNED, STORE_16],
    # 32-bit words across the reduction are loaded word by word.
    r"conv_mma_weight_kernel<(MmaTf32|MmaSplit), .*, true>": ["LDS$", COPY_16, STORE_16],
    r"conv_mma_weight_kernel<(MmaTf32|MmaSplit), .*, false>": ["LDS$", COPY_4, STORE_16],
    # Loads of boxes and of weights, products of a warpgroup, registers moved from those who load to those who multiply.
    r"conv_wgmma_kernel<.*>": [
        *(r"UTMALDG\.5D", r"UTMALDG\.3D", r"USETMAXREG\.DEALLOC", r"USETMAXREG\.TRY_ALLOC"),
        *(r"SYNCS\.PHASECHK\S*TRYWAIT", r"SYNCS\.ARRIVE", STORE_16),
    ],
    r"conv_wgmma_kernel<WgmmaTile<.*>": [r"HGMMA\.64x"],
    r"conv_wgmma_kernel<WgmmaInto<WgmmaTile<signed char, .*>": [r"IGMMA\.64x\d+x32\.S8\.S8", r"I2FP\.F32\.S32"],
    r"conv_wgmma_kernel<WgmmaInto<WgmmaTile<c10::Float8_e4m3fn, .*>": [r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3"],
    r"conv_mma_sum_kernel<.*>": [LOAD_16, STORE_16],
    r"conv_wgmma_weight_kernel<.*>": [r"HGMMA\.64x\d+x16\.F32", r"UTMALDG\.5D", r"SYNCS\.PHASECHK", STORE_16],
    # Pixels by fragments; weights from other blocks' shared memory, rows into it.
    r"context_module_kernel<.*>": [
        FRAGMENT,
        r"HMMA\.16816\.F32",
        "UCGABAR_ARV",
        "UCGABAR_WAIT",
        r"LD\.E\.128",
        r"STAS\.\S*128",
        r"SYNCS\.PHASECHK",
    ],
    r"conv_depthwise_kernel<.*>": [LOAD_16, STORE_16],
    r"conv_grouped_weight_kernel<(half, 8|bfloat16, 8|float, 4|double, 2)>": [LOAD_16],
    r"max_pool_kernel<\w+, [\w ]+, [248]>": [LOAD_16, STORE_16],
    r"place_windows_kernel<\w+, [\w ]+, [248]>": [LOAD_16, STORE_16],
    r"roi_(align|pool)_forward<\w+, [248], true>": [LOAD_16, STORE_16],
    r"roi_gather<RoiAlignGather<\w+, [248], true>>": [LOAD_16, STORE_16],
    r"roi_gather<RoiPoolGather<\w+, [248], true>>": [STORE_16],
    r"lattice_(splat|blur|join|slice)<\w+>": [LOAD_16, STORE_16],
    r"mean_field_step<.*>": [LOAD_16, STORE_16],
    r"conv_simt_kernel<(float|half|bfloat16), .*>": [r"LDS\.128", "FFMA"],
    r"conv_simt_kernel<double, .*>": ["DFMA"],
    r"conv_simt_weight_kernel<(float|half|bfloat16)>": [r"LDS\.128", "FFMA"],
}
MMA = {
    "Mma16<half>": r"HMMA\.16816\.F32$",
    "Mma16<bfloat16>": r"HMMA\.16816\.F32\.BF16$",
    "MmaTf32": r"HMMA\.1688\.F32\.TF32$",
    "MmaSplit": r"HMMA\.1688\.F32\.TF32$",
    "MmaS8": r"IMMA\.16832\.S8\.S8$",
    # sm_90a and sm_100 have none of float8 for mma.sync: each becomes two of fp16.
    "MmaE4m3": r"QMMA\.16832\.F32\.E4M3\.E4M3$|HMMA\.16816\.F32$",
}


def each_kernel():
    for name, architectures in resources.instructions().items():
        for arch, counter in architectures.items():
            yield name, arch, counter


@pytest.mark.parametrize("family", EXPECTED)
def test_expected_instructions(family):
    kernels = [(name, arch, counter) for name, arch, counter in each_kernel() if re.fullmatch(family, name)]
    assert kernels, "the library has no such kernel"
    without = [
        f"{name} on {arch}: no {wanted}"
        for name, arch, counter in kernels
        for wanted in EXPECTED[family]
        if not any(re.match(wanted, instruction) for instruction in counter)
    ]
    assert not without


def test_a_stage_is_its_products_and_no_more():
    """The main loop stands in the code once, with every product of a warp's tile."""
    seen = 0
    for name, arch, counter in each_kernel():
        match = re.match(r"conv_mma(?:_weight)?_kernel<(\S+), MmaTile<\d+, \d+, (\d+), (\d+)", name)
        if not match:
            continue
        math, rows, columns = match[1], int(match[2]), int(match[3])
        # A stage holds 64 bytes of the reduction, an instruction takes 32 of them.
        products = rows // 16 * (columns // 8) * 2 * (3 if math == "MmaSplit" else 1)
        found = {i: n for i, n in counter.items() if re.match("[HIQ]MMA", i)}
        products *= 2 if math == "MmaE4m3" and "HMMA.16816.F32" in found else 1
        assert sum(found.values()) == products, f"{name} on {arch}: {found}"
        assert all(re.match(MMA[math], i) for i in found), f"{name} on {arch}: {found}"
        seen += 1
    assert seen


def test_a_step_of_wgmma_is_four_products():
    # 128 bytes of the reduction, 32 at a time, one block of 64 rows for each warpgroup; and one wait that leaves the
    # youngest group running: what the compiler serialises, it waits for more often. Sums of e4m3 are read after each
    # step.
    seen = 0
    for name, arch, counter in each_kernel():
        if not name.startswith("conv_wgmma_kernel"):
            continue
        products = {i: n for i, n in counter.items() if "GMMA" in i}
        assert sum(products.values()) == 4, f"{name} on {arch}: {products}"
        assert counter["WARPGROUP.ARRIVE"] == 1, f"{name} on {arch}"
        assert counter["WARPGROUP.DEPBAR.LE"] == (1 if "Float8" in name else 2), f"{name} on {arch}"
        seen += 1
    assert seen


def test_every_kernel_of_hopper_is_looked_at():
    """Whatever stands in a *_sm90a file: a new one needs a row above."""
    named = {re.match(r"\w+", family)[0] for family in EXPECTED}
    assert resources.hopper_only() <= named, "csrc/cuda/*_sm90a.cu has kernels without expected instructions"


def test_waits_give_up():
    """Whoever waits for a copy looks at the clock, and traps: a load that never lands must not hold the GPU."""
    waiting = 0
    for name, arch, counter in each_kernel():
        if any(re.match(r"SYNCS\.PHASECHK\S*TRYWAIT", i) for i in counter):
            # The timer's high word is a special register of 32 bits.
            assert any(i.startswith("CS2R.32") for i in counter), f"{name} on {arch}"
            assert any(i.startswith("BPT.TRAP") for i in counter), f"{name} on {arch}"
            waiting += 1
    assert waiting


def test_nothing_in_local_memory():
    local = [
        f"{name} on {arch}: {instruction}"
        for name, arch, counter in each_kernel()
        for instruction in counter
        if resources.is_ours(name) and re.match(r"(LDL|STL)\b", instruction)
    ]
    assert not local
