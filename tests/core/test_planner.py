"""Which kernel the planner chooses on a CPU, on a GPU and where Triton serves, with its reason."""

import math

import pytest
import torch
from planner_cases import ASPP, FLOAT, HALF, conv, machine, transposed
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import has_static_value

from atrousops.dispatch import choice, devices, geometry, libraries, planner
from atrousops.dispatch.planner import CallArguments

pytestmark = pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")

# Each case of the CPU with AVX-512 and AMX that was measured: problem, dtype, channels_last, what must run.
MEASURED = {
    # 37.7 ms against 19 in channels_last: NCHW skips nothing.
    "aspp fp32 nchw": (ASPP, FLOAT, False, "regions"),
    # oneDNN leaves AMX at large dilations: 31.9 ms against 5.4 for GEMMs per region.
    "aspp bf16 channels_last": (ASPP, HALF, True, "regions"),
    "aspp os8 bf16 channels_last": (conv(2048, 256, 65, 3, 36), HALF, True, "regions"),
    # Near the peak already.
    "small rate fp32": (conv(512, 512, 65, 3, 2), FLOAT, True, "aten"),
    "small rate bf16": (conv(512, 512, 65, 3, 2), HALF, True, "aten"),
    "pointwise": (conv(512, 512, 65, 1, 1), FLOAT, True, "aten"),
    "pointwise fp32 nchw": (conv(512, 512, 65, 1, 1), FLOAT, False, "aten"),
    "pointwise bf16": (conv(512, 512, 65, 1, 1), HALF, True, "aten"),
    "strided stem": (conv(3, 64, 224, 7, 1, stride=2), FLOAT, True, "aten"),
    "tiny": (conv(4, 4, 5, 3, 2), FLOAT, False, "aten"),
    "k16 s8": (transposed(21, 21, 64, 16, 8, 4), FLOAT, False, "phases"),
    "k2 s2": (transposed(256, 256, 64, 2, 2, 0), FLOAT, False, "phases"),
    # 64 channels a group: whole blocks of 8 for oneDNN.
    "wide groups": (conv(256, 256, 65, 3, 2, groups=4), FLOAT, False, "aten"),
}


@pytest.mark.parametrize("case", MEASURED)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_choice(case, needs_grad):
    problem, dtype, channels_last, kernel = MEASURED[case]
    device = machine("amx", dtype, channels_last)
    plan = planner.plan(problem, device, dtype.itemsize, needs_grad=needs_grad)
    assert plan.kernel == kernel
    assert plan.reason.startswith(kernel + ": ")
    assert [c.kernel for c in plan.candidates] == list(planner.kernels("cpu"))
    for candidate in plan.candidates:
        assert bool(candidate.reason) == (candidate.kernel != kernel), "each loser, and only a loser, says why"
    assert math.isfinite(plan.seconds)
    assert plan.seconds == dict((c.kernel, c.seconds) for c in plan.candidates)[kernel]


def test_predictions_of_the_measured_cases():
    # Milliseconds measured with two threads; the model must be within a third of each.
    for case, kernel, measured in (
        ("aspp fp32 nchw", "aten", 38.9),
        ("aspp bf16 channels_last", "regions", 5.4),
        ("aspp os8 bf16 channels_last", "regions", 12.9),
        ("small rate fp32", "aten", 51.0),
        ("small rate bf16", "aten", 6.6),
        ("k2 s2", "aten", 21.7),
    ):
        problem, dtype, channels_last, _ = MEASURED[case]
        plan = planner.plan(problem, machine("amx", dtype, channels_last), dtype.itemsize)
        seconds = {c.kernel: c.seconds for c in plan.candidates}[kernel]
        assert measured / 1.5 < 1e3 * seconds < measured * 1.5, (case, seconds)


def test_sixteen_bits_without_hardware_for_them_are_ours():
    # Below AVX-512 oneDNN has no 16-bit convolution, and PyTorch's own is slower by an order of magnitude.
    for problem in (conv(256, 256, 33, 3, 2), conv(256, 256, 33, 1, 1)):
        for dtype in (torch.bfloat16, torch.float16):
            assert planner.plan(problem, machine("avx2", dtype, True), 2).kernel == "regions"
        assert planner.plan(problem, machine("avx2", FLOAT, True), 4).kernel == "aten"


