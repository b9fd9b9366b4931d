"""Clusters under host_cuda: distributed shared memory, multicast, remote barriers; and the roles of warpgroups."""

import re
from functools import partial

import host_cuda
import pytest
import torch

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

SEEDS = range(4)
NOTHING = "^$"
# The words by which each fault of csrc/host_cuda/test_cluster.cpp shows, unless by a wrong result.
EXCHANGE = {
    "no_sync_at_begin": "st.shared::cluster: 16 bytes at .* are not within one array of the block of rank 1",
    "no_sync_before_read": NOTHING,
    "ends_early": "the block of rank 0 has ended",
    "rank_too_high": "mapa: the cluster has no block of that rank",
    "waits_without_arrival": "barrier.cluster.wait: without barrier.cluster.arrive",
}
PUSH = {
    "no_wait": "copies under way that nobody waited for",
    "no_fence": "st.async: no fence.mbarrier_init after the mbarrier.init",
    "fewer_bytes": "copies under way that nobody waited for",
    "own_barrier": "st.async: the barrier has to be in the block that is stored to",
    "crooked": "st.async.v4: an address not aligned to 16",
}
MULTICAST = {
    "own_bytes_only": "bytes to come",
    "no_fence": "no fence.mbarrier_init after",
    "overwrites_peer": "arrivals at an mbarrier|bytes to come|no thread can go on",
    "no_drain": "the block of rank [01] has ended",
}
ROLES = {
    "too_many_registers": "setmaxnreg: 520 registers in all warpgroups' threads, and at launch 504",
    "warps_differ": "setmaxnreg: the warps of a warpgroup differ",
    "other_count": "others came to barrier 2 for another number of threads",
    "no_barrier": NOTHING,
}


def outcome(op: str, x: torch.Tensor, right: torch.Tensor, *arguments: int) -> str:
    """ "right", "wrong", or an error's words."""
    host_cuda.load()
    out = torch.full(right.shape, -1).to(right.dtype)
    try:
        getattr(torch.ops.atrousops_host_cuda, op)(x, out, *arguments)
    except RuntimeError as error:
        return str(error)
    return "right" if torch.equal(out, right) else "wrong"


def blocks(size: int) -> torch.Tensor:
    return torch.arange(16 * 32 * 4, dtype=torch.int32).view(16 // size, size, 32, 4)


def exchange(size: int, fault: int = 0) -> str:
    # Rank r gets from rank r - 1, and its neighbour r + 1 shows it, turned round.
    return outcome("test_cluster_exchange", blocks(size), blocks(size).roll(2, 1).flip(2), size, fault)


def push(size: int, fault: int = 0) -> str:
    return outcome("test_cluster_push", blocks(size), blocks(size).roll(1, 1).flip(2), size, fault)


def multicast(fault: int = 0, rounds: int = 4) -> str:
    x = torch.arange(rounds * 16 * 64, dtype=torch.int16).view(torch.bfloat16).view(-1, 64)
    tiles = x.view(torch.int16).view(1, rounds, 16, 64)
    return outcome("test_cluster_multicast", x, tiles.expand(2, -1, -1, -1).contiguous(), fault)


def roles(fault: int = 0) -> str:
    x = torch.arange(384.0)
    right = x[128:].roll(-128) + x[:128].repeat(2)
    return outcome("test_roles", x, right, fault)


SOUND = {f"exchange of {size}": partial(exchange, size) for size in (1, 2, 4, 8, 16)} | {
    "push to the next of sixteen": partial(push, 16),
    "multicast": multicast,
    "roles": roles,
}
# A kernel that takes the number of its fault, and the words of that.
FAULTS = {
    name: (run, number, words)
    for run, faults in (
        (partial(exchange, 4), EXCHANGE),
        (partial(push, 4), PUSH),
        (multicast, MULTICAST),
        (roles, ROLES),
    )
    for number, (name, words) in enumerate(faults.items(), start=1)
}
# Right where the order happens to be: found by some of the orders.
RACES = ("overwrites_peer", "no_barrier")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SOUND)
def test_sound_kernels_pass_in_any_order(name, seed):
    with host_cuda.order(seed):
        assert SOUND[name]() == "right"


def test_a_grid_is_whole_clusters():
    x = torch.zeros(3 * 128, dtype=torch.int32)
    assert "clusters of 2 blocks: 1 to 16 that divide the grid" in outcome("test_cluster_exchange", x, x, 2, 0)


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in RACES])
def test_faults_are_found(name):
    run, number, words = FAULTS[name]
    assert re.search(f"^wrong$|{words}", run(number))
    assert run() == "right"


@pytest.mark.parametrize("name", RACES)
def test_races_are_found_in_some_order(name):
    run, number, words = FAULTS[name]
    outcomes = []
    for seed in range(8):
        with host_cuda.order(seed):
            outcomes.append(run(number))
    broken = [found for found in outcomes if found != "right"]
    assert broken
    assert all(re.search(f"^wrong$|{words}", found) for found in broken)
