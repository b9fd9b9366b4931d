"""The demo, with a network and cases small enough for a test."""

import runpy
import sys

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from atrousops import demo, functional
from atrousops.engine.predict import Predictor
from atrousops.nn import AtrousConv2d


def small_cases():
    roi_align = demo._call("roi_align", output_size=2, sampling_ratio=2)
    inputs = torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 6.0, 5.0]])
    yield "right", roi_align, inputs
    yield "right backward", demo._Backward(roi_align), (*inputs, torch.randn(1, 2, 2, 2))
    yield "wrong", lambda operators, x: x + (operators is not demo.PYTORCH), inputs[:1]


def test_writes_the_picture_and_prints_what_ran(tmp_path, monkeypatch, capsys):
    def stand_in(**options):
        return Predictor(AtrousConv2d(3, 2, 1), ("background", "person"), (0.5,) * 3, (0.2,) * 3, size=64, **options)

    monkeypatch.setattr(demo, "load_predictor", stand_in)
    monkeypatch.setattr(demo, "cases", small_cases)
    monkeypatch.setattr(sys, "argv", ["demo", "--output", str(tmp_path / "new" / "demo.png")])
    demo.main()
    # Three panels of 512 with margins of 24.
    assert Image.open(tmp_path / "new" / "demo.png").width == 3 * 512 + 4 * 24
    out = capsys.readouterr().out
    assert "Network + dense CRF: " in out
    assert "Of all 1 calls of the network: 1 on " in out
    rows = {line[:46].strip(): line for line in out.splitlines()}
    assert rows["right"].endswith("x")
    assert rows["right backward"].endswith("x")
    assert "WRONG: output 0: error" in rows["wrong"]


def test_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(demo.__file__, run_name="__main__")
    assert exit.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_cases_give_the_shapes_of_pytorch():
    # They are too large to compute in a test; fake tensors run the checks and the shapes of both.
    torch.use_deterministic_algorithms(False)
    with FakeTensorMode():
        for name, case, inputs in demo.cases():
            ours, theirs = (as_list(case(operators, *inputs)) for operators in (functional, demo.PYTORCH))
            assert [(y.shape, y.dtype) for y in ours] == [(y.shape, y.dtype) for y in theirs], name


def as_list(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
