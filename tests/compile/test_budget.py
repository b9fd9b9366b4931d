"""Every kernel keeps the checked-in budget of registers and shared memory on every architecture, and spills nothing."""

import re

import pytest
import report
import resources

BUDGET = resources.read_budget()
AGAIN = f"if that is meant, `{resources.REGENERATE}` writes the budget again"


@pytest.fixture(scope="module")
def built() -> resources.Budget:
    return resources.measured()


def test_names_do_not_change_from_build_to_build():
    symbol = (
        "_ZN9atrousops4cuda50_GLOBAL__N__d567ffd8_17_conv_depthwise_cu_e4dd310021conv_depthwise_kernelIN3c104HalfELi8EEE"
        "vNS0_9ConvTableEPKT_S8_S8_PS6_il"
    )
    assert resources.kernel_name(symbol) == "conv_depthwise_kernel<half, 8>"


def test_the_budget_covers_what_is_built_by_default():
    cmake = (resources.ROOT / "CMakeLists.txt").read_text()
    archs = re.search(r'set\(ATROUSOPS_CUDA_ARCHS "([^"]+)"', cmake)[1].split(";")
    assert [f"sm_{arch}" for arch in archs] == BUDGET.architectures


def test_every_kernel_is_there_for_every_architecture(built):
    assert set(built.architectures) <= set(BUDGET.architectures)
    for name, registers in built.registers.items():
        there = [arch for arch, used in zip(built.architectures, registers) if used]
        assert there == resources.architectures_of(name, built.architectures), name


def test_kernels_of_hopper_alone_are_told_apart():
    assert resources.architectures_of("conv_wgmma_kernel<WgmmaTile<half>>", BUDGET.architectures) == ["sm_90a"]
    assert resources.architectures_of("conv_simt_kernel<half>", BUDGET.architectures) == BUDGET.architectures
    later = [arch for arch in BUDGET.architectures if arch != "sm_80"]
    assert resources.architectures_of("conv_mma_kernel<MmaE4m3, MmaTile<>>", BUDGET.architectures) == later


def test_no_kernel_is_missing_or_new(built):
    missing, new = BUDGET.registers.keys() - built.registers.keys(), built.registers.keys() - BUDGET.registers.keys()
    assert not missing, f"in the budget, not in the library: {sorted(missing)}; {AGAIN}"
    assert not new, f"in the library, not in the budget: {sorted(new)}; {AGAIN}"


def test_nothing_spills():
    spills = [
        f"{name} on {arch}: {needs.stack} bytes of stack, {needs.local} of local memory"
        for name, each in resources.resources().items()
        for arch, needs in each.items()
        if resources.is_ours(name) and (needs.stack or needs.local)
    ]
    assert not spills, "smaller tiles, other launch bounds or less unrolling would keep these in registers"


def test_parameters_are_what_every_driver_takes(built):
    """4 KB: more needs a driver of CUDA 12.1, and one of 12.0 runs what a newer 12 has built."""
    for arch in built.architectures:
        found = resources.library_parameters(arch)
        parameters = {name: size for name, size in found.items() if resources.is_ours(name)}
        assert parameters.keys() == {name for name in built.registers if arch in resources.resources()[name]}
        assert {name: size for name, size in parameters.items() if size > 4096} == {}


def test_no_kernel_exceeds_its_budget(built):
    if built.compiler != BUDGET.compiler:
        pytest.skip(f"the budget is one of nvcc {BUDGET.compiler}, the library was built with {built.compiler}")
    over = []
    for name, registers in built.registers.items():
        allowed = dict(zip(BUDGET.architectures, BUDGET.registers.get(name, [])))
        for arch, used in zip(built.architectures, registers):
            if used > allowed.get(arch, 0):
                over.append(f"{name} on {arch}: {used} registers, {allowed.get(arch, 0)} allowed")
        if built.shared[name] > BUDGET.shared.get(name, 0):
            over.append(f"{name}: {built.shared[name]} bytes of shared memory, {BUDGET.shared.get(name, 0)} allowed")
    assert not over, AGAIN


def test_the_page_of_kernels_has_what_is_built():
    page = (resources.ROOT / "docs" / "kernels.md").read_text()
    shown = re.findall(r"^\| `[^`]+` (?:\| \d+ ){5}\| \d+% \|$", page, re.M)
    assert sorted(shown) == sorted(report.rows())
