"""Our operators on device="cuda", from Python down to the kernels' PTX, against the CPU's kernels."""

import pytest
import samples
import torch
from emulated_cases import assert_as_the_cpu
from every_operator import CASES, prepared
from oracle import assert_close

import atrousops as ao
import atrousops.functional as A

pytestmark = pytest.mark.gpu

# Their results are copies of inputs or sums in a fixed order: the same bits on the CPU.
SAME_BITS = [name for name in CASES if name.startswith("max_")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SAME_BITS)
def test_pooling_has_the_bits_of_the_cpu(case, dtype):
    with torch.device("cuda"), ao.backend("cuda"):
        ours = prepared(CASES[case], dtype, False).bits()
    with ao.backend("cpu"):
        expected = prepared(CASES[case], dtype, False).bits()
    for a, b in zip(ours, expected, strict=True):
        assert a.is_cuda
        assert torch.equal(a.cpu(), b)


def test_convolution_in_fp32():
    x, w = torch.randn(2, 5, 13, 11), torch.randn(7, 5, 3, 3)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), None, 1, 2, 2)
    with ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours = A.conv2d(x.cuda(), w.cuda(), None, 1, 2, 2).cpu()
    assert_close(ours, exact, torch.nn.functional.conv2d(x, w, None, 1, 2, 2))


def test_convolution_in_fp64():
    # Whole numbers, whose sums are exact in any order.
    x, w = (torch.randint(-9, 10, size).double() for size in ((2, 5, 13, 11), (7, 5, 3, 3)))
    with ao.backend("cuda"):
        ours = A.conv2d(x.cuda(), w.cuda(), None, 1, 2, 2).cpu()
    assert torch.equal(ours, torch.nn.functional.conv2d(x, w, None, 1, 2, 2))


# The numbering of a lattice is free; its filters are compared.
COMPARED = [name for name in CASES if name != "permutohedral_lattice"]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", COMPARED)
def test_forward_and_backward(case, dtype, channels_last):
    assert_as_the_cpu(lambda d: prepared(CASES[case], d, channels_last, dtype).bits(), dtype)


# Whole vectors of channels, which the samples above are too narrow for.
WIDE = {
    "max_pool2d": ("max_pool2d", lambda: ((samples.rand(1, 32, 9, 8), 3, 2, 1), {})),
    "max_pool2d with indices": ("max_pool2d", lambda: ((samples.rand(1, 32, 8, 8), 2), {"return_indices": True})),
    "roi_align": ("roi_align", lambda: ((samples.rand(1, 32, 12, 13), samples.boxes(5, 12.0), (3, 3)), {})),
    "roi_pool": ("roi_pool", lambda: ((samples.rand(1, 32, 12, 13), samples.boxes(5, 12.0), (3, 3)), {})),
    "permutohedral_filter": (
        "permutohedral_filter",
        lambda: ((samples.rand(1, 21, 12, 14), samples.rand(1, 5, 12, 14) * 20), {"normalize": "symmetric"}),
    ),
    "conv2d in groups": (
        "conv2d",
        lambda: ((samples.rand(1, 32, 9, 8), samples.rand(32, 8, 3, 3)), {"padding": 2, "dilation": 2, "groups": 4}),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", WIDE)
def test_many_channels(case, dtype):
    assert_as_the_cpu(lambda d: prepared(WIDE[case], d, True, dtype).bits(), dtype)


def second_derivatives(case: str, dtype: torch.dtype, rounded: torch.dtype) -> list[torch.Tensor]:
    """Of the outputs' sum of squares: the gradient of its gradient's sum of squares."""
    call = prepared(CASES[case], dtype, False, rounded)
    value = sum((y.square().sum() for y in call.outputs() if y.requires_grad), torch.zeros((), dtype=dtype))
    first = torch.autograd.grad(value, call.leaves, create_graph=True, allow_unused=True)
    again = sum((g.square().sum() for g in first if g is not None), torch.zeros((), dtype=dtype))
    found = torch.autograd.grad(again, call.leaves, allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", COMPARED)
def test_second_derivatives(case, dtype):
    assert_as_the_cpu(lambda d: second_derivatives(case, d, dtype), dtype)
