"""The clock of a GPU's calls, on a GPU that is a few lines of arithmetic: the host's time is not in what it says."""

import pytest

from atrousops.common.testing import DeviceClock, flushes_for

FLUSH, KERNEL, ISSUE = 100e-6, 5e-6, 30e-6
CALL = 10 * KERNEL  # what a call of ten kernels takes on the GPU


class Machine:
    """A host and a GPU that works off what the host has issued, in order. An event is the time at which it comes."""

    def __init__(self) -> None:
        self.now = self.free = 0.0  # the host's time; when the GPU has nothing left to do
        self.flushes = 0

    def issue(self, seconds: float) -> None:
        self.free = max(self.free, self.now) + seconds

    def flush(self) -> None:
        self.flushes += 1
        self.issue(FLUSH)

    def mark(self) -> float:
        self.issue(0.0)
        return self.free

    def reached(self, mark: float) -> bool:
        return mark <= self.now

    def seconds(self, start: float, end: float) -> float:
        self.now = max(self.now, end)
        return end - start

    def call(self, issue: float = ISSUE) -> None:
        for _ in range(10):
            self.now += issue
            self.issue(KERNEL)

    def clock(self) -> DeviceClock:
        return DeviceClock(self, host=lambda: self.now)


def test_a_call_that_is_issued_slowly():
    """As autograd does it: 300 us of the host for 50 us of the GPU, behind a flush of 100."""
    machine = Machine()
    clock = machine.clock()
    # What one flush would have let the host add.
    machine.flush()
    start = machine.mark()
    machine.call()
    assert machine.mark() - start > 4 * CALL
    machine.seconds(0.0, machine.mark())
    assert clock(machine.call) == pytest.approx(CALL)
    # It has learnt: no call is repeated, and each has the flushes that it needs.
    before = machine.flushes
    assert clock(machine.call) == pytest.approx(CALL)
    assert machine.flushes - before == flushes_for(10 * ISSUE, FLUSH) == 6


def test_a_call_that_is_issued_fast_has_one_flush():
    machine = Machine()
    clock = machine.clock()
    before = machine.flushes
    assert clock(lambda: machine.call(1e-6)) == pytest.approx(CALL)
    assert machine.flushes - before == 1


def test_a_call_that_waits_for_the_gpu_ends():
    """Nothing can be issued ahead of it: two tries each time, and never more work in front of the next."""
    machine = Machine()
    clock = machine.clock()

    def waiting() -> None:
        machine.call()
        machine.now = max(machine.now, machine.free)

    tries = []
    for _ in range(5):
        before = machine.flushes
        assert clock(waiting) == pytest.approx(CALL)
        tries.append(machine.flushes - before)
    # One flush, and then what twice the host's time would need, which ends with the last kernel: 305 us.
    assert tries == [1 + flushes_for(10 * ISSUE + KERNEL, FLUSH)] * 5 == [8] * 5


@pytest.mark.parametrize(
    ("issue", "flush", "expected"),
    [
        (10e-6, 100e-6, 1),  # never none: the caches are to be flushed
        (50e-6, 100e-6, 1),
        (51e-6, 100e-6, 2),
        (1.0, 1e-3, 100),  # MOST_BUSY
    ],
)
def test_flushes(issue, flush, expected):
    assert flushes_for(issue, flush) == expected
