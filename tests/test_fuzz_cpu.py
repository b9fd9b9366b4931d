"""What the fuzzer draws can be written down, read back and made smaller; a few of its calls."""

import itertools

import fuzz_cpu
import pytest

from atrousops.dispatch import libraries


def test_calls_are_read_back_and_made_smaller():
    calls = list(itertools.islice(fuzz_cpu.calls_of(3), 60))
    assert len({type(call).__name__ for call in calls}) >= 4
    for call in calls:
        assert call.is_valid()
        assert fuzz_cpu.parsed(repr(call)) == call
        for other in fuzz_cpu.smaller(call):
            assert other.is_valid()
            assert other != call


@pytest.mark.torchvision
@pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
def test_a_few_calls():
    """Not sanitized, on this machine's instruction set: make fuzz does the rest."""
    for call in itertools.islice(fuzz_cpu.calls_of(4), 40):
        call.run()