@pytest.mark.parametrize(
    ("problem", "calls"),
    [
        # 4 phases of 256 channels share a row of 256, and 1024 columns are cut into 512: of rows and results of
        # 1536 bytes 512 fit 768 KiB, which makes 4096 rows 8 x 2 products, and one more is counted for the block.
        (transposed(256, 256, 64, 2, 2, 0), 17),
        # At most 4096 rows at once, of which 1024 are a quarter.
        (transposed(16, 16, 32, 2, 2, 0), 1.25),
        (transposed(256, 256, 64, 2, 2, 0).as_kind("weight_grad"), 0),
    ],
)
def test_each_product_of_a_gathered_gemm_costs(problem, calls):
    device = machine("amx", HALF, True)
    free, costly = (
        planner.plan(problem, device._replace(rates=device.rates | {"our_gemm": cost}), 2).candidates
        for cost in (0.0, 1e-3)
    )
    best = min(range(1, len(free)), key=[c.seconds for c in free].__getitem__)
    assert costly[best].seconds - free[best].seconds == pytest.approx(1e-3 * calls / 2, rel=2e-3)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_stride_of_billions_has_a_plan(kind):
    """It leaves as many phases, which no plan may make one by one: 2^24 of them took a minute, more took all memory."""
    device = (
        machine("avx512", FLOAT, False)
        if kind == "cpu"
        else devices.gpu("cuda", devices.gpu_facts("h100"), FLOAT, True, False, "h100")
    )
    plan = planner.plan(transposed(4, 4, 2, 2, 1 << 28, 0), device, 4)
    assert plan.kernel == "aten"
    assert {c.reason for c in plan.candidates[1:]} == {"a stride that leaves too many phases"}
    assert not planner.runnable(transposed(4, 4, 2, 2, 1 << 28, 0), device, 4)


def test_facts_of_a_plan():
    plan = planner.plan(ASPP, machine("avx2", FLOAT, False), 4)
    assert plan.live_share == pytest.approx(0.405, abs=0.0005)
    assert plan.regions == 9
    assert plan.dense_flops == 2 * 33 * 33 * 2048 * 256 * 9
    assert plan.bytes_floor == 4 * (33 * 33 * (2048 + 256) + 2048 * 256 * 9)
    assert plan.workspace >= 4 * 2048 * 256 * 9


def test_a_workspace_limit_removes_candidates():
    device = machine("amx", HALF, True)
    plan = planner.plan(ASPP, device, 2, workspace_limit=1 << 20)
    assert plan.kernel == "aten"
    assert plan.reason == "aten: no kernel of ours applies"
    assert plan.candidates[1] == ("regions", math.inf, "needs more workspace than the limit")


def test_reasons_of_the_illegal():
    device = machine("avx2", FLOAT, True)
    reasons = lambda p: {c.kernel: c.reason for c in planner.plan(p, device, 4).candidates}  # noqa: E731
    dense = reasons(conv(64, 64, 33, 3, 12))
    assert dense["phases"] == "no input gradient or transposed convolution with a stride"
    assert dense["depthwise"] == "not one channel a group"
    assert dense["grouped"] == "not several channels a group"
    assert reasons(conv(64, 64, 33, 3, 2, groups=8))["regions"] == "more than one group"
    assert reasons(transposed(64, 64, 9, 4, 2, 1))["regions"] == "a stride makes it a case for phases"


H100 = (132, 227 << 10, 90)


def gpu(dtype, channels_last, tf32=True, facts=H100):
    return devices.gpu("cuda", facts, dtype, channels_last, tf32)


