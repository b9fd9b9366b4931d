"""Tensors of one call that lie on different devices are refused before a kernel reads an address of another device."""

import pytest
import torch

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError

X, W, B = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.randn(4)
BOXES = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
SCORES, FEATURES = torch.randn(1, 2, 16), torch.randn(1, 2, 16)
LATTICE = A.permutohedral_lattice(FEATURES)
INDICES = torch.arange(16).view(1, 1, 4, 4).expand(1, 4, 4, 4).contiguous()
CALLS = {
    "conv2d": (lambda t: A.conv2d(**t), {"input": X, "weight": W, "bias": B}),
    "conv_transpose2d": (lambda t: A.conv_transpose2d(**t), {"input": X, "weight": W, "bias": B}),
    "conv_branches": (
        lambda t: A.conv_branches(
            t["input"], [t["weight"]], [t["bias"]], padding=[1], dilation=[1], others=[t["others"]]
        ),
        {"input": X, "weight": W, "bias": B, "others": X},
    ),
    "context_module": (
        lambda t: A.context_module(t["input"], [t["weights"]], [t["biases"]], dilation=[1]),
        {"input": X, "weights": W, "biases": B},
    ),
    "max_unpool2d": (
        lambda t: A.max_unpool2d(**t, kernel_size=2),
        {"input": torch.randn(1, 4, 4, 4), "indices": INDICES},
    ),
    "roi_align": (lambda t: A.roi_align(**t, output_size=2), {"input": X, "boxes": BOXES}),
    "roi_pool": (lambda t: A.roi_pool(**t, output_size=2), {"input": X, "boxes": BOXES}),
    "permutohedral_filter": (lambda t: A.permutohedral_filter(**t), {"values": SCORES, "features": FEATURES}),
    "mean_field": (
        lambda t: A.mean_field(t["scores"], [LATTICE], [t["compatibilities"]], iterations=1),
        {"scores": SCORES, "compatibilities": torch.ones(2, 2)},
    ),
}
CASES = [(op, name) for op, (_, tensors) in CALLS.items() for name in tensors]


@pytest.mark.parametrize(("op", "name"), CASES)
def test_another_device(op, name):
    call, tensors = CALLS[op]
    call(tensors)
    with pytest.raises(ArgumentError, match=rf"^{op}: \w+ must be on (cpu|meta), as"):
        call(tensors | {name: tensors[name].to("meta")})


@pytest.mark.parametrize("part", LATTICE._fields)
def test_every_part_of_a_lattice(part):
    lattice = LATTICE._replace(**{part: getattr(LATTICE, part).to("meta")})
    with pytest.raises(ArgumentError, match=r"^permutohedral_filter: features must be on cpu, as values"):
        A.permutohedral_filter(SCORES, lattice)
    with pytest.raises(ArgumentError, match=r"^mean_field: lattices must be on cpu, as scores"):
        A.mean_field(SCORES, [lattice], [torch.ones(2, 2)], iterations=1)


def test_a_crf_on_two_devices():
    crf = ao.DenseCRF(iterations=1)
    with pytest.raises(ArgumentError, match="image must be on cpu"):
        crf(torch.randn(1, 2, 8, 8), torch.zeros(1, 3, 8, 8, device="meta"))
