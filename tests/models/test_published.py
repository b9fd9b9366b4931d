"""Checkpoints of others: checked, read without running code, and as good as they were said to be."""

import hashlib

import pytest
import torch
import torchvision
from PIL import Image

from atrousops import cli, models
from atrousops.common.checks import ArgumentError
from atrousops.data import CamVid, transforms
from atrousops.engine import predict
from atrousops.metrics import ConfusionMatrix
from atrousops.models import published


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A state dict of torchvision's FCN, as if it had been published."""
    theirs = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    path = tmp_path / "fcn.pth"
    torch.save(theirs.state_dict(), path)
    change = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:8]}
    entry = published.Published(**{**vars(models.PUBLISHED["fcn_resnet50_voc"]), **change})
    monkeypatch.setitem(published.PUBLISHED, "fcn_resnet50_voc", entry)
    return path


def test_segment(small, tmp_path):
    Image.effect_mandelbrot((90, 50), (-2, -1, 1, 1), 100).save(tmp_path / "photo.png")
    options = ("--model", "fcn_resnet50_voc", "--weights", small, "-o", tmp_path / "out")
    assert cli.main([str(a) for a in ("segment", tmp_path / "photo.png", *options)]) == 0
    assert Image.open(tmp_path / "out" / "photo_mask.png").size == (90, 50)


def test_segment_by_an_unknown_name(small, tmp_path, capsys):
    Image.new("RGB", (9, 5)).save(tmp_path / "photo.png")
    options = ("--model", "abacus", "--weights", small, "-o", tmp_path / "out")
    assert cli.main([str(a) for a in ("segment", tmp_path / "photo.png", *options)]) == 1
    assert "must be one of enet_camvid" in capsys.readouterr().err


def test_another_file(small, tmp_path):
    with pytest.raises(models.WeightsError, match=r"begins with cd0a2569.*deeplabv3_resnet50_coco-cd0a2569\.pth"):
        models.load_published("deeplabv3_resnet50_voc", small)
    with pytest.raises(FileNotFoundError, match="it comes from https"):
        models.load_published("enet_camvid", tmp_path / "none.pth")
    with pytest.raises(ArgumentError, match="one of enet_camvid"):
        models.load_published("enet", small)


def test_pickles_are_not_run(tmp_path, monkeypatch):
    """A file of the right hash that would run code is refused."""
    path = tmp_path / "bad.pth"
    torch.save({"weight": Image.new("RGB", (2, 2))}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = published.Published("enet", {}, ("a",), "nowhere", sha256)
    monkeypatch.setitem(published.PUBLISHED, "bad", entry)
    with pytest.raises(models.WeightsError, match="state dict"):
        models.load_published("bad", path)


@pytest.mark.parametrize("name", [name for name in models.PUBLISHED if not name.startswith("maskrcnn")])
def test_entries(name):
    entry = models.PUBLISHED[name]
    # PyTorch's unpooling refuses to run otherwise, even without numbers.
    torch.use_deterministic_algorithms(False)
    with torch.device("meta"):
        network = models.build(entry.network, **entry.arguments).eval()
        # Autocast, which the CRF asks for, knows no such device.
        network = network.network if isinstance(network, models.WithCRF) else network
        found = network(torch.rand(1, 3, 64, 64))
    assert found["out"].shape[1] == len(entry.classes)


# Every 50th of the 233 test images, all of which give 0.529 and 0.569.
@pytest.mark.parametrize(("name", "least"), [("enet_camvid", 0.45), ("espnet_camvid", 0.48)])
def test_camvid(real_data, name, least):
    network = models.load_published(name, real_data / f"{name}.pth")
    info = network.info
    data = CamVid(real_data, "test", transforms.evaluation(info.mean, info.std))
    matrix = ConfusionMatrix(len(info.classes))
    with torch.inference_mode():
        for index in range(0, len(data), 50):
            image, labels = data[index]
            matrix.update(network(image[None])["out"][0].argmax(0), labels)
    assert matrix.mean_iou > least


class Finder(torch.nn.Module):
    def objects(self, image):
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.bool)
        mask[:, : image.shape[1] // 2] = True
        return [2], [0.9], mask


def test_predictor_of_objects():
    """Seen at half its size: the labels come back to the picture's."""
    import numpy as np

    predictor = predict.Predictor(Finder(), ("background", "a", "b"), (0,) * 3, (1,) * 3, size=24)
    labels = predictor(np.zeros((32, 48, 3), dtype=np.uint8))
    assert labels.shape == (32, 48)
    assert (labels[:16] == 2).all()
    assert (labels[16:] == 0).all()
