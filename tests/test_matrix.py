"""A sample of tests/matrix.py, torchvision's fastest, and the table that a whole run of it has left."""

import json

import matrix
import pytest

pytestmark = pytest.mark.torchvision

# Grouped and dilated convolutions, concatenations, squeeze-and-excitation, video, and a detector.
SAMPLE = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "maxvit", "quantization.resnet18"]


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    row = matrix.examine(f"torchvision/{name}", limit=240, memory=6)
    assert row["verdict"] == "ok", row
    assert [row[cell] for cell in matrix.CELLS] == ["ok"] * len(matrix.CELLS)


def test_a_crash_is_a_row():
    row = matrix.examine("torchvision/mnasnet0_5", limit=0, memory=6)
    assert row["verdict"] == "build: timeout: 0 s"


def test_a_wrong_model_is_found():
    network = matrix.networks()["torchvision/squeezenet1_1"]
    model = matrix.prepared(network)
    oracle = matrix.Oracle(matrix.results, model, network.inputs(), in_double=False)
    assert oracle.verdict(model) == "ok"
    model.features[0].weight.data[0, 0, 0, 0] += 0.01
    assert oracle.verdict(model).startswith("wrong: output 0 is off by")


def test_the_table_is_what_was_measured():
    found = json.loads(matrix.OUT.with_suffix(".json").read_text())
    assert matrix.OUT.read_text() == matrix.table(found["networks"], found["versions"])
    assert set(found["networks"]) == set(matrix.networks())
