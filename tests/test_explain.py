from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import backends, choice, libraries, planner, triton_library
from atrousops.dispatch.planner import CallArguments


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=12, dilation=12),
        nn.BatchNorm2d(4),
        nn.ModuleDict({"up": nn.ConvTranspose2d(4, 2, 2, stride=2)})["up"],
        nn.MaxPool2d(2),
    )


def test_stock_layers_in_order_with_what_they_would_run_on():
    x = torch.randn(2, 3, 13, 13)
    rows = ao.explain(model(), x).rows
    assert [(row.module, row.operator, row.shape) for row in rows] == [
        ("0", "conv2d", (2, 3, 13, 13)),
        ("2", "conv_transpose2d", (2, 4, 13, 13)),
        ("3", "max_pool2d", (2, 2, 26, 26)),
    ]
    assert all(row.backend == "aten" and row.reason.startswith("stock, not converted") for row in rows)
    # By hand: 12 of 13 shifts of a 13-pixel axis miss for the outer taps: (13 + 1 + 1) / (3 * 13) of the taps are live.
    assert rows[0].live_share == pytest.approx((15 / 39) ** 2)
    assert rows[0].flops == 2 * (2 * 13 * 13) * 4 * 3 * 9
    assert rows[1].flops == 2 * (2 * 13 * 13) * 4 * 2 * 4
    # Input and values: the pooling is not planned, so its tensors are counted.
    assert rows[2].bytes == 4 * (2 * 2 * 26 * 26 + 2 * 2 * 13 * 13)


def test_converted_layers_run_what_the_planner_says():
    net = model().eval()
    ao.convert(net)
    x = torch.randn(2, 3, 13, 13).to(memory_format=torch.channels_last)
    with torch.no_grad():
        row = ao.explain(net, x).rows[0]
    call = CallArguments("forward", (2, 3, 13, 13), (4, 3, 3, 3), (1, 1), (12, 12), (12, 12))
    plan = choice.plan_call(call, torch.float32, True)
    assert row.plan == plan
    assert row.channels_last
    assert row.reason == plan.reason
    assert row.kernel == plan.kernel
    assert row.backend == ("aten" if plan.kernel == "aten" else "cpu")


def test_fake_tensors_cost_nothing_and_say_the_same():
    net = model().eval()
    real = ao.explain(net, torch.randn(2, 3, 13, 13))
    with FakeTensorMode():
        x = torch.empty(2, 3, 13, 13)
    assert ao.explain(net, x).rows == real.rows
    with FakeTensorMode():
        huge = torch.empty(1, 3, 100_000, 100_000)
    assert ao.explain(net, huge).rows[0].flops == pytest.approx(2e10 * 4 * 3 * 9)


@pytest.mark.parametrize("backend", ["aten", None])
def test_fake_boxes_have_no_values_to_check(backend):
    with FakeTensorMode(), ao.backend(backend):
        rows = ao.explain(ao.RoIAlign(2, 1.0, 2), torch.empty(1, 3, 8, 8), torch.empty(5, 5)).rows
    assert [row.operator for row in rows] == ["roi_align"]


@pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
def test_a_lattice_of_fake_features_has_its_largest_size():
    with FakeTensorMode():
        rows = ao.explain(ao.DenseCRF(iterations=1), torch.empty(1, 4, 8, 8), torch.empty(1, 3, 8, 8)).rows
    # Of the positions, and of positions and colours.
    assert [row.operator for row in rows] == ["permutohedral_lattice", "permutohedral_lattice", "mean_field"]


