"""Our operators in PyTorch's own, against the operators: what ONNX files and exported programs compute."""

import itertools

import pytest
import torch
from torch import nn

import atrousops as ao
from atrousops.ops import decompose
from atrousops.ops._decompositions import DECOMPOSITIONS

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.atrousops, "conv"), reason="no library is built")


def both(name, *args):
    with torch.no_grad():
        found, expected = DECOMPOSITIONS[name](*args), getattr(torch.ops.atrousops, name).default(*args)
    return (found, expected) if isinstance(found, tuple) else ((found,), (expected,))


def check(name, *args):
    for found, expected in zip(*both(name, *args), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def draw(*shape):
    # Few values, so that windows have several maxima.
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).double()


# One, two and three axes; "same" pads an even extent more behind than before.
@pytest.mark.parametrize("padding", [lambda rank: [1] * rank, lambda rank: [1] * rank + [2] * rank])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(rank, padding):
    x, w, b = draw(2, 4, *[7, 6, 5][:rank]), draw(6, 2, *[3, 2, 2][:rank]), draw(6)
    check("conv", x, w, b, [2] * rank, padding(rank), [2] * rank, 2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose(rank):
    x, w = draw(2, 4, *[5, 4, 3][:rank]), draw(4, 3, *[3, 2, 2][:rank])
    check("conv_transpose", x, w, None, [3] * rank, [1] * rank, [2] * rank, [2] * rank, 2)


def test_conv_branches():
    x = draw(1, 3, 9, 8)
    check("conv_branches", x, [draw(4, 3, 3, 3), draw(2, 3, 1, 1)], [draw(4), draw(2)], [draw(1, 5, 9, 8)],
          [2, 2, 0, 0], [2, 2, 1, 1], True, False)  # fmt: skip


# Windows that overlap, hang over the edge, lie in padding; a map of one column.
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), False, (8, 6)),
    ((3, 3), (2, 2), (1, 1), True, (8, 7)),
    ((3, 2), (3, 2), (1, 0), False, (9, 6)),
    ((2, 1), (3, 1), (0, 0), True, (7, 1)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil", "size"), WINDOWS)
@pytest.mark.parametrize("name", ["max_pool", "max_pool_codes", "max_pool_values"])
def test_max_pool(name, kernel, stride, padding, ceil, size):
    check(name, draw(2, 3, *size), kernel, stride, padding, (1, 1), ceil)


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil", "size"), WINDOWS)
@pytest.mark.parametrize("codes", [False, True])
def test_max_unpool(codes, kernel, stride, padding, ceil, size):
    pool = torch.ops.atrousops.max_pool_codes if codes else torch.ops.atrousops.max_pool
    values, indices = pool(draw(2, 3, *size), kernel, stride, padding, (1, 1), ceil)
    # Other values than the maxima: of several windows for one position the last counts.
    check("max_unpool", values + draw(*values.shape), indices, size, kernel, stride, padding)


def test_pools_of_one_and_three_axes():
    for sizes, kernel in (((9,), (3,)), ((5, 6, 4), (2, 3, 2))):
        x = draw(1, 2, *sizes)
        window = (kernel, kernel, (0,) * len(sizes))
        check("max_pool_codes", x, *window, (1,) * len(sizes), False)
        values, codes = torch.ops.atrousops.max_pool_codes(x, *window, (1,) * len(sizes), False)
        check("max_unpool", values, codes, sizes, *window)


@pytest.mark.torchvision
@pytest.mark.parametrize(("ratio", "aligned"), list(itertools.product((-1, 2), (False, True))))
def test_roi_align(ratio, aligned):
    boxes = torch.tensor([[0, 1.5, 0.25, 6.0, 7.5], [1, -2, 3, 4, 12.0]], dtype=torch.float64)
    check("roi_align", draw(2, 3, 9, 8), boxes, 0.5, 3, 2, ratio, aligned)


@pytest.mark.torchvision
def test_roi_pool():
    boxes = torch.tensor([[0, 1, 0, 6, 7], [1, 2, 3, 5, 8]], dtype=torch.float64)
    (found, _), (expected, _) = both("roi_pool", draw(2, 3, 9, 8), boxes, 0.5, 3, 2)
    assert torch.equal(found, expected)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ao.AtrousConv2d(3, 4, 3, padding="same", dilation=2)
        self.pool = ao.nn.MaxPool2d(2, return_indices=True)
        self.unpool = ao.nn.MaxUnpool2d(2)

    def forward(self, x):
        y = self.conv(x)
        pooled, indices = self.pool(y)
        return self.unpool(pooled, indices, output_size=y.shape[-2:])


def test_a_program_in_pytorchs_operators_serves_all_sizes():
    torch.manual_seed(0)
    network = Network().eval()
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(network, (torch.randn(2, 3, 12, 10),), dynamic_shapes=(sizes,))
    assert any("atrousops" in str(node.target) for node in program.graph.nodes)
    program = decompose(program)
    assert not any("atrousops" in str(node.target) for node in program.graph.nodes)
    # An older PyTorch's own max_pool2d asks whether windows of two fill the map: the program is for even sizes then.
    older = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
    x = torch.randn(1, 3, 8 if older else 9, 14)
    torch.testing.assert_close(program.module()(x), network(x))
