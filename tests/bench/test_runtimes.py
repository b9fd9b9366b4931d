"""OpenVINO and onnxruntime as incumbents, on networks and sizes of a test."""

import gc
import json

import onnxruntime
import openvino
import pytest
import torch
from torch import nn

import atrousops as ao
from atrousops.bench import command, machine, report, run, runtimes
from atrousops.bench.machine import Ceilings
from atrousops.bench.measure import Options, measure
from atrousops.bench.modules import module
from atrousops.bench.registry import Row, Setting, suite_rows
from atrousops.nn import AtrousConv2d

CPU = torch.device("cpu")
CEILINGS = Ceilings(copy=1e10, gemm={"fp32": 1e11, "bf16": 1e11})
BOTH = {runtimes.OPENVINO, runtimes.ONNXRUNTIME}


def net(kind):
    return lambda: nn.Sequential(
        kind(3, 4, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), kind(4, 2, 1)
    )


class Labelled(nn.Module):
    def __init__(self, network, factor=1.0):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        y = self.network(x) * self.factor
        return y, y.argmax(1)


def row(dtype="fp32", in_file=Labelled):
    prepare = module(
        net(AtrousConv2d),
        net(nn.Conv2d),
        lambda: torch.randn(1, 3, 7, 9),
        made_ready=ao.optimize,
        in_file=in_file,
        outputs=("scores", "labels"),
    )
    return Row("networks", "small", "for a test", dtype, "nhwc", "forward", prepare)


def measured(*args, files=True, device=CPU, **options):
    return measure(row(*args, **options), device, CEILINGS, Options(repeats=1, budget=0, files=files))


@pytest.fixture
def written(monkeypatch):
    """The paths of the files that are written."""
    paths, write = [], runtimes.write_onnx

    def watched(program, image, path, outputs):
        paths.append(path)
        write(program, image, path, outputs)

    monkeypatch.setattr(runtimes, "write_onnx", watched)
    return paths


@pytest.mark.parametrize(("dtype", "names"), [("fp32", BOTH), ("bf16", {runtimes.OPENVINO})])
def test_they_are_incumbents_on_one_file(dtype, names, written, monkeypatch):
    settings = []
    compile_model, session = openvino.compile_model, onnxruntime.InferenceSession
    monkeypatch.setattr(openvino, "compile_model", lambda *args: settings.append(args) or compile_model(*args))
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, so, **how: settings.append((path, so)) or session(path, so, **how)
    )
    torch.set_num_threads(2)
    result = measured(dtype)
    assert (result.error, result.wrong, result.failed, result.missing) == ("", {}, {}, {})
    assert {*result.incumbents} == names | {"torchvision"}
    (path,) = written
    (_, device, given), *other = settings
    assert device == "CPU"
    assert given == {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(dtype, dtype),
        "INFERENCE_NUM_THREADS": 2,
        "PERFORMANCE_HINT": "LATENCY",
    }
    assert [(name, so.intra_op_num_threads) for name, so in other] == [(str(path), 2)] * (dtype == "fp32")
    # PyTorch's allocator knows nothing of theirs.
    assert set(result.memory) == {"dispatched", "torchvision"}
    gc.collect()
    assert not path.parent.exists()


@pytest.mark.parametrize(("dtype", "factor"), [("fp32", 1 + 1e-4), ("bf16", 1.1)])
def test_a_wrong_one_is_said_and_not_timed(dtype, factor):
    """fp32: as far off as fp16 or TF32 would be; bf16: a tenth."""
    result = measured(dtype, lambda network: Labelled(network, factor))
    names = {name for name, precisions in runtimes.PRECISIONS.items() if dtype in precisions}
    assert set(result.wrong) == names
    assert [*result.incumbents] == ["torchvision"]
    assert result.ratio() is not None
    assert "OpenVINO computes something else: output 0: error" in report.line(result)


def test_one_that_cannot_read_the_file_is_said(monkeypatch):
    def fails(*args):
        raise RuntimeError("unknown operator")

    monkeypatch.setattr(openvino, "compile_model", fails)
    result = measured()
    assert result.failed == {"OpenVINO": "RuntimeError: unknown operator"}
    assert {*result.incumbents} == {"torchvision", "onnxruntime"}


@pytest.mark.parametrize(
    ("absent", "left"), [("openvino", {"onnxruntime"}), ("onnxruntime", {"OpenVINO"}), ("onnxscript", set())]
)
def test_one_that_is_missing_is_said(absent, left, monkeypatch):
    find = runtimes.importlib.util.find_spec
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    result = measured()
    assert {*result.incumbents} == left | {"torchvision"}
    assert result.missing == dict.fromkeys(BOTH - left, "pip install 'atrousops[export]'")
    for name in BOTH - left:
        assert f"without {name}: pip install 'atrousops[export]'" in report.line(result)


def test_nothing_is_written_without_files(written):
    result = measured(files=False)
    assert [*result.incumbents] == ["torchvision"]
    assert not written
    assert "without OpenVINO: no part of --quick" in report.line(result)


def test_quick_writes_none(monkeypatch):
    given = []
    monkeypatch.setattr(run, "run", lambda rows, device, options, **how: given.append(options) or 1 / 0)
    for more in ([], ["--quick"]):
        parser = command.argparse.ArgumentParser()
        command.add_arguments(parser, lambda least: int)
        with pytest.raises(ZeroDivisionError):
            command.main(parser.parse_args(["--device", "cpu", "--suite", "networks", *more]))
    assert [options.files for options in given] == [True, False]


def test_not_on_a_gpu_nor_in_training(written):
    prepare = module(net(AtrousConv2d), net(nn.Conv2d), lambda: torch.randn(1, 3, 7, 9), in_file=Labelled)
    for device, direction in (("meta", "forward"), ("cpu", "training")):
        with torch.device(device):
            prepared = prepare(Setting(torch.device(device), "fp32", "nhwc", direction))
        assert [*prepared.theirs] == ["torchvision"]
        assert not prepared.from_file
        assert not prepared.missing


def test_rows():
    keys = {row.key for row in suite_rows("networks")}
    for network in (
        "deeplabv3_resnet50 optimised, 513x513",
        "deeplabv3_mobilenet_v3_large optimised, 513x513",
        "enet optimised, 360x480",
        "fcn_resnet50 optimised, 513x513",
        "unet optimised, 360x480",
    ):
        assert {f"networks/{network}/{dtype}/nhwc/forward" for dtype in ("fp32", "bf16")} <= keys


def test_the_environment_names_their_versions():
    versions = machine.environment(CPU)["versions"]
    assert versions["openvino"]
    assert versions["onnxruntime"] == onnxruntime.__version__
    json.dumps(versions)