def test_a_gpu_is_explained_without_one(monkeypatch):
    monkeypatch.setattr(libraries, "cuda", replace(libraries.cuda, problem=None))
    with FakeTensorMode():
        x = torch.empty(16, 256, 33, 33, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        layer = ao.AtrousConv2d(256, 256, 3, padding=18, dilation=18, device="cuda", dtype=torch.bfloat16)
        (row,) = ao.explain(layer.eval(), x).rows
    assert row.device == "cuda"
    assert [c.kernel for c in row.plan.candidates] == list(planner.kernels("cuda"))
    assert row.backend == ("aten" if row.plan.kernel == "aten" else backends.own("conv", x.device, x.dtype) or "aten")
    if libraries.planner is not None:
        explanation = ao.explain(layer, x)
        assert "depthwise: not one channel in and out a group\n" in str(explanation)
        assert row.plan.kernel == "wgmma"
        explanation.rows[:] = [replace(row, kernel="wgmma", backend="cuda")]
        assert "positions of 8 images; predicted 2.48 times as fast as with every tap" in str(explanation)


@pytest.mark.skipif(libraries.triton.problem is not None, reason=str(libraries.triton.problem))
@pytest.mark.parametrize("rocm", [None, "6.4"], ids=["CUDA", "ROCm"])
def test_triton_runs_on_a_gpu_without_a_compiled_library(rocm, monkeypatch):
    monkeypatch.setattr(libraries, "cuda", replace(libraries.cuda, problem="not built"))
    monkeypatch.setattr(torch.version, "hip", rocm)
    with FakeTensorMode():
        x, w = torch.empty(1, 64, 65, 65, device="cuda"), torch.empty(64, 64, 3, 3, device="cuda")
        boxes = torch.empty(3, 5, device="cuda")
        calls = [
            lambda: ao.functional.conv2d(x, w, None, 1, 24, 24),
            lambda: ao.functional.max_pool2d(x, 2),
            lambda: ao.functional.roi_align(x, boxes, 7),
            lambda: ao.functional.max_unpool2d(x, torch.empty_like(x, dtype=torch.int64), 2),
        ]
        rows = [ao.explain(call).rows[0] for call in calls]
        assert {(row.backend, row.reason) for row in rows[1:]} == {("triton", "our Triton kernel")}
        assert rows[0].backend == ("aten" if rows[0].plan.kernel == "aten" else "triton")
        assert rows[0].reason == rows[0].plan.reason
        if libraries.planner is None:
            assert rows[0].reason == "aten: the compiled planner is missing"
        else:
            # Of the rate's nine taps five are live: the plan is of Triton's kernels, with their reasons.
            assert [(c.kernel, bool(c.reason)) for c in rows[0].plan.candidates][2:] == [("looped", True)]
            assert "dot" in rows[0].reason
        with ao.backend("triton"):
            assert ao.explain(calls[0]).rows[0].backend == "triton"
            w = w.requires_grad_(False)
            row = ao.explain(lambda: ao.functional.conv2d(x, w, None, 1, 24, 24, residual=x, activation="relu")).rows[0]
            assert (row.backend, row.kernel) == ("triton", "dot" if row.plan.kernel == "dot" else "conv_epilogue")
            assert row.reason.endswith(", residual and activation in its launch")
    if not triton_library.interpreted():
        with ao.backend("triton"), pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
            ao.functional.max_pool2d(torch.zeros(1, 1, 4, 4), 2)


def test_watching_leaves_no_trace():
    net = model()
    x = torch.randn(1, 3, 9, 9)
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" not in name}
    ao.explain(net.eval(), x)
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
    assert torch.overrides._get_current_function_mode() is None
    for name, value in before.items():
        if "num_batches" not in name:
            assert torch.equal(net.state_dict()[name], value)
    with pytest.raises(RuntimeError):
        ao.explain(net, torch.randn(1, 5, 9, 9))
    assert torch.overrides._get_current_function_mode() is None


def test_forced_backends_are_named():
    x, boxes = torch.randn(2, 3, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]])
    with ao.backend("reference"):
        row = ao.explain(A.roi_pool, x, boxes, 2).rows[0]
    assert (row.backend, row.reason) == ("reference", "forced by backend('reference')")
    # A pointwise convolution is PyTorch's by plan, unless somebody wants otherwise.
    layer, x = ao.AtrousConv2d(8, 8, 1), torch.randn(1, 8, 9, 9)
    for name, kernel in (("aten", "aten"), ("reference", "reference"), ("cpu", "conv")):
        if name == "cpu" and not libraries.has_operators:
            continue
        with ao.backend(name):
            row = ao.explain(layer, x).rows[0]
        assert (row.backend, row.kernel) == (name, kernel)


@pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
def test_a_function_of_ours():
    x, boxes = torch.randn(2, 3, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]])
    explanation = ao.explain(A.roi_pool, x, boxes, 2)
    (row,) = explanation.rows
    assert (row.operator, row.backend, row.kernel, row.module) == ("roi_pool", "cpu", "roi_pool", "")
    # Values, and the positions of the maxima as int32.
    assert row.bytes == x.nbytes + boxes.nbytes + 2 * 4 * 3 * 2 * 2
    # Two calls on behalf of the same line of code are two rows.
    assert len(ao.explain(lambda x: [A.roi_pool(x, boxes, 2) for _ in range(2)], x).rows) == 2


def test_text():
    x = torch.randn(1, 3, 13, 13)
    net = model().eval()
    table = str(ao.explain(net, x)).splitlines()
    assert table[0].split() == ["module", "operator", "input", "kernel", "live", "GFLOP", "MB", "reason"]
    assert table[1].split()[:4] == ["0", "conv2d", "1x3x13x13", "aten"]
    assert table[-1].startswith("3 calls: 3 aten; ")
    detail = str(ao.explain(net[0], x))
    assert "live taps   14.8%" in detail
    assert all(f"{kernel}: " in detail for kernel in planner.kernels("cpu") if kernel != "aten")
    assert str(ao.explain(nn.ReLU(), x)).startswith("no operator of this package")


def test_compiled_modules_are_watched_uncompiled():
    net = model().eval()
    x = torch.randn(1, 3, 13, 13)
    assert ao.explain(torch.compile(net), x).rows == ao.explain(net, x).rows


def test_rejects_what_cannot_be_called():
    with pytest.raises(TypeError, match="explain: call must be a module or a function; got int"):
        ao.explain(3)
