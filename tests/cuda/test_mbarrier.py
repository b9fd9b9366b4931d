"""mbarrier's host body: phases, parities and counts by hand from the PTX manual, and misuse that must be found."""

import re

import host_cuda
import pytest
import torch

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

STEPS = ["init", "inval", "arrive", "expect", "arrive_expect", "try_wait", "wait", "store"]
MOST = 2**20 - 1


def script(*steps: tuple[str, int]) -> list[int]:
    """What try_wait said to one thread that does these steps."""
    host_cuda.load()
    pairs = torch.tensor([[STEPS.index(name), value] for name, value in steps])
    seen = torch.full((len(steps),), -1)
    torch.ops.atrousops_host_cuda.test_mbarrier_script(pairs, seen)
    return [v for v in seen.tolist() if v >= 0]


def test_a_fresh_barrier_is_in_phase_0_and_the_phase_before_has_ended():
    assert script(("init", 1), ("try_wait", 0), ("try_wait", 1)) == [0, 1]


def test_parities_follow_the_phases():
    steps, right = [("init", 2)], []
    for phase in range(5):
        # One arrival of two: the phase with parity phase % 2 is the current one, the other has ended.
        steps += [("arrive", 1), ("try_wait", phase % 2), ("try_wait", 1 - phase % 2)]
        steps += [("arrive", 1), ("try_wait", phase % 2), ("wait", phase % 2)]
        right += [0, 1, 1]
    assert script(*steps) == right


def test_an_arrival_may_count_for_several():
    assert script(("init", 7), ("arrive", 6), ("try_wait", 0), ("arrive", 1), ("try_wait", 0)) == [0, 1]


def test_expected_bytes_keep_a_phase_open():
    assert script(("init", 1), ("expect", 16), ("arrive", 1), ("try_wait", 0)) == [0]
    assert script(("init", 1), ("arrive_expect", 16), ("try_wait", 0)) == [0]
    assert script(("init", 1), ("arrive_expect", 0), ("try_wait", 0)) == [1]


def test_a_barrier_may_be_made_anew_after_inval():
    assert script(("init", 1), ("arrive", 1), ("inval", 0), ("init", 2), ("arrive", 1), ("try_wait", 0)) == [0]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([("arrive", 1)], "mbarrier.arrive: this mbarrier is not initialised"),
        ([("init", 2), ("inval", 0), ("wait", 1)], "this mbarrier is not initialised"),
        ([("init", 1), ("init", 1)], "is in use; mbarrier.inval"),
        ([("init", 0)], "a count of 0; 1 to 1048575"),
        ([("init", MOST + 1)], "a count of 1048576; 1 to 1048575"),
        ([("init", 2), ("arrive", 3)], "3 arrivals at an mbarrier of 2 whose phase waits for 2"),
        ([("init", 2), ("arrive_expect", 4), ("arrive", 2)], "2 arrivals at an mbarrier of 2 whose phase waits for 1"),
        ([("init", 1), ("arrive_expect", 4), ("arrive", 1)], "1 arrivals at an mbarrier of 1 whose phase waits for 0"),
        ([("init", 1), ("expect", MOST), ("expect", 1)], "1048576 bytes to come, and an mbarrier counts to 1048575"),
        ([("init", 1), ("wait", 2)], "a parity is 0 or 1"),
        ([("init", 1), ("store", 3), ("arrive", 1)], "somebody wrote over this mbarrier"),
        (
            [("init", 3), ("arrive", 1), ("expect", 48), ("wait", 0)],
            r"no thread can go on: thread \(0, 0, 0\) in mbarrier.try_wait for parity 0 of mbarrier \d+ at "
            r"test_mbarrier.cpp:\d+; mbarrier \d+ is in phase 0, 2 of 3 arrivals and 48 bytes to come",
        ),
        # A loop around try_wait is no hang either.
        ([("init", 1), ("try_wait", 0), ("try_wait", 0)], "no thread can go on: .* in mbarrier.try_wait for parity 0"),
    ],
)
def test_misuse(steps, words):
    with pytest.raises(RuntimeError, match=words):
        script(*steps)
    assert script(("init", 1), ("arrive", 1), ("try_wait", 0)) == [1]


# Without its waits, one side runs more than a phase ahead of the other, and the barriers are of no use to anybody.
ASTRAY = "arrivals at an mbarrier of 32|no thread can go on"
# The words by which each fault of the pipeline in csrc/host_cuda/test_mbarrier.cpp shows, unless by a wrong result.
FAULTS = {
    "no_wait_for_full": ASTRAY,
    "no_wait_for_empty": ASTRAY,
    "first_parity": "no thread can go on: .* is in phase 0, 32 of 32 arrivals and 0 bytes to come; .*",
    "full_count": "no thread can go on: .* is in phase 0, 1 of 33 arrivals",
    "asks_once": ASTRAY,
    "no_inner_arrive": "no thread can go on: .* 1 of 32 arrivals",
}


def outcome(fault: int, rounds: int = 5) -> str:
    """ "right", "wrong", or an error's words."""
    host_cuda.load()
    x = torch.arange(1.0, 32.0 * rounds + 1)
    out = torch.full_like(x, torch.nan)
    try:
        torch.ops.atrousops_host_cuda.test_mbarrier_pipeline(x, out, fault)
    except RuntimeError as error:
        return str(error)
    return "right" if torch.equal(out, x.view(rounds, 32).flip(1).flatten()) else "wrong"


@pytest.mark.parametrize("seed", range(6))
def test_the_sound_pipeline_passes_in_any_order(seed):
    with host_cuda.order(seed):
        assert outcome(0) == "right"


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_faults_are_found(name, seed):
    with host_cuda.order(seed):
        assert re.search(f"^wrong$|{FAULTS[name]}", outcome(list(FAULTS).index(name) + 1))
    assert outcome(0) == "right"
