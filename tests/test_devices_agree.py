"""Tensors of one call that lie on different devices are refused before a kernel reads an address of another device."""

import itertools

import pytest
import samples
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError

SCORES, FEATURES = torch.randn(1, 2, 16), torch.randn(1, 2, 16)
LATTICE = A.permutohedral_lattice(FEATURES)
X, W, B = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.randn(4)
# The samples, with biases.
CALLS = samples.FUNCTIONS | {
    "conv2d": lambda: ((X, W, B), {}),
    "conv_transpose2d": lambda: ((X, W, B), {}),
    "conv_branches": lambda: ((X, [W], [B], [1], [1], None, [X]), {}),
    "context_module": lambda: ((X, [W], [B], [1]), {}),
}
# PyTorch's convolutions of an input on meta need only the shapes of the weights.
SHAPES_ONLY = {(f"{op}{rank}d", 0) for op in ("conv", "conv_transpose") for rank in (1, 2, 3)}
COUNTS = {name: len(samples.tensors(sample()[0])) for name, sample in CALLS.items()}


@pytest.mark.parametrize(("name", "place"), [(name, i) for name, n in COUNTS.items() for i in range(n) if n > 1])
def test_another_device(name, place):
    args, kwargs = CALLS[name]()
    places = itertools.count()
    args = tree_map_only(torch.Tensor, lambda t: t.to("meta") if next(places) == place else t, args)
    if (name, place) in SHAPES_ONLY:
        expected = getattr(F, name)(*args, **kwargs)
        found = getattr(A, name)(*args, **kwargs)
        assert (found.device, found.shape) == (expected.device, expected.shape)
        return
    with pytest.raises(ArgumentError, match=rf"^{name}: \w+ must be on (cpu|meta), as"):
        getattr(A, name)(*args, **kwargs)


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
