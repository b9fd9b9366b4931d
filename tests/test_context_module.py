"""context_module against the same layers in fp64, wherever it runs: in one launch, or layer by layer."""

import math
from dataclasses import dataclass

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import choice, libraries
from atrousops.nn import ContextModule

PAPER = (1, 1, 2, 4, 8, 16, 1, 1)
KERNEL = "context_module_kernel"


@dataclass(frozen=True)
class Case:
    """A stack; kernels of 3 but where `pointwise` says which are 1."""

    why: str
    size: tuple[int, int, int, int]
    dilation: tuple[int, ...]
    pointwise: tuple[int, ...] = ()
    channels_last: bool = False
    bias: bool = True

    def __str__(self):
        return self.why.replace(" ", "-")

    def tensors(self, dtype):
        """Input, weights and biases; sums keep their size from layer to layer."""
        n, c, h, w = self.size
        kernels = [1 if i in self.pointwise else 3 for i in range(len(self.dilation))]
        format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=format)
        weights = [(torch.randn(c, c, k, k) * (2 / c) ** 0.5 / k).to(dtype, memory_format=format) for k in kernels]
        return x, weights, [torch.randn(c).to(dtype) for _ in kernels] if self.bias else None


CASES = (
    # Two blocks have no row, dilation 16 reads rows of blocks that are not neighbours, and some that do not exist.
    Case("the paper's, ragged rows", (1, 21, 17, 11), PAPER, (7,)),
    Case("more rows of a block than the dilation", (1, 3, 34, 5), (1, 3, 4)),
    Case("one chunk of channels and no bias", (2, 8, 9, 7), (2, 1), (0,), True, False),
    Case("two chunks of channels", (1, 11, 8, 9), (5, 2), (), True),
    Case("four chunks of channels", (1, 29, 5, 6), (2, 1, 1), (1,)),
    Case("one row, one column", (1, 5, 1, 1), (1, 16), (), True),
    Case("a single layer", (3, 4, 3, 3), (1,), (0,)),
)


def stock(x, weights, biases, dilation):
    for i, (w, d) in enumerate(zip(weights, dilation)):
        x = F.conv2d(
            F.relu(x) if i else x, w, biases[i] if biases else None, padding=d * (w.shape[-1] // 2), dilation=d
        )
    return x


def both(case, x, weights, biases):
    """PyTorch's result at the dtype, and in fp64."""
    wide = [x.double(), [w.double() for w in weights], [b.double() for b in biases] if biases else None]
    return stock(x, weights, biases, case.dilation), stock(*wide, case.dilation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_in_fp64(case, dtype, backend):
    x, weights, biases = case.tensors(dtype)
    y = A.context_module(x, weights, biases, case.dilation)
    theirs, exact = both(case, x, weights, biases)
    assert_close(y, exact, theirs)
    assert y.is_contiguous() == x.is_contiguous()


def test_fp32_runs_layer_by_layer(backend):
    x, weights, biases = CASES[3].tensors(torch.float32)
    theirs, exact = both(CASES[3], x, weights, biases)
    assert_close(A.context_module(x, weights, biases, CASES[3].dilation), exact, theirs)


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.parametrize(
    ("blocks", "capability", "shared", "cluster", "size"),
    [
        (132, 90, 227 << 10, 16, (1, 6, 64, 24)),
        (2, 90, 11_000, 2, (2, 6, 19, 6)),
        (2, 90, 227 << 10, 1, (2, 6, 19, 6)),
        (132, 80, 227 << 10, 0, (2, 6, 19, 6)),
    ],
)
def test_clusters_of_every_size(blocks, capability, shared, cluster, size):
    """In whatever order threads run; without clusters the layers do it."""
    case = Case("", size, (1, 7, 1), (2,))
    x, weights, biases = case.tensors(torch.float16)
    results, before = [], host_cuda.runs(KERNEL)
    with host_cuda.host_cuda(), host_cuda.device(blocks, capability, shared, 228 << 10, 50 << 20):
        for seed in (0, 1, 2):
            with host_cuda.order(seed):
                results.append(A.context_module(x, weights, biases, case.dilation))
    theirs, exact = both(case, x, weights, biases)
    assert_close(results[0], exact, theirs)
    assert all(torch.equal(results[0], y) for y in results)
    assert host_cuda.runs(KERNEL) - before == (3 if cluster else 0)
    if libraries.planner is not None:
        plan = libraries.planner.plan_context(*case.size, [1, 7, 0], 2, blocks, shared, capability, lambda: math.inf)
        assert plan[0] == cluster


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.parametrize(("largest", "runs"), [(8, 1), (4, 0)])
def test_a_cluster_that_the_device_has_no_room_for(largest, runs):
    """Sixteen multiprocessors may not lie together, and a slice of a GPU may lack eight: the layers run one by one."""
    case = Case("", (1, 6, 64, 24), (1, 7, 1), (2,))
    x, weights, biases = case.tensors(torch.float16)
    before = host_cuda.runs(KERNEL)
    with host_cuda.host_cuda(), host_cuda.largest_cluster(largest):
        y = A.context_module(x, weights, biases, case.dilation)
    theirs, exact = both(case, x, weights, biases)
    assert_close(y, exact, theirs)
    assert host_cuda.runs(KERNEL) == before + runs


def plan(size, dilation=PAPER, kernels=(3,) * 7 + (1,), dtype=torch.bfloat16, gpu=host_cuda.H100):
    return choice.plan_context(size, dilation, kernels, dtype, False, (gpu[0], gpu[2], gpu[1]))


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
def test_what_is_planned():
    one = plan((1, 21, 64, 64))
    # By hand: 4 rows and 4 from either side of two maps, a pixel of zeros; two barriers; of each layer, where the taps
    # of 4 rows read and who reads them, 24 biases, and a sixteenth of the weights; and two layers' weights.
    assert (one.cluster, one.rows) == (16, 4)
    weights = 14 * 3 * 256
    of_layer = 4 * (16 + 16) + 24 * 4 + weights // 16
    assert one.shared_memory == 2 * (4 + 4 + 4) * 64 * 48 + 48 + 16 + 8 * of_layer + 2 * weights
    # The aim of PERFORMANCE for this module: five times as fast as the layers.
    assert one.seconds < one.by_layers / 5
    # Many images: no block has to wait for another's rows, as far as they fit.
    assert plan((1024, 21, 32, 32)).cluster < 8
    assert plan((1, 21, 66, 66)).cluster == 16


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        ("capability 9.0", {"gpu": host_cuda.A100}),
        ("16-bit", {"dtype": torch.float32}),
        ("shared memory a block", {"size": (1, 21, 256, 256)}),
        ("32 channels", {"size": (1, 33, 64, 64)}),
        ("8 layers", {"dilation": (*PAPER, 1), "kernels": (3,) * 9}),
    ],
)
def test_what_is_left_to_the_layers(why, arguments):
    answer = plan(**{"size": (1, 21, 64, 64), **arguments})
    assert answer.cluster == 0
    assert why in answer.reason


