"""conv_branches against the same convolutions in fp64, wherever it runs: in one launch, or branch by branch."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, assert_compiles
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import backends, devices, libraries, planner
from atrousops.surgery.explain import Explanation

BF16, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Case:
    """Branches given by output channels, kernel, padding and dilation; those of an axis where they differ."""

    why: str
    size: tuple[int, int, int, int]
    branches: tuple[tuple, ...]
    relu: bool = True
    bias: bool = True
    channels_last: bool = True
    others: tuple[int, ...] = ()  # channels of maps beside them

    def __str__(self):
        return self.why.replace(" ", "-")

    @property
    def around(self):
        return [b[2] for b in self.branches], [b[3] for b in self.branches]

    @property
    def activation(self):
        return "relu" if self.relu else None

    def tensors(self, dtype):
        """Input, weights, biases and others."""
        n, c, h, w = self.size
        format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=format)
        kernels = [b[1] if isinstance(b[1], tuple) else (b[1], b[1]) for b in self.branches]
        weights = [torch.randn(b[0], c, *k).to(dtype, memory_format=format) for b, k in zip(self.branches, kernels)]
        biases = [torch.randn(b[0]).to(dtype) for b in self.branches] if self.bias else None
        size = self.stock(x, weights, None, []).shape
        return x, weights, biases, [torch.randn(n, k, *size[2:]).to(dtype) for k in self.others]

    def ours(self, x, weights, biases, others):
        return A.conv_branches(x, weights, biases, *self.around, self.activation, others)

    def stock(self, x, weights, biases, others):
        parts = []
        for i, (_, _, p, d) in enumerate(self.branches):
            parts.append(F.conv2d(x, weights[i], biases[i] if biases else None, 1, p, d))
        return torch.cat([*[F.relu(y) if self.relu else y for y in parts], *others], 1)

    def both(self, x, weights, biases, others):
        """PyTorch's result at the dtype, and in fp64."""
        wide = [None if ts is None else [t.double() for t in ts] for ts in (weights, biases, others)]
        return self.stock(x, weights, biases, others), self.stock(x.double(), *wide)


CASES = (
    # One launch of wgmma; at rate 9 all but the centre tap of the rows is dead. Beside them, planes.
    Case("ASPP", (2, 40, 9, 8), ((40, 1, 0, 1), (40, 3, 2, 2), (40, 3, 5, 5), (40, 3, 9, 9)), others=(40,)),
    # Planes are brought into channels_last once, and the result back.
    Case("planes and no bias", (1, 40, 8, 9), ((32, 3, 1, 1), (32, 5, 4, 2)), False, False, False),
    # Two launches of wgmma where it runs; a kernel of 3x1; stores of single elements.
    Case("other widths and kernels", (1, 32, 9, 8), ((36, (3, 1), (2, 0), (2, 1)), (33, 3, (1, 2), (1, 2)))),
    # Too narrow for tensor cores: one by one.
    Case("few channels", (2, 3, 5, 6), ((2, 3, 1, 1), (5, 1, 0, 1), (1, 3, 2, 2)), True, True, False, (1, 4)),
    # One branch, no image.
    Case("nothing", (0, 8, 5, 6), ((4, 3, 2, 1),), True, True, False, (3,)),
)
# Slices of channels_last gradients, and nothing behind the sums.
PLAIN = Case("without bias and ReLU", (2, 4, 5, 4), ((4, 3, 1, 1), (2, 1, 0, 1)), False, False)
needs_host_cuda = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
by_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("dtype", [BF16, FLOAT])
@by_case
def test_branches_in_fp64(case, dtype, backend):
    tensors = case.tensors(dtype)
    y = case.ours(*tensors)
    theirs, exact = case.both(*tensors)
    assert_close(y, exact, theirs)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)


@needs_host_cuda
@pytest.mark.parametrize(("case", "gpu", "wgmma", "mma"), [
    (CASES[0], host_cuda.H100, 1, 0),
    (CASES[2], host_cuda.H100, 2, 0),
    (CASES[0], host_cuda.A100, 0, 4),
    (CASES[3], host_cuda.H100, 0, 0),
], ids=str)  # fmt: skip
def test_launches(case, gpu, wgmma, mma):
    """Of tensor cores, each of which writes into its own channels."""
    tensors = case.tensors(HALF)
    with host_cuda.host_cuda(), host_cuda.device(*gpu):
        before = [host_cuda.runs(f"conv_{name}_kernel") for name in ("wgmma", "mma")]
        y = case.ours(*tensors)
        after = [host_cuda.runs(f"conv_{name}_kernel") for name in ("wgmma", "mma")]
    assert [b - a for a, b in zip(before, after)] == [wgmma, mma]
    theirs, exact = case.both(*tensors)
    assert_close(y, exact, theirs)


def test_without_batch(backend):
    x, weights, biases, _ = PLAIN.tensors(HALF)
    assert torch.equal(PLAIN.ours(x[0], weights, biases, [x[0]]), PLAIN.ours(x[:1], weights, biases, [x[:1]])[0])