# What of ours stands for each problem on an H100 in bf16 channels_last, and whether it is expected to beat cuDNN.
ON_A_GPU = {
    "aspp, d=18: most taps are dead": (conv(2048, 256, 33, 3, 18, n=16), "wgmma", True),
    "small rate": (conv(512, 512, 65, 3, 2, n=8), "wgmma", False),
    "channels that 8 does not divide": (conv(84, 168, 66, 3, 4, n=8), "mma", None),
    "3 channels": (conv(3, 64, 224, 7, 1, stride=2), "simt", False),
    "depthwise": (conv(728, 728, 33, 3, 2, groups=728, n=8), "depthwise", True),
    "groups of 3 channels": (conv(96, 96, 65, 3, 2, groups=32, n=8), "grouped", False),
    "bilinear": (transposed(21, 21, 64, 16, 8, 4, groups=21), "depthwise", True),
    "k16 s8": (transposed(21, 21, 64, 16, 8, 4), "mma", None),
}


@pytest.mark.parametrize("case", ON_A_GPU)
def test_candidates_on_a_gpu(case):
    problem, ours, wins = ON_A_GPU[case]
    plan = planner.plan(problem, gpu(HALF, True), 2)
    assert [c.kernel for c in plan.candidates] == list(planner.kernels("cuda"))
    assert [c.kernel for c in plan.candidates[1:] if c.seconds < math.inf] == [ours], "the one that C++ would run"
    assert wins is None or plan.kernel == (ours if wins else "aten")
    assert plan.reason.startswith(plan.kernel + ": ")


def test_a_gpu_without_tensor_cores_for_it():
    for device, itemsize in ((gpu(torch.double, True), 8), (gpu(HALF, True, facts=(80, 96 << 10, 70)), 2)):
        reasons = {c.kernel: c.reason for c in planner.plan(ASPP, device, itemsize).candidates}
        assert reasons["mma"] == "no tensor cores for the dtype on the device"
    # In full precision fp32 is three products of tf32, which wgmma does not do; nor has another generation wgmma.
    for device, itemsize in ((gpu(FLOAT, True, tf32=False), 4), (gpu(HALF, True, facts=(148, 227 << 10, 100)), 2)):
        found = {c.kernel: c for c in planner.plan(ASPP, device, itemsize).candidates}
        assert found["wgmma"].reason == "no wgmma for the dtype on the device"
        assert found["mma"].seconds < math.inf


# What of Triton's stands for each problem in bf16 channels_last, and whether it is expected to beat cuDNN or MIOpen.
ON_TRITON = {
    "small rate": (conv(512, 512, 65, 3, 2, n=8), "dot", False),
    "k16 s8": (transposed(21, 21, 64, 16, 8, 4, n=16), "dot", True),
    "depthwise": (conv(728, 728, 33, 3, 2, groups=728, n=8), "looped", False),
    "groups of 16 channels": (conv(96, 96, 65, 3, 2, groups=6, n=8), "dot", None),
}


@pytest.mark.parametrize("name", ["h100", "mi300x"])
@pytest.mark.parametrize("case", ON_TRITON)
def test_candidates_where_triton_serves(case, name):
    problem, ours, wins = ON_TRITON[case]
    device = devices.gpu("triton", devices.gpu_facts(name), HALF, True, False, name)
    plan = planner.plan(problem, device, 2)
    assert [c.kernel for c in plan.candidates] == ["aten", "dot", "looped"]
    assert [c.kernel for c in plan.candidates[1:] if c.seconds < math.inf] == [ours]
    assert geometry.few_channels(problem) == (ours == "looped"), "the one that the launcher takes"
    assert wins is None or plan.kernel == (ours if wins else "aten")
    assert plan.reason.startswith(plan.kernel + ": ")


FORWARD = CallArguments("forward", (1, 64, 33, 33), (64, 64, 3, 3), (1, 1), (12, 12), (12, 12))
CALL = (FORWARD, FLOAT, True)


def test_choose_is_what_plan_call_says():
    for needs_grad in (False, True):
        assert choice.chosen(*CALL, needs_grad).kernel == choice.plan_call(*CALL, needs_grad).kernel
    # Low and high padding may differ.
    wide = (FORWARD._replace(padding=(12, 12, 13, 12)), *CALL[1:])
    assert choice.chosen(*wide).kernel == choice.plan_call(*wide).kernel


