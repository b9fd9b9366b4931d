"""What selfcheck timed on a GPU takes the place of the rates that its machine's file guesses."""

import pytest
import torch

from atrousops.dispatch import choice, devices, fitted, libraries, planner, verdicts
from atrousops.dispatch.planner import CallArguments, call_problem
from atrousops.dispatch.verdicts import Finding, Rate, TimedCall

pytestmark = pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")

BF16 = torch.bfloat16
# ASPP's branch of rate 12 at output stride 16, and the same without dilation.
DILATED = CallArguments("forward", (16, 2048, 33, 33), (256, 2048, 3, 3), (1, 1), (12, 12), (12, 12))
DENSE = DILATED._replace(padding=(1, 1), dilation=(1, 1))


def guessed(arguments):
    """Seconds that the file of an H100 makes of a call, of wgmma and of PyTorch."""
    device = devices.gpu("cuda", (132, 232448, 90), BF16, True, False)
    seconds = {c.kernel: c.seconds for c in planner.plan(call_problem(arguments), device, 2).candidates}
    return seconds["wgmma"], seconds["aten"]


def timed(*rates):
    """Verdicts of an H100 with so many (call, seconds of ours, seconds of PyTorch's)."""
    found = tuple(Rate("a call", ours, aten, TimedCall(call, "half", True, 2)) for call, ours, aten in rates)
    families = {f"forward {name}": Finding(True, "", 3) for name in ("mma", "simt")}
    verdicts.record("cuda", "cuda:0", families | {"forward wgmma": Finding(True, "", 3, found)})
    choice.forget()


def plan(arguments, dtype=BF16, channels_last=True):
    return choice.plan_call(arguments, dtype, channels_last, device="cuda:0")


def seconds(arguments):
    found = {c.kernel: c.seconds for c in plan(arguments).candidates}
    return found["wgmma"], found["aten"]


@pytest.mark.parametrize("factor", [0.5, 1.7])
def test_a_timed_call_is_predicted_as_it_was_timed(machine, factor):
    ours, aten = (factor * s for s in guessed(DILATED))
    timed((DILATED, ours, aten))
    assert seconds(DILATED) == pytest.approx((ours, aten), rel=0.01)


def test_the_faster_one_runs(machine):
    ours = guessed(DILATED)[0]
    timed((DILATED, ours, ours / 2))
    assert plan(DILATED).kernel == "aten"
    timed((DILATED, ours, ours * 2))
    assert plan(DILATED).kernel == "wgmma"


def test_dilation_has_a_rate_of_its_own(machine):
    """cuDNN that is slow with dilation is not taken for slow without, nor the other way round."""
    (ours, aten), (dense, theirs) = guessed(DILATED), guessed(DENSE)
    timed((DILATED, ours, 3 * aten), (DENSE, dense, theirs / 2))
    assert seconds(DILATED)[1] == pytest.approx(3 * aten, rel=0.01)
    assert seconds(DENSE)[1] == pytest.approx(theirs / 2, rel=0.01)
    assert (plan(DILATED).kernel, plan(DENSE).kernel) == ("wgmma", "aten")


def test_other_precisions_and_formats_stay_as_guessed(machine):
    before = plan(DILATED, torch.float64), plan(DILATED, channels_last=False)
    timed((DILATED, *guessed(DILATED)[::-1]))
    after = plan(DILATED, torch.float64), plan(DILATED, channels_last=False)
    for one, other in zip(before, after):
        assert [c.seconds for c in one.candidates] == [c.seconds for c in other.candidates]


def test_a_timed_stride_says_nothing_of_calls_without(machine):
    strided = DENSE._replace(stride=(2, 2))
    before = guessed(DENSE)
    rate = Rate("a call", 1.0, 1.0, TimedCall(strided, "half", True, 2))
    strange = {"forward wgmma_strided": Finding(True, "", 3, (rate,))}
    verdicts.record(
        "cuda", "cuda:0", strange | {f"forward {n}": Finding(True, "", 3) for n in ("wgmma", "mma", "simt")}
    )
    choice.forget()
    assert seconds(DENSE) == pytest.approx(before)


def test_a_call_that_its_launch_outlasts_raises_the_rate_by_no_more_than_is_known(machine):
    timed((DILATED, 1e-9, 1e-9))
    ours, aten = seconds(DILATED)
    assert 0 < ours < guessed(DILATED)[0]
    assert 0 < aten < guessed(DILATED)[1]


def test_a_later_process_knows(machine):
    ours, aten = (3 * s for s in guessed(DILATED))
    timed((DILATED, ours, aten))
    machine.restarted()
    assert seconds(DILATED) == pytest.approx((ours, aten), rel=0.01)


def test_a_family_that_failed_gives_no_rate(machine):
    rate = Rate("a call", 1.0, 1.0, TimedCall(DILATED, "half", True, 2))
    verdicts.record("cuda", "cuda:0", {"forward wgmma": Finding(False, "wrong", 3, (rate,))})
    choice.forget()
    assert seconds(DILATED) == pytest.approx(guessed(DILATED))


def test_rates_are_solved_for_once(machine, monkeypatch):
    timed((DILATED, *guessed(DILATED)))
    solved = []
    fits = fitted._fits
    monkeypatch.setattr(fitted, "_fits", lambda *args: solved.append(args) or fits(*args))
    for arguments in (DILATED, DENSE):
        choice.chosen(arguments, BF16, True, device="cuda:0")
    assert len(solved) == 1
