"""Kernels broken on purpose: each fault must be found, and the sound kernel must pass in every order of its threads."""

import host_cuda
import pytest
import torch

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

SEEDS = range(6)
# How each fault of csrc/host_cuda/test_faults.cpp shows: as a wrong result, or as an error with these words.
FAULTS = {
    "no_barrier_after_write": None,
    "no_barrier_before_overwrite": None,
    "tile_one_too_long": "wrote outside the arrays",
    "tile_read_one_too_far": None,
    "no_wait": None,
    "waits_for_too_few": None,
    "wrong_fragment": None,
    "barrier_in_a_branch": "__syncthreads at test_faults.cpp:[0-9]+, while thread .* waits in another",
    "arena_too_small": "request 0 ends at byte 768, but the launch asked for 764",
    "shuffle_in_a_branch": "meets other lanes of the warp in __s",
}


def run(fault: int) -> bool:
    """Whether the result is right."""
    host_cuda.load()
    x = torch.arange(1.0, 193.0)
    turned = x.reshape(3, 64).flip(1).flatten()
    expected = (turned, turned, x[:128].reshape(16, 8).flip(1).flatten(), x[:32].reshape(16, 2).flip(1).flatten())
    return torch.equal(torch.ops.atrousops_host_cuda.test_faults(x, fault), torch.cat(expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_sound_kernels_pass_in_any_order(seed):
    with host_cuda.order(seed):
        assert run(0)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    """In ascending order alone: no luck is needed."""
    fault, words = list(FAULTS).index(name) + 1, FAULTS[name]
    if words is None:
        assert not run(fault)
        return
    with pytest.raises(RuntimeError, match=words) as error:
        run(fault)
    assert "_kernel<" in str(error.value)
    assert "grid (1, 1, 1)" in str(error.value)
    assert run(0)


@pytest.mark.parametrize("name", [name for name, words in FAULTS.items() if words is None])
def test_faults_are_found_in_other_orders_too(name):
    found = 0
    for seed in SEEDS:
        with host_cuda.order(seed):
            found += not run(list(FAULTS).index(name) + 1)
    assert found == len(SEEDS)
