"""Our operators on device="cuda", from Python down to the kernels' PTX, against the CPU's kernels."""

import pytest
import torch
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


def test_roi_align_forward_and_backward():
    x = torch.randn(2, 3, 16, 15)
    boxes = torch.tensor([[0, 1.5, 2.0, 9.0, 12.5], [1, 0.0, 0.0, 14.0, 7.25]])
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.clone().to(device).requires_grad_()
        with ao.backend(device):
            y = A.roi_align(leaf, boxes.to(device), 4, 0.5, 2, True)
            y.backward(torch.ones_like(y))
        results.append((y.detach().cpu(), leaf.grad.cpu()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
