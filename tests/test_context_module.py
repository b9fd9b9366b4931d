"""context_module against the same layers in fp64, wherever it runs: in one launch, or layer by layer."""

from dataclasses import dataclass

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close

import atrousops as ao
import atrousops.functional as A
from atrousops import _library, _plan_context
from atrousops.nn import ContextModule

PAPER = (1, 1, 2, 4, 8, 16, 1, 1)


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
    assert y.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_types_run_layer_by_layer(dtype, backend):
    x, weights, biases = CASES[3].tensors(dtype)
    theirs, exact = both(CASES[3], x, weights, biases)
    assert_close(A.context_module(x, weights, biases, CASES[3].dilation), exact, theirs)


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.parametrize("shared", [227 << 10, 30_000, 20_000])
def test_clusters_of_every_size(shared):
    """In whatever order threads run; the least shared memory leaves it to the layers."""
    case = Case("", (2, 6, 19, 6), (1, 7, 1), (2,))
    x, weights, biases = case.tensors(torch.float16)
    results, before = [], runs()
    for seed in (0, 1, 2):
        for blocks in (132, 2):
            with (
                host_cuda.host_cuda(),
                host_cuda.order(seed),
                host_cuda.device(blocks, 90, shared, 228 << 10, 50 << 20),
            ):
                results.append(A.context_module(x, weights, biases, case.dilation))
    theirs, exact = both(case, x, weights, biases)
    assert_close(results[0], exact, theirs)
    assert all(torch.equal(results[0], y) for y in results)
    assert runs() - before == (0 if shared == 20_000 else 6)


def runs() -> int:
    """Launches so far."""
    return sum(c.runs for c in host_cuda.coverage() if "context_module_kernel" in c.name)
