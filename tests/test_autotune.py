"""autotune: what was measured counts for more than what was predicted, in this process and in later ones."""

import json
import logging
import subprocess
import sys

import pytest
import torch

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError, ArgumentTypeError
from atrousops.dispatch import choice, devices, libraries, measured
from atrousops.dispatch.measured import Times

pytestmark = [
    pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built"),
    pytest.mark.usefixtures("own_plans"),
]


def layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        ao.AtrousConv2d(8, 16, 3, padding=4, dilation=4), torch.nn.ReLU(), ao.AtrousConvTranspose2d(16, 8, 4, stride=4)
    )


def kinds(tuning) -> list[tuple[str, bool]]:
    return sorted((key.arguments[0], key.needs_grad) for key in tuning.times)


def test_inference(own_plans):
    model, x = layers(), torch.randn(1, 8, 24, 24)
    with torch.no_grad():
        tuning = ao.autotune(model, x, budget=0)
    assert kinds(tuning) == [("forward", False), ("transposed", False)]
    assert all(times.aten > 0 and times.ours > 0 for times in tuning.times.values())
    (path,) = own_plans.iterdir()
    assert tuning.files == [path]
    assert "2 calls" in str(tuning)
    for row, times in zip(ao.explain(model.requires_grad_(False), x).rows, tuning.times.values()):
        assert "was measured" in row.reason
        assert (row.backend == "cpu") == times.ours_wins


def test_nothing_is_measured_twice():
    model, x = layers().requires_grad_(False), torch.randn(1, 8, 24, 24)
    first = ao.autotune(model, x, budget=0)
    second = ao.autotune(model, x, budget=0)
    assert second.times == first.times
    assert second.files == []


def test_training_measures_gradients(monkeypatch):
    # Gradients of ours are only looked for behind a forward pass of ours.
    device = devices.cpu_device(torch.float32, False)
    rates = device.rates | {"aten_call": 1.0}
    monkeypatch.setattr(devices, "cpu_device", lambda dtype, channels_last: device._replace(rates=rates))
    tuning = ao.autotune(layers(), torch.randn(1, 8, 24, 24, requires_grad=True), budget=0)
    assert {("forward", True), ("transposed", True), ("input_grad", False), ("weight_grad", False)} <= set(
        kinds(tuning)
    )


@pytest.mark.parametrize("ours", [0.5, 2.0])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_measurement_decides(ours, needs_grad):
    """Whatever was predicted; the reason says so, and the result is the same."""
    x, w = torch.randn(1, 8, 24, 24), torch.randn(16, 8, 3, 3, requires_grad=needs_grad)
    expected = A.conv2d(x, w, padding=4, dilation=4)
    with choice.watched() as seen:
        choice.forget()
        A.conv2d(x, w, padding=4, dilation=4)
    (key,) = seen
    measured.add({key: Times(aten=1.0, ours=ours)})
    choice.forget()
    (row,) = ao.explain(A.conv2d, x, w, padding=4, dilation=4).rows
    assert row.backend == ("cpu" if ours < 1 else "aten")
    assert f"was measured at {ours:.2f} of the time of aten" in row.reason
    torch.testing.assert_close(A.conv2d(x, w, padding=4, dilation=4), expected)


def test_a_later_process_knows(own_plans):
    x, w = torch.randn(1, 8, 24, 24), torch.randn(16, 8, 3, 3)
    with choice.watched() as seen:
        A.conv2d(x, w, padding=4, dilation=4)
    measured.add({seen[0]: Times(aten=3.0, ours=1.5)})
    code = (
        f"import torch, atrousops as ao; torch.set_num_threads({torch.get_num_threads()});"
        "x, w = torch.randn(1, 8, 24, 24), torch.randn(16, 8, 3, 3);"
        "print(ao.explain(ao.functional.conv2d, x, w, padding=4, dilation=4).rows[0].reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "was measured at 0.50" in done.stdout


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}', '{"format": 1, "calls": [{}]}'])
def test_a_damaged_file_is_said_and_left(own_plans, text, caplog):
    path = measured.plans_path("cpu")
    path.write_text(text)
    with caplog.at_level(logging.WARNING, "atrousops"):
        A.conv2d(torch.randn(1, 8, 24, 24), torch.randn(16, 8, 3, 3))
    assert "are not used" in caplog.text
    assert path.read_text() == text


def test_two_processes_keep_each_other_s_plans():
    with choice.watched() as seen:
        for size in (24, 32):
            A.conv2d(torch.randn(1, 8, size, size), torch.randn(16, 8, 3, 3))
    first, second = seen
    measured.add({first: Times(1.0, 2.0)})
    measured.forget()
    measured.add({second: Times(1.0, 3.0)})
    measured.forget()
    assert (measured.lookup(first), measured.lookup(second)) == (Times(1.0, 2.0), Times(1.0, 3.0))


def test_nothing_is_kept_where_it_is_not_wanted(monkeypatch, own_plans):
    monkeypatch.setenv("ATROUSOPS_PLANS", "none")
    tuning = ao.autotune(layers().requires_grad_(False), torch.randn(1, 8, 24, 24), budget=0)
    assert tuning.files == []
    assert not list(own_plans.iterdir())
    # In this process they count all the same.
    assert all(measured.lookup(key) == times for key, times in tuning.times.items())


def test_the_file_names_machine_and_torch(own_plans):
    path = measured.plans_path("cpu")
    assert path.parent == own_plans
    assert path.name.endswith(f"-torch-{'.'.join(torch.__version__.split('.')[:2])}.json")
    measured.add({})
    assert not path.exists()


def test_the_file_is_readable(own_plans):
    ao.autotune(layers().requires_grad_(False), torch.randn(1, 8, 24, 24), budget=0)
    stored = json.loads(measured.plans_path("cpu").read_text())
    assert stored["format"] == 1
    names = ("arguments", "dtype", "channels_last", "needs_grad", "state", "aten", "ours", "each")
    assert set(stored["calls"][0]) == {*names}


def test_says_what_is_wrong():
    with pytest.raises(ArgumentTypeError, match="call must be a module or a function"):
        ao.autotune(3)
    with ao.backend("aten"), pytest.raises(ArgumentError, match="not be forced"):
        ao.autotune(layers(), torch.randn(1, 8, 24, 24))