@pytest.mark.parametrize("case", [CASES[3], PLAIN], ids=str)
def test_gradients(case, backend):
    x, weights, biases, others = case.tensors(FLOAT)
    dy = torch.randn(case.stock(x, weights, biases, others).shape)
    gradients = []
    for call, dtype in ((case.ours, FLOAT), (case.stock, torch.float64), (case.stock, FLOAT)):
        x, *lists = ([t.detach().to(dtype).requires_grad_() for t in ts] for ts in ([x], weights, biases or (), others))
        y = call(x[0], lists[0], lists[1] or None, lists[2])
        gradients.append(torch.autograd.grad(y, [*x, *lists[0], *lists[1], *lists[2]], dy.to(dtype)))
        x = x[0]
    for ours, exact, theirs in zip(*gradients):
        assert_close(ours, exact, theirs)


def test_some_gradients_and_second_ones(backend):
    """Only what is asked for; and derivatives of derivatives, as of any convolution."""
    tensors = CASES[3].tensors(torch.float64)
    w = tensors[1][1].requires_grad_()
    first = []
    for call in (CASES[3].ours, CASES[3].stock):
        first += torch.autograd.grad(call(*tensors).square().sum(), w, create_graph=True)
    torch.testing.assert_close(*first)
    torch.testing.assert_close(*[torch.autograd.grad(d.square().sum(), w)[0] for d in first])


@pytest.mark.parametrize("where", ["cpu", pytest.param("host_cuda", marks=needs_host_cuda)])
def test_opcheck(where):
    # Each tensor costs seconds, and the interpreter more: what Triton returns is looked at above.
    x, w = torch.randn(1, 2, 4, 3, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    args = (x, [w, w.detach()[..., :1, :1]], [], [x.detach()], [1, 1, 0, 0], [1, 1, 1, 1], True, False)
    with host_cuda.host_cuda() if where == "host_cuda" else nullcontext():
        torch.library.opcheck(torch.ops.atrousops.conv_branches.default, args)


def test_transforms_autocast_and_graphs(backend):
    x, *rest = CASES[3].tensors(FLOAT)
    rest[-1] = []

    def call(x):
        return CASES[3].ours(x, *rest)

    expected = call(x)
    torch.testing.assert_close(torch.func.vmap(call)(x[None])[0], expected)
    with torch.autocast(x.device.type, BF16):
        assert call(x).dtype == BF16
    if backend == "cpu":
        assert_compiles(call, (x,))


# The ASPP of the DeepLab suite: one launch's predicted share of the time of four launches of the same kernel, and of
# the calls that it replaces, each the fastest of ours and cuDNN, with ReLUs and concatenation.
SHAPES = {
    "OS16, batch 16": ((16, 33, (6, 12, 18)), 0.85, 0.79),
    "OS16, batch 8": ((8, 33, (6, 12, 18)), 0.88, 0.77),
    "OS16, batch 1": ((1, 33, (6, 12, 18)), 0.77, 0.76),
    "OS8, batch 8": ((8, 65, (12, 24, 36)), 0.91, 0.81),
}


def arguments_of(size, rates, k=(256, 256, 256, 256), channels=2048):
    weights = [(k[0], channels, 1, 1), *((width, channels, 3, 3) for width in k[1:])]
    return weights, [(0, 0), *((r, r) for r in rates)], [(1, 1), *((r, r) for r in rates)]


def gpu(dtype=BF16, chip=host_cuda.H100, channels_last=True):
    multiprocessors, capability, shared = chip[:3]
    return devices.gpu("cuda", (multiprocessors, shared, capability), dtype, channels_last, True)


def plan(batch, size, rates, *, dtype=BF16, chip=host_cuda.H100, others=0, channels_last=True, channels=2048, **k):
    problems = problems_of((batch, channels, size, size), *arguments_of(size, rates, channels=channels, **k))
    device = gpu(dtype, chip, channels_last)
    return planner.plan_branches(problems, device, dtype.itemsize, channels_last, True, others)


def problems_of(shape, weights, padding, dilation):
    each = zip(weights, padding, dilation)
    return [planner.call_problem(planner.CallArguments("forward", shape, w, (1, 1), p, d)) for w, p, d in each]


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_planned(name):
    (batch, size, rates), of_launches, of_calls = SHAPES[name]
    one = plan(batch, size, rates)
    assert one.kernel == "conv_branches"
    apart = one.candidates[0].seconds
    assert one.seconds / apart == pytest.approx(of_calls, abs=0.006)
    assert f"predicted {one.seconds / apart:.2f} of their time one by one" in one.reason
    problems = problems_of((batch, 2048, size, size), *arguments_of(size, rates))
    launches = sum(planner.boxes([p], gpu(), 2).seconds for p in problems)
    assert one.boxes.seconds / launches == pytest.approx(of_launches, abs=0.006)
    # What stands beside them is copied either way; planes are brought into channels_last and back.
    beside = plan(batch, size, rates, others=256)
    assert beside.seconds - one.seconds == pytest.approx(beside.candidates[0].seconds - apart + 6e-6)
    assert plan(batch, size, rates, channels_last=False).candidates[1].seconds > one.seconds


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        ("no wgmma for the dtype", {"chip": host_cuda.A100}),
        ("no wgmma for the dtype", {"dtype": torch.float64}),
        ("equally many channels", {"k": (256, 256, 256, 128)}),
        ("2 to 6 convolutions", {"k": (256,)}),
        ("too few channels to fill a tile", {"k": (21,) * 4}),
        # Every tap lives and every launch has tiles enough: cuDNN is as fast on them.
        ("one launch would take 1.02 of their time", {"batch": 16, "size": 65, "rates": (1,), "k": (256, 256)}),
    ],
)
def test_what_runs_branch_by_branch(why, arguments):
    answer = plan(**{"batch": 8, "size": 33, "rates": (6, 12, 18), **arguments})
    assert answer.kernel == "branches"
    assert why in answer.reason
    assert why in answer.candidates[1].reason


