import time

import pytest
import torch

from atrousops.testing import Timing, compare, differs, disagreement, interleaved

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
    # A box from 2 to 4 of four times as many: half of 1.57 * 2 / sqrt(5).
    assert Timing.of(4 * [5.0, 1.0, 4.0, 2.0, 3.0]).error == pytest.approx(1.57 / 5**0.5)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


def test_ratio_round_by_round():
    """Theirs takes twice as long in every round: that the machine gets slower does not make the ratio uncertain."""
    ours, theirs = Timing.of([1.0, 1.0, 3.0, 9.0]), Timing.of([2.0, 2.0, 6.0, 18.0])
    assert theirs.over(ours) == Timing(2.0, 2.0, 2.0, 4)
    with pytest.raises(ValueError, match="zip"):
        theirs.over(Timing.of([1.0]))


def test_calls_are_interleaved():
    calls = []
    a, b = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), repeats=4)
    # Short calls are timed behind one of their own.
    assert "".join(calls) == "ab" + "aabbbbaa" * 2
    assert a.repeats == b.repeats == 4


def test_budget_leaves_three_pairs(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    a, b = interleaved(lambda: None, lambda: None, repeats=50, budget=0)
    assert a == b == Timing(1, 1, 1, 3)


def test_clock_and_warm_up():
    calls = []
    (timing,) = interleaved(lambda: calls.append(1), repeats=3, warm_up=False, clock=lambda f: f() or 2.0)
    assert timing == Timing(2.0, 2.0, 2.0, 3)
    assert len(calls) == 3


def returns(value):
    return lambda: lambda: value


def test_nothing_is_timed_if_ours_is_wrong():
    result = compare(
        {"ours": returns((THEIRS + 1,)), "other": returns(THEIRS)}, {"theirs": returns(THEIRS)}, lambda: EXACT
    )
    assert not result.timings
    assert "output 0: error" in result.wrong["ours"]
    assert "other" not in result.wrong
    result = compare({"ours": returns((THEIRS, THEIRS))}, {"theirs": returns(THEIRS)}, lambda: EXACT)
    assert result.wrong == {"ours": "2 outputs, expected 1"}


def test_what_is_right_is_timed_in_turn():
    def cannot():
        raise NotImplementedError("not at\nthis dtype")

    theirs = {"theirs": returns(THEIRS), "another": returns(THEIRS + 1), "broken": cannot}
    result = compare({"ours": returns(THEIRS)}, theirs, lambda: EXACT, anchors={"gemm": returns(EXACT)}, repeats=2)
    assert list(result.timings) == ["ours", "theirs", "gemm"]
    assert "output 0: another result" in result.wrong["another"]
    assert result.failed == {"broken": "NotImplementedError: not at this dtype"}


def test_yardstick():
    ours = {"ours": returns(EXACT.float() + torch.tensor([0.0, 0.0, 1.9e-5]))}
    # Without one to measure by, ours may be one rounding off twice; by the first of theirs, twice its error.
    assert "ours" in compare(ours, {}, lambda: EXACT).wrong
    assert not compare(ours, {}, lambda: EXACT, yardstick=lambda: THEIRS, repeats=1).wrong
    assert not compare(ours, {"theirs": returns(THEIRS)}, lambda: EXACT, repeats=1).wrong


def test_rounded_to_the_dtype_under_test():
    """Theirs are off by 1e-5: four times that and one rounding of 4 are 4.05e-5, however wide the result's dtype."""
    off = torch.tensor([0.0, 0.0, 1e-5], dtype=torch.float64)
    results = {"theirs": THEIRS, "near": EXACT + 3.9e-5, "far": EXACT + 4.3e-5, "near too": (EXACT + 4 * off).float()}
    theirs = {name: returns(result) for name, result in results.items()}
    rounded = dict.fromkeys(("near", "far", "near too"), 4.0)
    result = compare({"ours": returns(THEIRS)}, theirs, lambda: EXACT, rounded=rounded, repeats=1)
    assert list(result.wrong) == ["far"]
    assert "output 0: error 4.3" in result.wrong["far"]
    assert list(result.timings) == ["ours", "theirs", "near", "near too"]


def test_differs():
    assert differs(THEIRS, EXACT) is None
    assert "another result" in differs(THEIRS * 1.01, EXACT)
    assert "shape" in differs(THEIRS[:1], EXACT)
    assert differs(torch.tensor([1, 2]), torch.tensor([1, 3])) == "1 of 2 integers differ"
    assert differs(torch.empty(0), torch.empty(0).double()) is None
