"""Networks as ONNX files and exported programs: what other programs compute from them is what the network says."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from small_networks import OTHERS, SMALL
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.segmentation.deeplabv3 import ASPP as torchvision_aspp

import atrousops as ao
from atrousops import cli, models
from atrousops.common.checks import ArgumentError
from atrousops.engine.export import TOLERANCE, differences, export
from atrousops.models.pspnet import averaging

# A batch, an odd size, and one below the 64 pixels at which some networks mirror the image.
SHAPES = [(2, 3, 64, 80), (1, 3, 97, 65), (3, 3, 40, 33)]


def held(network, path, shapes=SHAPES):
    for found in differences(network, path, shapes):
        assert found.largest <= TOLERANCE, found


def onnx(network, path):
    """Exports a network, and holds onnxruntime and OpenVINO to it."""
    export(network, path, (64, 96), info=getattr(network, "info", None))
    held(network, path)
    image = torch.randn(1, 3, 97, 65, generator=torch.Generator().manual_seed(1))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    (got,) = openvino.compile_model(str(path), "CPU", settings)([image.numpy()]).values()
    expected = network(image)["out"].detach().numpy()
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


# The weights that come with the package: an atrous pyramid of depthwise layers, and valid convolutions behind mirrored
# borders.
@pytest.mark.parametrize("name", models.list())
def test_shipped_networks(name, tmp_path):
    network = models.load(name)
    path = tmp_path / "network.onnx"
    onnx(network, path)

    meta = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    wanted = json.loads(json.dumps(dataclasses.asdict(network.info)))
    assert json.loads(meta["atrousops"]) == wanted


# A dense CRF and networks that find objects are refused: tests below, and docs/roads.md.
REFUSED = ("crfrnn", "mask_rcnn", "metric_learning")


@pytest.mark.parametrize("name", [name for name in models.list("networks") if name not in REFUSED])
def test_networks(name, tmp_path):
    torch.manual_seed(0)
    network = models.build(name, num_classes=3, **(SMALL | OTHERS).get(name, {})).eval()
    for parameter in network.parameters():
        if not parameter.any():
            # Scores that start at zero would hide everything.
            nn.init.normal_(parameter, std=0.1)
    onnx(network, tmp_path / "network.onnx")


class Layers(nn.Module):
    """Every operator that a network for inference has, with what ONNX lacks: 'same' at an even extent, unpooling."""

    def __init__(self):
        super().__init__()
        self.down = ao.AtrousConv2d(3, 8, 3, padding=2, dilation=2, stride=2)
        self.same = ao.AtrousConv2d(8, 8, 4, padding="same", dilation=3, groups=4)
        self.pool = ao.nn.MaxPool2d(3, 2, 1, return_indices="codes")
        self.unpool = ao.nn.MaxUnpool2d(3, 2, 1)
        self.up = ao.AtrousConvTranspose2d(8, 5, 4, stride=2, padding=1)

    def forward(self, image):
        x = self.same(self.down(image)).relu()
        pooled, codes = self.pool(x)
        return {"out": self.up(self.unpool(pooled, codes, output_size=x.shape[-2:]) + x)}


class Stock(nn.Module):
    """PyTorch's layers, and all that `optimize` makes one call of: normalisation, each activation, residuals, ASPP."""

    def __init__(self):
        super().__init__()
        steps = [layer for kind in (nn.ReLU6, nn.Hardswish, nn.SiLU) for layer in (*self.step(8), kind())]
        self.steps = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), *steps)
        self.residual = BasicBlock(8, 8)
        self.aspp = torchvision_aspp(8, [2, 3], 6)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 2, 4, stride=2, padding=1)

    def step(self, width):
        return nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=2, bias=False), nn.BatchNorm2d(width)

    def forward(self, image):
        return {"out": self.up(self.pool(self.aspp(self.residual(self.steps(image)))))}


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("tool", ["ours", "converted", "optimised"])
def test_layers(tool, suffix, tmp_path):
    torch.manual_seed(0)
    network = Layers().eval() if tool == "ours" else Stock().eval()
    if tool == "converted":
        ao.convert(network)
    if tool == "optimised":
        network = ao.optimize(network)
        assert all(f"\n  {name} " in str(ao.optimization_report(network)) for name in ("steps", "residual", "aspp"))
    path = tmp_path / f"network.{suffix}"
    export(network, path, (32, 40))
    held(network, path)


# A loop over the images of a batch, and in-place writes.
def test_msd_serves_any_batch(tmp_path):
    network = models.build("msd", num_classes=3, depth=3).eval()
    nn.init.normal_(network.score.weight)
    export(network, tmp_path / "network.pt2", (32, 40))
    held(network, tmp_path / "network.pt2")


def test_a_program_runs_without_the_package(tmp_path):
    export(Layers().eval(), tmp_path / "network.pt2", (32, 32))
    code = (
        "import sys, torch\n"
        "files = {'info.json': ''}\n"
        f"program = torch.export.load({str(tmp_path / 'network.pt2')!r}, extra_files=files)\n"
        "assert program.module()(torch.zeros(1, 3, 48, 56)).shape == (1, 5, 48, 56)\n"
        "assert files['info.json'] in ('null', b'null') and 'atrousops' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# Bins that overlap, that divide the side, and more bins than positions.
@pytest.mark.parametrize(("side", "bins"), [(7, 3), (6, 2), (2, 6)])
def test_pyramid_pooling_for_any_size(side, bins):
    x = torch.randn(1, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = averaging(side, bins, x)
    torch.testing.assert_close(matrix @ x @ matrix.T, torch.nn.functional.adaptive_avg_pool2d(x, bins))


def test_what_no_file_can_hold_is_refused(tmp_path):
    path = tmp_path / "network.onnx"
    with pytest.raises(ArgumentError, match=r"must have no dense CRF; got one at crf\. The lattice .* hash table"):
        export(nn.ModuleDict({"net": nn.Conv2d(3, 2, 1), "crf": ao.DenseCRF()}).eval(), path)
    with pytest.raises(ArgumentError, match=r"must have no dense CRF; got one at its root\."):
        export(ao.nn.CRFasRNN(2).eval(), path)
    with pytest.raises(ArgumentError, match=r"must give every pixel scores; got MaskRCNN, which finds objects"):
        export(models.build("mask_rcnn", num_classes=2).eval(), path)
    with pytest.raises(ArgumentError, match=r"path must end in \.onnx or \.pt2; got 'network\.pb'"):
        export(nn.Conv2d(3, 2, 1).eval(), tmp_path / "network.pb")
    with pytest.raises(ArgumentError, match=r"must be in evaluation mode; got training mode\. Call network\.eval"):
        export(nn.Conv2d(3, 2, 1), path)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    path = tmp_path / "nuclei.pt2"
    assert cli.main(["export", "unet_nuclei", "-o", str(path), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: unet, {len(models.load('unet_nuclei').info.classes)} classes, ")
    assert [line.partition(":")[0] for line in lines[1:]] == ["(1, 3, 96, 96)", "(2, 3, 129, 81)", "(3, 3, 65, 103)"]

    assert cli.main(["export", "no_such", "-o", str(path)]) == 1
    assert "no file no_such; weights that come with the package:" in capsys.readouterr().err
