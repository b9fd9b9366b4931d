"""Rows of whole modules and of the CRF, at sizes of a test."""

import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import nn
from torchvision.models import segmentation

import atrousops as ao
from atrousops import models
from atrousops.bench import apart, oracle, report
from atrousops.bench.machine import Ceilings
from atrousops.bench.measure import Options, measure
from atrousops.bench.modules import module
from atrousops.bench.registry import Row
from atrousops.bench.results import Report
from atrousops.bench.suites import crf, networks, scaling
from atrousops.nn import AtrousConv2d

CPU = torch.device("cpu")
CEILINGS = Ceilings(copy=1e10, gemm={"fp32": 1e11})


def measured(prepare, direction="forward"):
    row = Row("small", "case", "for a test", "fp32", "nhwc", direction, prepare)
    return measure(row, CPU, CEILINGS, Options(repeats=1, budget=0))


def net(kind):
    # A bias before the normalisation would have a gradient of rounding errors only.
    return lambda: nn.Sequential(
        kind(3, 4, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), kind(4, 2, 1)
    )


@pytest.mark.parametrize("direction", ["forward", "training"])
def test_module(direction):
    prepare = module(net(AtrousConv2d), net(nn.Conv2d), lambda: torch.randn(2, 3, 7, 7))
    result = measured(prepare, direction)
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    assert result.incumbent == "torchvision"
    # Two convolutions of 2 x 49 positions; three products when it trains.
    assert result.floor.flops == 2 * 98 * (3 * 4 * 9 + 4 * 2) * (3 if direction == "training" else 1)
    assert result.kernel == "2 aten"


def test_module_without_a_stock_one():
    result = measured(module(net(AtrousConv2d), None, lambda: torch.randn(2, 3, 7, 7)))
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    assert result.incumbent == "aten"


def test_another_design_is_timed_and_not_compared(tmp_path):
    other = {"another's": lambda: nn.Conv2d(3, 5, 1)}
    prepare = module(
        net(AtrousConv2d), net(nn.Conv2d), lambda: torch.randn(2, 3, 7, 7), beside=other, missing={"a third": "no"}
    )
    result = measured(prepare)
    assert (result.error, result.wrong, result.failed, result.missing) == ("", {}, {}, {"a third": "no"})
    assert list(result.beside) == ["another's"]
    assert result.beside["another's"].median > 0
    assert result.memory["another's"] > 0
    assert result.incumbent == "torchvision"
    assert "another's" not in result.incumbents | result.ratios
    assert "beside: another's, of its own design, " in report.line(result)
    Report({}, CEILINGS, [result]).save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json").results[0].beside == result.beside


def test_smp_pads_and_crops(monkeypatch):
    """A stand-in for segmentation_models_pytorch, which need not be installed."""

    class Halving(nn.Module):
        def __init__(self, encoder_name, encoder_weights, classes):
            super().__init__()
            assert (encoder_name, encoder_weights) == ("vgg16", None)
            self.classes = classes

        def forward(self, x):
            assert x.shape[-2:] == (64, 96)
            return x.sum(1, keepdim=True).expand(-1, self.classes, -1, -1)

    smp = ModuleType("segmentation_models_pytorch")
    smp.Unet, smp.__spec__ = Halving, ModuleSpec(smp.__name__, None)
    monkeypatch.setitem(sys.modules, smp.__name__, smp)
    beside = networks._smp("unet")["beside"]
    assert list(beside) == ["smp Unet vgg16"]
    x = torch.randn(1, 3, 61, 70)
    y = beside["smp Unet vgg16"]()(x)["out"]
    assert torch.equal(y, x.sum(1, keepdim=True).expand(1, 11, 61, 70))
    assert networks._smp("enet") == {}
    monkeypatch.delitem(sys.modules, smp.__name__)
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)
    assert networks._smp("unet") == {"missing": {"smp Unet vgg16": "pip install segmentation-models-pytorch"}}


def test_module_made_ready():
    """Ours runs optimised, with its normalisations folded; PyTorch's does not."""
    made = []

    def made_ready(model):
        made.append(ao.optimize(model))
        return made[-1]

    prepare = module(net(AtrousConv2d), net(nn.Conv2d), lambda: torch.randn(2, 3, 7, 7), made_ready=made_ready)
    result = measured(prepare)
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    norms = [m for model in made for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all("folded" in repr(norm) for norm in norms)
    assert result.kernel == "2 aten"


def test_module_that_is_wrong():
    class Wrong(AtrousConv2d):
        def forward(self, input):
            return super().forward(input) + 0.01

    result = measured(module(net(Wrong), net(nn.Conv2d), lambda: torch.randn(2, 3, 7, 7)))
    assert result.is_wrong
    assert not result.timings


def test_networks_exist():
    for name, _, _, known, _ in networks.CASES:
        assert name in models.registry.NETWORKS
        assert hasattr(segmentation, name) == known


@pytest.mark.parametrize("prepare", [crf._whole, crf._iterations, crf._lattices, crf._filter])
def test_crf(monkeypatch, prepare):
    pytest.importorskip("skimage")
    monkeypatch.setattr(crf, "ITERATIONS", 2)
    # The oracle's part of the picture, and room around it.
    whole = crf._photograph
    monkeypatch.setattr(crf, "_photograph", lambda h, w: whole(60, 70))
    monkeypatch.setattr(crf, "_scores", lambda h, w: torch.randn(1, crf.LABELS, 60, 70))
    monkeypatch.setattr(oracle, "PART", (slice(10, 40), slice(20, 50)))
    result = measured(prepare)
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    assert "dispatched" in result.timings
    assert bool(result.missing) == (result.incumbent is None)


def test_crfrnn_is_held_to_the_reference_on_a_part(monkeypatch):
    monkeypatch.setattr(oracle, "PART", (slice(10, 40), slice(20, 50)))
    build = models.build
    monkeypatch.setattr(models, "build", lambda name, num_classes: build(name, num_classes=num_classes, width=1))
    result = measured(partial(apart.crfrnn, height=60, width=70, num_classes=3))
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    assert result.incumbent is None
    assert "dispatched" in result.timings


def test_scaling_compares_one_thread_with_all():
    torch.set_num_threads(2)
    seen = []

    class Watched(AtrousConv2d):
        def forward(self, input):
            seen.append(torch.get_num_threads())
            return super().forward(input)

    prepare = module(net(Watched), net(nn.Conv2d), lambda: torch.randn(2, 3, 7, 7))
    result = measured(partial(scaling._against_itself, prepare))
    assert (result.error, result.wrong, result.failed) == ("", {}, {})
    assert result.incumbent == scaling.ALONE
    assert set(seen) == {1, 2}
    assert torch.get_num_threads() == 2
