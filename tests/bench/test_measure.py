"""What a row becomes: timings if it is right, the reason if it is not."""

import pytest
import torch
from rows import broken_row, row, wrong_row

from atrousops.bench import machine, report
from atrousops.bench import measure as measuring
from atrousops.bench.machine import Ceilings
from atrousops.bench.measure import Options, measure
from atrousops.bench.registry import Selection
from atrousops.dispatch import libraries

CPU = torch.device("cpu")
CEILINGS = Ceilings(copy=1e10, gemm={"fp32": 1e11, "bf16": 1e9})
FAST = Options(repeats=2, budget=0)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad", "backward", "training"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_right(direction, layout):
    result = measure(row(direction=direction, layout=layout), CPU, CEILINGS, FAST)
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    names = {"dispatched", "aten"} | ({"own kernel"} if libraries.has_operators else set())
    assert set(result.timings) == names | ({"gemm"} if result.gemm else set())
    assert result.incumbent == "aten"
    assert set(result.ratios) == names - {"aten"}
    assert result.ratio() == result.ratios["dispatched"].median > 0
    assert result.share == result.floor_seconds / result.timings["dispatched"].median
    assert result.kernel == "aten", "too small for us"


def test_memory_is_counted():
    """Two results of 1 MB, of which one goes before a third comes; what was there before does not count."""
    x = torch.zeros(1 << 18)
    assert machine.peak_memory(lambda: x + 1 + 2 + 3, CPU) == pytest.approx(2 << 20, rel=1e-4)
    assert set(measure(row(), CPU, CEILINGS, FAST).memory) == {"dispatched", "aten"}


@pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
def test_autotuned():
    """The row says what was measured, not what was predicted."""
    case = row(size=24, channels=8)
    result = measure(case, CPU, CEILINGS, Options(repeats=2, budget=0, autotune=True))
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    assert "was measured" in result.why


def test_16_bit_is_held_to_values_rounded_before():
    result = measure(row(dtype="bf16"), CPU, CEILINGS, FAST)
    assert not result.wrong
    assert "gemm" not in result.timings, "where 16-bit products are this slow they are not worth the wait"


def test_wrong():
    result = measure(wrong_row(), CPU, CEILINGS, FAST)
    assert result.is_wrong
    assert not result.timings
    assert result.ratio() is None
    line = report.line(result)
    assert "WRONG: dispatched: output 0: error" in line
    assert " ms" not in line
    assert " us" not in line


def test_what_cannot_be_prepared():
    result = measure(broken_row(), CPU, CEILINGS, FAST)
    assert result.error == "MemoryError: no memory"
    assert "FAILED: MemoryError: no memory" in report.line(result)


def test_an_own_kernel_that_cannot_run_leaves_the_other_ratio(monkeypatch):
    def fails(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(measuring, "under", lambda backend, ready: fails)
    result = measure(row(), CPU, CEILINGS, FAST)
    assert result.error == ""
    assert set(result.ratios) == {"dispatched"}
    assert result.ratio("own kernel") is None
    assert result.failed == ({"own kernel": "RuntimeError: no such kernel"} if libraries.has_operators else {})


def test_only_ours_may_be_wrong():
    def another(*inputs, **options):
        return torch.nn.functional.conv2d(*inputs, **options) * (1.5 if inputs[0].dtype == torch.float32 else 1)

    result = measure(row(functions=(torch.nn.functional.conv2d, another)), CPU, CEILINGS, FAST)
    assert set(result.wrong) >= {"aten"}
    assert result.ratio() is None


def test_every_operator_of_the_smallest_suite():
    for case in Selection(suites=("overhead",)).rows():
        result = measure(case, CPU, CEILINGS, Options(repeats=1, budget=0))
        assert (result.error, result.wrong, result.failed) == ("", {}, {}), case.key
        assert result.ratio() is not None


def test_tf32_is_given_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with machine.tf32("tf32"):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    with machine.tf32("fp32"):
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_environment_says_what_a_result_depends_on():
    facts = machine.environment(CPU)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["device"] == machine.device_name(CPU)
    assert facts["device"].endswith("-threads")
    assert facts["cpu"]
