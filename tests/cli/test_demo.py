"""The demo, with a network and cases small enough for a test."""

import runpy
import sys

import pytest
from PIL import Image

from atrousops import demo
from atrousops.bench import registry
from atrousops.engine.predict import Predictor
from atrousops.nn import AtrousConv2d, DenseCRF


def test_writes_the_picture_and_prints_what_ran(tmp_path, monkeypatch, capsys):
    def stand_in(crf, **options):
        classes = ("background", "person")
        return Predictor(
            AtrousConv2d(3, 2, 1), classes, (0.5,) * 3, (0.2,) * 3, size=64, crf=DenseCRF() if crf else None, **options
        )

    monkeypatch.setattr(demo, "load_predictor", stand_in)
    monkeypatch.setattr(demo, "ROWS", ())
    monkeypatch.setattr(sys, "argv", ["demo", "--output", str(tmp_path / "new" / "demo.png")])
    demo.main()
    # Three panels of 512 with margins of 24.
    assert Image.open(tmp_path / "new" / "demo.png").width == 3 * 512 + 4 * 24
    out = capsys.readouterr().out
    assert "The same + dense CRF: " in out
    assert "Of all 1 calls of the network: 1 on " in out
    assert "Ceilings measured here" in out


def test_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(demo.__file__, run_name="__main__")
    assert exit.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_its_rows_are_rows_of_the_benchmark():
    keys = {row.key for row in registry.Selection(quick=True).rows()}
    assert set(demo.ROWS) <= keys