def test_module_and_explanation(backend):
    module, x = ContextModule(5).to(torch.float16), torch.rand(1, 5, 9, 8, dtype=torch.float16)
    for layer in module.layers:
        torch.nn.init.normal_(layer.weight, std=0.2)
    expected = module(x)  # by layers, as gradients are wanted
    assert expected.requires_grad
    with torch.no_grad():
        explained = ao.explain(module, x)
        y = module(x)
        one = module(x[0])
    assert [row.kernel for row in explained.rows] == ["context_module"]
    torch.testing.assert_close(y, expected.detach(), rtol=1e-2, atol=1e-2)
    assert torch.equal(one, y[0])


def test_without_gpu_the_module_is_its_layers():
    module, x = ContextModule(3), torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert [row.operator for row in ao.explain(module, x).rows] == ["conv2d"] * 8
        weights, biases = [layer.weight for layer in module.layers], [layer.bias for layer in module.layers]
        (row,) = ao.explain(A.context_module, x, weights, biases, PAPER).rows
    assert row.kernel == "layers"


def test_opcheck(backend):
    x, weights, biases = CASES[1].tensors(torch.float16)
    torch.library.opcheck(torch.ops.atrousops.context_module.default, (x, weights, biases, CASES[1].dilation))


def test_gradients_by_layers(backend):
    x, weights, biases = CASES[2].tensors(torch.float32)
    gradients = []
    for call, dtype in ((A.context_module, torch.float32), (stock, torch.float64), (stock, torch.float32)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *weights)]
        y = call(leaves[0], leaves[1:], biases, CASES[2].dilation)
        gradients.append(torch.autograd.grad(y.square().sum(), leaves))
    for ours, exact, theirs in zip(*gradients):
        assert_close(ours, exact, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.ones(2)}, "input must be .N, C, H, W."),
        ({"input": torch.ones(1, 2, 4, 4, dtype=torch.int64)}, "input must be a floating tensor"),
        ({"weights": [torch.ones(2, 2, 5, 5)]}, "weights must be .2, 2, 3, 3. or .2, 2, 1, 1."),
        ({"weights": [torch.ones(2, 2, 3, 3).double()]}, "weights and biases must be torch.float32"),
        ({"biases": []}, "biases must be None or have one entry for each weight"),
        ({"biases": [torch.ones(3)]}, "biases must be .2,., as input has 2 channels"),
        ({"dilation": (1, 2)}, "dilation must have one entry for each weight"),
        ({"dilation": (0,)}, "dilation must be at least 1"),
    ],
)
def test_rejects(change, message):
    arguments = {"input": torch.ones(1, 2, 4, 4), "weights": [torch.ones(2, 2, 3, 3)], "biases": None, "dilation": (1,)}
    with pytest.raises((ValueError, TypeError), match=message):
        A.context_module(**arguments | change)