def test_choose_depends_on_every_argument():
    choice._chosen.clear()
    choice.chosen(*CALL)
    choice.chosen(*CALL, True)
    choice.chosen(*CALL[:-1], False)
    choice.chosen(*CALL[:-2], HALF, True)
    choice.chosen(FORWARD._replace(kind="transposed"), *CALL[1:])
    choice.chosen(FORWARD._replace(kind="transposed", output_padding=(1, 1)), *CALL[1:])
    choice.chosen(*CALL, device="cuda")
    assert len(choice._chosen) == 7
    choice.chosen(*CALL)
    assert len(choice._chosen) == 7


def test_whether_tf32_is_allowed_counts_on_a_gpu():
    arguments = CallArguments("forward", (4, 256, 33, 33), (256, 256, 3, 3), (1, 1), (6, 6), (6, 6))
    call = (arguments, FLOAT, True, False, "cuda")
    plans = []
    for allow in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow):
            plans.append(choice.plan_call(*call))
            assert choice.chosen(*call).kernel == plans[-1].kernel
    ours = [min((c.seconds, c.kernel) for c in plan.candidates[1:]) for plan in plans]
    assert ours[0] < ours[1]
    # Without the CUDA library the plan is Triton's.
    expected = ["wgmma", "mma"] if libraries.cuda.problem is None else ["dot", "dot"]
    assert [kernel for _, kernel in ours] == expected


@pytest.mark.parametrize("dynamic", [False, True])
def test_choose_is_a_constant_of_a_compiled_graph(dynamic):
    codes = {kernel: float(i) for i, kernel in enumerate(planner.kernels("cpu"))}

    def f(x, w, rate):
        pair = (rate, rate)
        call = CallArguments("forward", x.shape, w.shape, (1, 1), pair, pair)
        return x.sum() * 0 + codes[choice.chosen(call, x.dtype, False).kernel]

    compiled = torch.compile(f, backend="eager", fullgraph=True, dynamic=dynamic)
    w = torch.zeros(128, 128, 3, 3)
    # In fp32 a large rate is for regions and a small one is not, whether or not the size is known.
    for size in (65, 70, 65):
        x = torch.zeros(1, 128, size, size)
        assert compiled(x, w, 36) == f(x, w, 36)
    assert compiled(torch.zeros(2, 128, 65, 65), w, 1) == f(torch.zeros(2, 128, 65, 65), w, 1)


def test_choose_with_symbolic_sizes_outside_dynamo():
    # As when a backward formula is traced: sizes without a hash.
    expected = choice.chosen(FORWARD._replace(input_size=(1, 64, 64, 64)), *CALL[1:]).kernel
    seen = []

    def f(x):
        call = FORWARD._replace(input_size=tuple(x.shape))
        seen.append((has_static_value(x.shape[2]), choice.chosen(call, *CALL[1:]).kernel))
        return x + 1

    make_fx(f, tracing_mode="symbolic")(torch.zeros(2, 64, 70, 71))
    assert seen == [(False, expected)]


def test_without_the_compiled_planner_pytorch_runs(monkeypatch):
    planned = choice.plan_call(*CALL)
    monkeypatch.setattr(libraries, "planner", None)
    plan = choice.plan_call(*CALL)
    assert (plan.kernel, plan.reason, plan.seconds) == ("aten", "aten: the compiled planner is missing", 0)
    assert [c.kernel for c in plan.candidates] == list(planner.kernels("cpu")) == ["aten"]
    assert plan[3:7] == pytest.approx(planned[3:7], rel=1e-12), "live share, regions, operations and bytes"
    same = [[v] * 2 for v in (FORWARD.weight_size, FORWARD.padding, FORWARD.dilation)]
    branches = choice.plan_branches(FORWARD.input_size, *same, HALF, True, True)
    assert (branches.kernel, branches.candidates) == ("branches", (("branches", 0, ""),))
    # The map once, in bf16: 2 results of 64 channels and the weights of both.
    assert branches.bytes_floor == 2 * (3 * 64 * 33 * 33 + 2 * 64 * 64 * 9)
    assert choice.plan_context(FORWARD.input_size, (1, 2), (3, 3), HALF, True).cluster == 0