def test_explanation(backend):
    x, weights, biases, others = CASES[0].tensors(HALF)
    (row,) = ao.explain(A.conv_branches, x, weights, biases, *CASES[0].around, "relu", others).rows
    assert (row.operator, row.kernel) == ("conv_branches", "conv_branches")
    assert "forced by backend" in row.reason or row.device == "cuda"
    assert row.flops == 2 * 2 * 72 * 40 * 40 * 28


def test_explanation_without_gpu():
    x, weights, biases, _ = CASES[0].tensors(FLOAT)
    (row,) = ao.explain(A.conv_branches, x, weights, biases, *CASES[0].around, "relu").rows
    assert (row.kernel, row.reason) == ("branches", "branch by branch: one launch is a GPU's")


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
def test_a_gpu_is_explained_without_one(monkeypatch):
    monkeypatch.setattr(libraries, "cuda", replace(libraries.cuda, problem=None))
    monkeypatch.setattr(backends, "_has_cuda_kernel", lambda op: True)

    on = {"device": "cuda", "dtype": BF16}

    def rows(size, others=0):
        with FakeTensorMode(), torch.no_grad():
            branches = [ao.FusedConv2d(256, 256, 3, padding=r, dilation=r) for r in (6, 12, 18)]
            for layer in branches:  # A torch without CUDA cannot fill what is there.
                layer.weight, layer.bias = (nn.Parameter(torch.empty_like(p, **on)) for p in layer.parameters())
            x = torch.empty(8, 256, size, size, **on).to(memory_format=torch.channels_last)
            return ao.explain(ao.FusedBranches(branches), x, *[x] * others).rows

    # Image-level features beside them.
    (row,) = rows(33, 1)
    assert (row.module, row.backend, row.operator, row.kernel) == ("FusedBranches", "cuda", *["conv_branches"] * 2)
    assert row.reason.startswith("one launch of 3 convolutions: predicted 0.")
    assert "  boxes       " in str(Explanation([row]))
    # 32 positions fill no tile.
    assert [r.operator for r in rows(2)] == ["conv2d"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.ones(2)}, "input must have 3 or 4 dimensions"),
        ({"input": torch.ones(1, 3, 6, 6)}, "input must have 2 channels"),
        ({"weights": []}, "weights must have at least one entry; got 0"),
        ({"weights": torch.ones(1, 2, 3, 3)}, "weights must be a list with one entry for each branch; got Tensor"),
        ({"weights": [torch.ones(4, 2, 3, 3).double()] * 2}, "weight must have input's dtype"),
        ({"biases": [torch.ones(4)]}, "biases must have 2 entries, as weights; got 1"),
        ({"biases": [torch.ones(3)] * 2}, r"bias must have shape \(4,\); got \(3,\)"),
        ({"padding": 1}, "padding must be a list with one entry for each branch; got int"),
        (
            {"padding": (1, 1)},
            r"padding must give every branch the size of the first, \(6, 6\); got \(4, 4\) of 1. Give",
        ),
        ({"dilation": (1, 0)}, "dilation must be positive"),
        (
            {"others": [torch.ones(1, 3, 6, 5)]},
            r"others must have the branches' batch and size, \(6, 6\); got \(1, 3, 6, 5\)",
        ),
        (
            {"others": [torch.ones(1, 3, 6, 6).double()]},
            "others must have input's dtype, torch.float32; got torch.float64",
        ),
        ({"activation": "silu"}, "activation must be 'relu' or None; got 'silu'"),
    ],
)
def test_rejects(change, message):
    arguments = {
        "input": torch.ones(1, 2, 6, 6),
        "weights": [torch.ones(4, 2, 3, 3)] * 2,
        "biases": None,
        "padding": (1, 2),
        "dilation": (1, 2),
    }
    with pytest.raises((ValueError, TypeError), match="conv_branches: " + message):
        A.conv_branches(**arguments | change)
