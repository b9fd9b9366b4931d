"""Which kernel the planner chooses on the CPU, with its reason; the plain Python form against the compiled one."""

import math
import random

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import has_static_value

from atrousops import _library, _plan_cuda, choice, devices, planner
from atrousops.devices import Device, Rates

native = _library.planner
needs_native = pytest.mark.skipif(native is None, reason="the compiled planner is missing")

FLOAT, HALF = torch.float32, torch.bfloat16


def machine(isa, dtype, channels_last, amx=False):
    return Device("cpu", 2, devices.default_rates(isa, amx, dtype, channels_last))


def conv(c, k, size, kernel, dilation, groups=1, stride=1, n=1, kind="forward"):
    pad = dilation * (kernel - 1) // 2
    pairs = [(v, v) for v in (stride, pad, dilation)]
    return planner.call_problem(kind, (n, c, size, size), (k, c // groups, kernel, kernel), *pairs, groups)


def transposed(c, k, size, kernel, stride, pad, groups=1, n=1):
    pairs = [(v, v) for v in (stride, pad, 1)]
    return planner.call_problem("transposed", (n, c, size, size), (c, k // groups, kernel, kernel), *pairs, groups)


ASPP = conv(2048, 256, 33, 3, 18)
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
    device = machine("avx512", dtype, channels_last, amx=True)
    plan = planner.plan(problem, device, dtype.itemsize, needs_grad=needs_grad)
    assert plan.kernel == kernel
    assert plan.reason.startswith(kernel + ": ")
    assert [c.kernel for c in plan.candidates] == list(planner.KERNELS)
    for candidate in plan.candidates:
        assert bool(candidate.reason) == (candidate.kernel != kernel), "each loser, and only a loser, says why"
    assert math.isfinite(plan.seconds)
    assert plan.seconds == dict((c.kernel, c.seconds) for c in plan.candidates)[kernel]


# Problem, format, what runs in inference and in training, on the machine where both sides were timed (fp32, avx2).
GROUPED = {
    # PyTorch's forward pass is good; the gradients of dilated depthwise convolutions are ten times slower.
    "depthwise": (conv(728, 728, 33, 3, 2, groups=728), False, "aten", "depthwise"),
    "depthwise channels_last": (conv(728, 728, 33, 3, 2, groups=728), True, "aten", "depthwise"),
    "depthwise d=1": (conv(728, 728, 33, 3, 1, groups=728), True, "aten", "aten"),
    # Padding beyond what oneDNN's kernel keeps in registers, and a filter too large for its weight gradient.
    "depthwise d=6": (conv(728, 728, 33, 3, 6, groups=728), False, "depthwise", "depthwise"),
    "depthwise d=6 channels_last": (conv(728, 728, 33, 3, 6, groups=728), True, "depthwise", "depthwise"),
    "depthwise 5x5": (conv(728, 728, 33, 5, 1, groups=728), True, "aten", "depthwise"),
    # Three channels a group: no block of 8.
    "odd groups": (conv(96, 96, 65, 3, 2, groups=32), False, "grouped", "grouped"),
    "odd groups channels_last": (conv(96, 96, 65, 3, 2, groups=32), True, "grouped", "grouped"),
    "bilinear": (transposed(21, 21, 64, 16, 8, 4, groups=21), False, "depthwise", "depthwise"),
    "bilinear channels_last": (transposed(21, 21, 64, 16, 8, 4, groups=21), True, "aten", "depthwise"),
    "transposed, two channels a group": (transposed(64, 64, 64, 4, 2, 1, groups=32), True, "grouped", "grouped"),
}


@pytest.mark.parametrize("case", GROUPED)
def test_choice_of_groups(case):
    problem, channels_last, inference, training = GROUPED[case]
    device = machine("avx2", FLOAT, channels_last)
    assert planner.plan(problem, device, 4).kernel == inference
    assert planner.plan(problem, device, 4, needs_grad=True).kernel == training


# Dense fp32 on the same machine, ms of one thread: forward and then both gradients, PyTorch's, and ours with the faster
# of both for each gradient.
TIMED = {
    "d=1": (conv(256, 128, 33, 3, 1), False, (7.3, 16.5), (8.9, 15.9)),
    "d=1 channels_last": (conv(256, 128, 33, 3, 1), True, (6.8, 17.9), (7.9, 15.3)),
    "d=18": (conv(512, 128, 33, 3, 18), False, (16.6, 39.0), (8.5, 17.8)),
    "d=18 channels_last": (conv(512, 128, 33, 3, 18), True, (6.3, 29.8), (6.6, 14.0)),
    "k2 s2": (transposed(256, 256, 32, 2, 2, 0), False, (9.5, 15.9), (10.2, 15.9)),
    "k16 s8": (transposed(21, 21, 32, 16, 8, 4), False, (16.5, 18.9), (7.4, 15.6)),
    "k16 s8 channels_last": (transposed(21, 21, 32, 16, 8, 4), True, (6.1, 16.4), (3.5, 9.7)),
}


@pytest.mark.parametrize("case", TIMED)
def test_choice_and_predictions_of_timed_cases(case):
    problem, channels_last, theirs, ours = TIMED[case]
    device = machine("avx2", FLOAT, channels_last)._replace(threads=1)
    for needs_grad in (False, True):
        plan = planner.plan(problem, device, 4, needs_grad=needs_grad)
        aten, best = plan.candidates[0].seconds, min(c.seconds for c in plan.candidates[1:])
        measured = [1e-3 * (t[0] + needs_grad * t[1]) for t in (theirs, ours)]
        assert measured[0] / 2 < aten < measured[0] * 2
        assert measured[1] / 2 < best < measured[1] * 2
        # Never slower: ours only where it was measured to be faster.
        assert plan.kernel == "aten" or measured[1] < measured[0]


# The same machine with two threads: problem, channels_last, ms of PyTorch and of ours. The faster one must run.
TIMED_ALONE = {
    # PyTorch writes more columns than the cache holds, 78 MB of them.
    "scores, weight gradient": (conv(512, 21, 65, 3, 2, kind="weight_grad"), False, 67.0, 21.6),
    "scores, weight gradient channels_last": (conv(512, 21, 65, 3, 2, kind="weight_grad"), True, 102.0, 12.1),
    "scores of four images": (conv(512, 21, 41, 3, 2, n=4, kind="weight_grad"), True, 99.0, 21.5),
    # Few columns: PyTorch's product runs at its usual rate, and ours multiplies by the zeros that fill up vectors.
    "21->21, weight gradient": (conv(21, 21, 66, 3, 8, kind="weight_grad"), True, 1.07, 1.41),
    "21->168, weight gradient": (conv(21, 168, 66, 3, 4, kind="weight_grad"), True, 3.46, 5.3),
    "84->168, weight gradient": (conv(84, 168, 66, 3, 4, kind="weight_grad"), False, 8.7, 11.9),
    # oneDNN reads depthwise planes in blocks of 8 channels.
    "bilinear, input gradient": (transposed(21, 21, 64, 16, 8, 4, groups=21).as_kind("forward"), False, 7.8, 4.2),
    "the same, channels_last": (transposed(21, 21, 64, 16, 8, 4, groups=21).as_kind("forward"), True, 3.4, 6.5),
    "21 planes": (conv(21, 21, 66, 3, 2, groups=21), False, 0.32, 0.12),
    "24 planes": (conv(24, 24, 256, 4, 1, groups=24, stride=2), False, 0.69, 0.73),
    "100 planes, weight gradient": (conv(100, 100, 65, 3, 1, groups=100, kind="weight_grad"), False, 0.76, 0.41),
    # Five rows of 65x512 do not fit the L2 cache, five of 33x512 do.
    "layer4": (conv(512, 512, 65, 3, 2), True, 183.0, 137.0),
    "layer4, input gradient": (conv(512, 512, 65, 3, 2, kind="input_grad"), True, 180.0, 135.0),
    "layer4, d=4": (conv(512, 512, 65, 3, 4), True, 122.0, 131.0),
    "layer4 OS16": (conv(512, 512, 33, 3, 2), True, 30.3, 30.9),
}


@pytest.mark.parametrize("case", TIMED_ALONE)
def test_choice_of_timed_cases(case):
    problem, channels_last, theirs, ours = TIMED_ALONE[case]
    plan = planner.plan(problem, machine("avx2", FLOAT, channels_last), 4)
    assert (plan.kernel == "aten") == (theirs < ours), plan.reason


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
        plan = planner.plan(problem, machine("avx512", dtype, channels_last, amx=True), dtype.itemsize)
        seconds = {c.kernel: c.seconds for c in plan.candidates}[kernel]
        assert measured / 1.5 < 1e3 * seconds < measured * 1.5, (case, seconds)


def test_sixteen_bits_without_hardware_for_them_are_ours():
    # Below AVX-512 oneDNN has no 16-bit convolution, and PyTorch's own is slower by an order of magnitude.
    for problem in (conv(256, 256, 33, 3, 2), conv(256, 256, 33, 1, 1)):
        for dtype in (torch.bfloat16, torch.float16):
            assert planner.plan(problem, machine("avx2", dtype, True), 2).kernel == "regions"
        assert planner.plan(problem, machine("avx2", FLOAT, True), 4).kernel == "aten"


def test_facts_of_a_plan():
    plan = planner.plan(ASPP, machine("avx2", FLOAT, False), 4)
    assert plan.live_share == pytest.approx(0.405, abs=0.0005)
    assert plan.regions == 9
    assert plan.dense_flops == 2 * 33 * 33 * 2048 * 256 * 9
    assert plan.bytes_floor == 4 * (33 * 33 * (2048 + 256) + 2048 * 256 * 9)
    assert plan.workspace >= 4 * 2048 * 256 * 9
    assert plan.split_k == 1


def test_a_workspace_limit_removes_candidates():
    device = machine("avx512", HALF, True, amx=True)
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
    return Device("cuda", 1, devices.gpu_rates(facts, dtype, channels_last, tf32), *facts)


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
    assert [c.kernel for c in plan.candidates] == list(_plan_cuda.KERNELS)
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


@pytest.mark.parametrize("facts", [H100, devices._MI300X], ids=["H100", "MI300X"])
@pytest.mark.parametrize("case", ON_TRITON)
def test_candidates_where_triton_serves(case, facts):
    problem, ours, wins = ON_TRITON[case]
    device = Device("triton", 1, devices.triton_rates(facts, HALF, True, False), *facts)
    plan = planner.plan(problem, device, 2)
    assert [c.kernel for c in plan.candidates] == ["aten", "dot", "looped"]
    assert [c.kernel for c in plan.candidates[1:] if c.seconds < math.inf] == [ours]
    assert wins is None or plan.kernel == (ours if wins else "aten")
    assert plan.reason.startswith(plan.kernel + ": ")


@needs_native
def test_native_plans_are_equal():
    rng = random.Random(0)
    shown, legal = set(), set()
    for _ in range(800):
        groups = rng.choice((1, 1, 1, 2, 8, 21))
        c, k = groups * rng.choice((1, 1, 3, 16, 64)), groups * rng.choice((1, 1, 3, 16, 64))
        one = lambda *choices: (rng.choice(choices), rng.choice(choices))  # noqa: E731
        size, kernel, stride, dilation = one(13, 33, 64), one(1, 2, 3, 4), one(1, 1, 2, 8), one(1, 2, 4)
        kind = rng.choice(("forward", "transposed", "input_grad", "weight_grad"))
        weight = (c, k // groups, *kernel) if kind == "transposed" else (k, c // groups, *kernel)
        problem = planner.call_problem(kind, (rng.randint(0, 4), c, *size), weight, stride, (1, 0), dilation, groups)
        isa, dtype = rng.choice(("avx512", "avx2", "plain")), rng.choice((torch.double, FLOAT, HALF))
        device = machine(isa, dtype, rng.random() < 0.5, amx=rng.random() < 0.5)
        if rng.random() < 0.4:
            device = gpu(dtype, rng.random() < 0.5, rng.random() < 0.5)
        needs_grad = kind in ("forward", "transposed") and rng.random() < 0.5
        args = (problem, device, dtype.itemsize, needs_grad, rng.choice((1 << 31, 11 << 20)))
        python, compiled = planner.python_plan(*args), planner.compiled_plan(*args)
        assert compiled.kernel == python.kernel
        assert compiled.reason == python.reason
        assert compiled.workspace == python.workspace
        assert compiled.regions == python.regions
        for name in ("seconds", "live_share", "dense_flops", "bytes_floor"):
            assert getattr(compiled, name) == pytest.approx(getattr(python, name), rel=1e-12)
        for a, b in zip(compiled.candidates, python.candidates):
            assert (a.kernel, a.reason) == (b.kernel, b.reason)
            assert a.seconds == pytest.approx(b.seconds, rel=1e-12)
        shown.add(python.kernel)
        legal |= {c.kernel for c in python.candidates if c.seconds < math.inf}
    assert shown >= set(planner.KERNELS), "the sample must reach every kernel"
    assert legal == {*planner.KERNELS, *_plan_cuda.KERNELS}


CALL = ("forward", (1, 64, 33, 33), (64, 64, 3, 3), (1, 1), (12, 12), (12, 12), 1, FLOAT, True)


def test_choose_is_what_plan_call_says():
    for needs_grad in (False, True):
        assert choice.choose(*CALL, needs_grad) == choice.plan_call(*CALL, needs_grad).kernel
    # Low and high padding may differ.
    wide = (*CALL[:4], (12, 12, 13, 12), *CALL[5:])
    assert choice.choose(*wide) == choice.plan_call(*wide).kernel


def test_choose_depends_on_every_argument():
    choice._chosen.clear()
    choice.choose(*CALL)
    choice.choose(*CALL, True)
    choice.choose(*CALL[:-1], False)
    choice.choose(*CALL[:-2], HALF, True)
    choice.choose("transposed", *CALL[1:])
    choice.choose("transposed", *CALL[1:], False, (1, 1))
    choice.choose(*CALL, False, (), "cuda")
    assert len(choice._chosen) == 7
    choice.choose(*CALL)
    assert len(choice._chosen) == 7


def test_whether_tf32_is_allowed_counts_on_a_gpu():
    call = ("forward", (4, 256, 33, 33), (256, 256, 3, 3), (1, 1), (6, 6), (6, 6), 1, FLOAT, True, False, (), "cuda")
    plans = []
    for allow in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow):
            plans.append(choice.plan_call(*call))
            assert choice.choose(*call) == plans[-1].kernel
    ours = [min((c.seconds, c.kernel) for c in plan.candidates[1:]) for plan in plans]
    assert ours[0] < ours[1]
    # Without the CUDA library the plan is Triton's.
    expected = ["wgmma", "mma"] if _library.cuda.problem is None else ["dot", "dot"]
    assert [kernel for _, kernel in ours] == expected


@pytest.mark.parametrize("dynamic", [False, True])
def test_choose_is_a_constant_of_a_compiled_graph(dynamic):
    codes = {kernel: float(i) for i, kernel in enumerate(planner.KERNELS)}

    def f(x, w, rate):
        pair = (rate, rate)
        return x.sum() * 0 + codes[choice.choose("forward", x.shape, w.shape, (1, 1), pair, pair, 1, x.dtype, False)]

    compiled = torch.compile(f, backend="eager", fullgraph=True, dynamic=dynamic)
    w = torch.zeros(128, 128, 3, 3)
    # In fp32 a large rate is for regions and a small one is not, whether or not the size is known.
    for size in (65, 70, 65):
        x = torch.zeros(1, 128, size, size)
        assert compiled(x, w, 36) == f(x, w, 36)
    assert compiled(torch.zeros(2, 128, 65, 65), w, 1) == f(torch.zeros(2, 128, 65, 65), w, 1)


def test_choose_with_symbolic_sizes_outside_dynamo():
    # As when a backward formula is traced: sizes without a hash.
    expected = choice.choose(CALL[0], (1, 64, 64, 64), *CALL[2:])
    seen = []

    def f(x):
        seen.append((has_static_value(x.shape[2]), choice.choose(CALL[0], tuple(x.shape), *CALL[2:])))
        return x + 1

    make_fx(f, tracing_mode="symbolic")(torch.zeros(2, 64, 70, 71))
    assert seen == [(False, expected)]


def test_rates_are_finite_and_positive():
    for isa in ("avx512", "avx2", "plain"):
        for dtype in (torch.double, FLOAT, HALF, torch.float16):
            for flags in ((False, False), (False, True), (True, True)):
                rates = devices.default_rates(isa, flags[0], dtype, flags[1])
                assert isinstance(rates, Rates)
                assert all(r > 0 for r in rates._replace(skips=1.0, tensor=1.0, wgmma=1.0))
