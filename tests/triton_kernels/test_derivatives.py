"""First and second derivatives of the Triton kernels, interpreted, against differences in fp64."""

import pytest
import samples
import torch
import torch.nn.functional as F
from test_conv_autograd import CASES as CONVOLUTIONS
from test_conv_autograd import double_inputs
from torch.autograd import gradcheck, gradgradcheck

import atrousops as ao
import atrousops.functional as A


def doubles(*size):
    """Values that differ by more than a difference's step, so that no maximum changes hands."""
    count = torch.Size(size).numel()
    return torch.randperm(count).double().view(size).div(count).requires_grad_()


def unpool(x):
    _, indices = F.max_pool2d(x.detach(), 2, return_indices=True)
    return A.max_unpool2d(x[..., ::2, ::2], indices, 2)


LATTICE_FEATURES = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
CASES = {
    **{name: (case[0], lambda name=name: double_inputs(name)) for name, case in CONVOLUTIONS.items()},
    "max_pool": (lambda x: A.max_pool2d(x, 3, 2, 1), lambda: [doubles(1, 2, 5, 4)]),
    "max_unpool": (unpool, lambda: [doubles(1, 2, 4, 6)]),
    "roi_align": (lambda x: A.roi_align(x, samples.boxes().double(), 2, 0.5), lambda: [doubles(2, 2, 4, 5)]),
    "permutohedral": (
        lambda v: A.permutohedral_filter(v, A.permutohedral_lattice(LATTICE_FEATURES), "symmetric"),
        lambda: [doubles(1, 2, 3, 4)],
    ),
}


@pytest.mark.triton
@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_triton(case):
    f, inputs = CASES[case][0], CASES[case][1]()
    with ao.backend("triton"):
        assert gradcheck(f, inputs, fast_mode=True)
        assert gradgradcheck(f, inputs, fast_mode=True)
