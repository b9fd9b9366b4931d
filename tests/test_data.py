"""A reader of an archive, and what its labels mean."""

import pytest
import torch
from people import write_people

from atrousops.common.checks import ArgumentError
from atrousops.data import VOID, CamVid, VOCPerson, files, transforms


def test_labels(tmp_path):
    data = VOCPerson(write_people(tmp_path), "train")
    assert len(data) == 4
    _, labels = data[0]
    assert labels.dtype == torch.int64
    assert labels[10, 12] == 1
    assert labels[7, 12] == VOID
    assert labels[39, 0] == 0


def test_training_crop(tmp_path):
    augmentation = transforms.Augmentation(crop=64, size=48, colour=0.0)
    image, labels = VOCPerson(write_people(tmp_path), "train", transforms.training(augmentation))[0]
    # Larger than the image: what lies outside is void, and grey, which normalises to about 0.
    assert image.shape == (3, 64, 64)
    assert labels.shape == (64, 64)
    assert bool((labels == VOID).any())
    assert image[:, labels == VOID].abs().median() < 0.02


def test_denormalise():
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    image = transforms.evaluation()(transforms.tv_tensors.Image(picture))
    torch.testing.assert_close(transforms.denormalise(image), picture.float())


def test_camvid(real_data):
    data = CamVid(real_data, "val")
    assert len(data) == 101
    image, labels = data[0]
    assert image.shape == (3, 360, 480)
    assert set(labels.unique().tolist()) <= {*range(11), VOID}


def test_bad_split(tmp_path):
    with pytest.raises(ArgumentError, match="train, val"):
        VOCPerson(write_people(tmp_path), "test")


def test_not_an_archive(tmp_path):
    (tmp_path / "voc_person.zip").write_bytes(b"<html>")
    with pytest.raises(ArgumentError, match="folder or a zip archive"):
        VOCPerson(tmp_path)


def test_missing_member(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        files.Files(write_people(tmp_path) / "voc_person.zip").read("nothing.txt")
