"""Every operator, forward and backward, gives the same bits in whatever order threads and blocks run.

An order in which a barrier is needed that is not there gives other bits, or NaN from shared memory not yet written.
"""

import host_cuda
import pytest
import samples
import torch

import atrousops.functional as A

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

SEEDS = (1, 2)  # against ascending order
WITHOUT_GRADIENT = ("flush_subnormals", "permutohedral_lattice")


def wide(groups: int) -> tuple[tuple, dict]:
    """Enough channels for tensor cores, and rows of whole vectors."""
    x = torch.linspace(-1, 1, 2 * 32 * 7 * 6).view(2, 32, 7, 6)
    w = torch.linspace(-1, 1, 16 * 32 * 9).view(16, 32, 3, 3) if groups == 1 else torch.ones(32, 1, 3, 3)
    return (x, w), {"padding": 2, "dilation": 2, "groups": groups}


CASES = {
    **{name: (name, sample) for name, sample in samples.FUNCTIONS.items()},
    "conv2d of many channels": ("conv2d", lambda: wide(1)),
    "conv2d depthwise": ("conv2d", lambda: wide(32)),
}


def prepared(value, dtype, channels_last: bool, leaves: list):
    """The arguments, maps of features in that dtype and format and with gradients, the rest as it is."""
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(prepared(v, dtype, channels_last, leaves) for v in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() < 3:
        return value
    value = value.to(dtype)
    if channels_last and value.dim() == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    leaves.append(value.detach().requires_grad_())
    return leaves[-1]


def results(case: str, dtype, channels_last: bool, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, with gradients wanted and without, and gradients."""
    name, sample = CASES[case]
    with host_cuda.host_cuda(), host_cuda.order(seed):
        args, kwargs = sample()
        leaves: list[torch.Tensor] = []
        args = prepared(args, dtype, channels_last, leaves)
        outputs = samples.tensors(getattr(A, name)(*args, **kwargs))
        with torch.no_grad():
            alone = samples.tensors(getattr(A, name)(*args, **kwargs))
        ends = [y for y in outputs if y.requires_grad]
        upstream = [torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype) for y in ends]
        gradients = torch.autograd.grad(ends, leaves, upstream, allow_unused=True) if ends else ()
    return [y.detach() for y in (*outputs, *alone)], [g for g in gradients if g is not None]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_any_order_gives_the_same_bits(case, dtype, channels_last):
    outputs, gradients = results(case, dtype, channels_last, 0)
    assert bool(gradients) == (case not in WITHOUT_GRADIENT)
    ascending = [*outputs, *gradients]
    assert not any(y.isnan().any() for y in ascending)
    for seed in SEEDS:
        outputs, gradients = results(case, dtype, channels_last, seed)
        assert all(torch.equal(a, b) for a, b in zip(ascending, [*outputs, *gradients], strict=True))
