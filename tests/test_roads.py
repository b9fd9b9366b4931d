"""The table that runs of tests/roads.py have left, and what its cells mean; the roads themselves take minutes."""

import json

import roads
import torch


def test_the_table_is_what_was_measured():
    found = json.loads(roads.OUT.with_suffix(".json").read_text())
    assert roads.OUT.read_text() == roads.table(found["networks"], found["versions"])
    assert set(found["networks"]) <= set(roads.NAMES)
    assert {name: row["verdict"] for name, row in found["networks"].items() if roads.verdict(row) != "ok"} == {}


def test_a_wrong_answer_is_found():
    shape = (1, 3, 4, 5)
    wanted = {shape: 2 * roads.images(shape)}
    assert roads.held(lambda image: 2 * image, wanted) == "ok 0e+00"
    assert roads.held(lambda image: 2.01 * image, wanted) == "wrong: 5e-03"
    assert roads.held(lambda image: image[:, :1], wanted) == "wrong: scores (1, 1, 4, 5) for images (1, 3, 4, 5)"
    assert roads.held(lambda image: torch.full_like(image, torch.nan), wanted).startswith("wrong")


def test_one_column_leaves_the_others(tmp_path, monkeypatch):
    """What was not done in time is said so; cells that were not asked for are neither measured nor changed."""
    before = dict.fromkeys(roads.CELLS, "ok 1e-07") | {"seconds": 3.0, "verdict": "ok"}
    late = {"torch.export": "ok 9e-07", "AOTInductor": "timeout: 120 s", "build": "timeout: 120 s", "seconds": 130.0}
    monkeypatch.setattr(roads.tables, "examine", lambda *arguments: dict(late))
    row = roads.examine("unet", 120.0, 8, ("AOTInductor",), before)
    assert row == before | {"AOTInductor": "not done after 2 minutes"}
    note = roads.tables.Note(tmp_path / "row.json", ("jit",))
    for cell in ("jit", "OpenVINO"):
        roads.tables.cell(note, cell, lambda: "ok")
    assert json.loads((tmp_path / "row.json").read_text()) == {"jit": "ok"}


def test_verdicts():
    row = dict.fromkeys(roads.CELLS, "ok 1e-07") | {"AOTInductor": "not run", "onnxruntime": "refused: no"}
    assert roads.verdict(row) == "ok"
    assert roads.verdict(row | {"jit": "left"}) == "jit: left"
    assert roads.verdict(row | {"OpenVINO": "timeout: 9 s"}) == "OpenVINO: timeout: 9 s"
