"""The predicted times of docs/kernels.md: what the script says, made of the planner's own numbers."""

import importlib.util
import re
from pathlib import Path

import pytest

from atrousops.bench.suites import deeplab
from atrousops.dispatch import geometry, libraries, planner

pytestmark = pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")


@pytest.fixture(scope="module")
def predict():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "predict.py"
    spec = importlib.util.spec_from_file_location("predict", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(predict):
    return predict.predictions()


def test_the_page_is_what_the_script_says(predict, found, monkeypatch):
    monkeypatch.setattr(predict, "predictions", lambda: found)
    text = predict.PAGE.read_text()
    assert text == predict.page(text), "python benchmarks/predict.py writes it again"
    assert "nothing here was measured" in text.split(predict.MARKER)[1]


def test_every_row_of_the_suite_is_there(found):
    assert found.keys() == {row.key for row in deeplab.rows()}
    assert all(each.keys() == {"H100", "H200"} for _, each in found.values())


def test_no_row_that_runs_is_predicted_to_lose(found):
    assert [key for key, (_, each) in found.items() for p in each.values() if p.dispatched and p.ratio[0] < 1] == []


def test_parts_make_the_time_that_the_planner_plans_by(found):
    for key, (_, each) in found.items():
        for p in each.values():
            assert sum(p.parts.values()) == pytest.approx(p.ours), key
            assert all(part >= -1e-12 for part in p.parts.values()), key
            assert p.cudnn[1] <= p.cudnn[0] <= p.cudnn[2], key


def test_lines_say_where_it_cannot_be_told(predict, found):
    ranges = re.findall(r" \d+\.\d\d \(([\d.]+) - ([\d.]+)\)(, cannot be told)? \|", "\n".join(predict.lines(found)))
    assert {bool(mark) for *_, mark in ranges} == {True, False}
    for low, high, mark in ranges:
        # Of 1.00 two digits do not say on which side it lies.
        if "1.00" not in (low, high):
            assert bool(mark) == (float(low) < 1 < float(high)), (low, high)


def test_a_row_by_hand(predict, found):
    """ASPP's branch of rate 24 at output stride 8: 2048 -> 256 channels, a map of 65 x 65, in bf16."""
    row, each = found["deeplab/aspp OS8, rate 24, 2048->256, 65x65, batch 8/bf16/nhwc/forward"]
    p = each["H100"]
    problem = predict.problem_of(row)
    tensors = 2 * (8 * 65**2 * (2048 + 256) + 9 * 2048 * 256)
    assert p.parts["DRAM"] == pytest.approx(tensors / 3e12)
    assert each["H200"].parts["DRAM"] == pytest.approx(tensors / 4.3e12)
    assert p.parts["launch"] == 12e-6
    assert p.parts["NCHW"] == 0
    dense = 2 * 8 * 65**2 * 9 * 2048 * 256
    # At 500 TFLOP/s no tile of 128 positions does less than the live share.
    assert dense * geometry.live_share(problem) / 500e12 <= p.parts["tensor cores"] < dense / 500e12
    # A step of 128 x 256 x 64 products reads (128 + 256) x 128 bytes.
    assert p.l2 == pytest.approx(500e12 / (2 * 128 * 256 * 64) * (128 + 256) * 128)
    assert p.cudnn == pytest.approx(
        (
            6e-6 + dense / 500e12 + tensors / 3e12,
            6e-6 + dense / (0.75 * 989e12),
            # 265 x 2 tiles of 128 x 128 are five waves of 132.
            6e-6 + tensors / 3e12 + 5 * 132 * 2 * 128**2 * 9 * 2048 / (0.4 * 989e12),
        )
    )


def test_maps_in_nchw_are_copied(predict, found):
    """The kernels of the tensor cores work in channels_last: both maps are read and written once more, at 1 TB/s."""
    key = "deeplab/layer4 OS8, rate 4, 512->512, 65x65, batch 1/{}/forward"
    nchw, nhwc = (found[key.format(way)][1]["H100"] for way in ("bf16/nchw", "bf16/nhwc"))
    assert nchw.kernel == nhwc.kernel == "wgmma"
    assert nchw.ours - nhwc.ours == pytest.approx(2 * 2 * 512 * 65**2 / 1e12)
    row = found[key.format("fp32/nchw")][0]
    seconds = [
        {c.kernel: c.seconds for c in planner.plan(predict.problem_of(row), device, 4).candidates}
        for device in (predict.gpu("H100", row), predict.gpu("H100", found[key.format("fp32/nhwc")][0]))
    ]
    assert seconds[0]["mma"] - seconds[1]["mma"] == pytest.approx(4 * 2 * 512 * 65**2 / 1e12)
    assert seconds[0]["simt"] == seconds[1]["simt"]
