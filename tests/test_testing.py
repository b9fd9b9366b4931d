import time

import pytest
import torch

from atrousops.testing import Comparison, Timing, compare, disagreement, interleaved

EXACT = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
THEIRS = EXACT.float() + torch.tensor([0.0, 1e-5, 0.0])


def test_bound_is_twice_their_error_and_one_rounding():
    assert disagreement(EXACT.float() + torch.tensor([0.0, 0.0, 1.9e-5]), EXACT, THEIRS) is None
    assert "error 2.1" in disagreement(EXACT.float() + torch.tensor([0.0, 0.0, 2.15e-5]), EXACT, THEIRS)
    # They are exact: one rounding of 4 is allowed, 4.8e-7, and not two.
    assert disagreement(torch.nextafter(EXACT.float(), torch.tensor(9.0)), EXACT, EXACT.float()) is None
    assert disagreement(EXACT.float() + 1e-6, EXACT, EXACT.float()) is not None


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (EXACT[:2].float(), "shape"),
        (EXACT, "dtype"),
        (torch.tensor([1.0, 2.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, 2.0, float("inf")]), "error inf"),
    ],
)
def test_what_disagrees(ours, message):
    assert message in disagreement(ours, EXACT, THEIRS)


def test_special_values():
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    assert disagreement(special, special.double(), special) is None
    assert disagreement(special.flip(0), special.double(), special) is not None
    assert disagreement(-special, special.double(), special) is not None
    assert disagreement(torch.empty(0), torch.empty(0).double(), torch.empty(0)) is None
    indices = torch.tensor([1, 2, 3])
    assert disagreement(indices, indices, indices) is None
    assert disagreement(indices + 1, indices, indices) == "3 of 3 integers differ"


def test_quartiles():
    # Worked by hand: five durations, quartiles at the second and the fourth.
    assert Timing.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


def test_calls_are_interleaved():
    calls = []
    a, b = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), repeats=4)
    assert "".join(calls) == "ab" * 5
    assert a.repeats == b.repeats == 4


def test_budget_leaves_three_pairs(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    a, b = interleaved(lambda: None, lambda: None, repeats=50, budget=0)
    assert a == b == Timing(1, 1, 1, 3)


def test_wrong_results_are_not_timed():
    timed = []

    def theirs():
        timed.append(1)
        return THEIRS

    row = compare("case", lambda: (THEIRS + 1,), theirs, lambda: EXACT)
    assert len(timed) == 1
    assert row.ratio is None
    assert row.row().startswith("case")
    assert "WRONG: output 0: error" in row.row()
    right = compare("case", lambda: (THEIRS,), theirs, lambda: EXACT, repeats=2)
    assert right.wrong is None
    assert right.ratio is not None
    with pytest.raises(ValueError, match="argument"):
        compare("case", lambda: (THEIRS, THEIRS), theirs, lambda: EXACT)


def test_ratio_is_theirs_over_ours():
    row = Comparison("case", ours=Timing(0.002, 0.001, 0.003, 5), theirs=Timing(0.001, 0.001, 0.001, 5))
    assert row.ratio == 0.5
    assert row.row().endswith("0.50x"), "a loss is printed like a win"
