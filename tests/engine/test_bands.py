"""Pictures and transforms of grey and of many bands."""

import numpy as np
import pytest
import tifffile
import torch
from people import write_people, write_recipe
from PIL import Image
from torchvision import tv_tensors

from atrousops import cli, models
from atrousops.common.checks import ArgumentError
from atrousops.data import transforms
from atrousops.engine import channels, config, train
from atrousops.engine.pictures import PictureError
from atrousops.engine.predict import Predictor


def bands(count, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 7, count), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_read(tmp_path, dtype):
    five = bands(5, dtype)
    np.save(tmp_path / "a.npy", five)
    np.save(tmp_path / "first.npy", np.moveaxis(five, 2, 0))
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(five, 2, 0), photometric="minisblack")
    tifffile.imwrite(tmp_path / "planar.tif", five, photometric="minisblack", planarconfig="contig")
    for name in ("a.npy", "first.npy", "pages.tif", "planar.tif"):
        np.testing.assert_array_equal(channels.read_channels(tmp_path / name, 5), five)


def test_read_grey_and_rgba(tmp_path):
    rgba = bands(4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(channels.read_channels(tmp_path / "a.png", 4), rgba)
    Image.fromarray(rgba[..., :3]).save(tmp_path / "b.png")
    grey = channels.read_channels(tmp_path / "b.png", 1)
    assert np.abs(grey[..., 0].astype(int) - np.asarray(Image.open(tmp_path / "b.png").convert("L"))).max() <= 1


def test_bad_files(tmp_path):
    np.save(tmp_path / "a.npy", bands(5))
    np.save(tmp_path / "float.npy", bands(5) / 2)
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    (tmp_path / "bad.tif").write_bytes(b"nothing")
    cases = (("a.npy", 4, "reads 4 channels"), ("float.npy", 5, "uint8 or uint16"), ("none.npy", 5, "no such file"))
    for name, count, message in (*cases, ("bad.npy", 5, "NumPy can read"), ("bad.tif", 5, "cannot be read")):
        with pytest.raises(PictureError, match=message):
            channels.read_channels(tmp_path / name, count)


def test_to_rgb():
    six = bands(6)
    np.testing.assert_array_equal(channels.to_rgb(six), six[..., :3])
    np.testing.assert_array_equal(channels.to_rgb(six[..., :1]), np.repeat(six[..., :1], 3, 2))
    assert channels.to_rgb(np.full((1, 1, 3), 65535, np.uint16)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("count", [1, 5])
def test_segment(tmp_path, count):
    """Weights of a network of any number of channels label a file of as many."""
    network = models.msd(2, depth=2, in_channels=count)
    mean, std = models.channels.normalisation(count)
    info = models.Info("msd", {"num_classes": 2, "depth": 2, "in_channels": count}, ("a", "b"), mean, std, 64)
    models.save(network, tmp_path / "net.safetensors", info)
    if count == 1:
        Image.fromarray(bands(3)).save(tmp_path / "a.png")
    else:
        np.save(tmp_path / "a.npy", bands(count))
    files = [tmp_path / ("a.png" if count == 1 else "a.npy")]
    arguments = ("segment", *files, "--weights", tmp_path / "net.safetensors", "-o", tmp_path / "out")
    assert cli.main([str(a) for a in arguments]) == 0
    assert Image.open(tmp_path / "out" / "a_mask.png").size == (7, 9)
    assert Image.open(tmp_path / "out" / "a_overlay.png").mode == "RGB"


def test_predictor_of_16_bits():
    """257 times the bytes is the same picture."""
    predictor = Predictor(models.msd(2, depth=2, in_channels=5), ("a", "b"), (0.5,) * 5, (0.25,) * 5)
    five = bands(5)
    wide = predictor.scores(five.astype(np.uint16) * 257)
    torch.testing.assert_close(wide, predictor.scores(five))
    with pytest.raises(ArgumentError, match=r"shape \(H, W, 5\)"):
        predictor(bands(3))
    with pytest.raises(ArgumentError, match="a number for each channel"):
        Predictor(torch.nn.Identity(), ("a",), (0.5,), (1, 1))


def test_greys_of_training_are_those_of_segment(tmp_path):
    """Rounded, of colours that a network of one channel sees; torchvision's grey of bytes is cut."""
    people = write_people(tmp_path)
    model = {"name": "msd", "arguments": {"num_classes": 2, "depth": 2, "in_channels": 1}}
    data = {"name": "voc_person", "mean": [0.5], "std": [0.25]}
    trainer = train.Trainer(config.load(write_recipe(tmp_path, model=model, data=data)), str(people))
    seen, name = trainer.val_set[0][0], trainer.val_set.names[0]
    (tmp_path / "a.jpg").write_bytes(trainer.val_set.files.read(f"JPEGImages/{name}.jpg"))
    picture = channels.read_channels(tmp_path / "a.jpg", 1)
    wanted = Predictor(trainer.model, ("a", "b"), (0.5,), (0.25,)).normalise(picture)[0]
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 5])
def test_transforms(count):
    mean, std = models.channels.normalisation(count)
    labels = tv_tensors.Mask(torch.ones(9, 7, dtype=torch.uint8))
    image = tv_tensors.Image(torch.from_numpy(bands(max(count, 3))).permute(2, 0, 1).contiguous())
    seen, _ = transforms.evaluation(mean, std)(image, labels)
    assert seen.shape == (count, 9, 7)
    # torchvision cuts a grey to a whole number.
    wanted = image.float() if count > 1 else (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert (transforms.denormalise(seen, mean, std) - wanted).abs().max() < 1.01
    small = transforms.Augmentation(crop=16, size=16)
    seen, classes = transforms.training(small, mean, std)(image, labels)
    assert seen.shape == (count, 16, 16)
    assert classes.shape == (16, 16)


def test_wrong_statistics():
    """Three means would make three channels of one without a word."""
    image = tv_tensors.Image(torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="image must have 3 channels"):
        transforms.evaluation()(image, tv_tensors.Mask(torch.zeros(4, 4)))
    with pytest.raises(ArgumentError, match=r"data\.mean and data\.std"):
        config.Data("camvid", mean=(0.5,), std=(1.0, 1.0))


def test_exposure():
    """By hand: brightness 0.5 of 0, 100, 200 has mean 50; contrast 2 puts them at -50, 50, 150; cut below."""
    image = tv_tensors.Image(torch.tensor([0, 100, 200], dtype=torch.uint8).view(1, 1, 3).expand(5, 1, 3))
    seen = transforms.Exposure(0.3).transform(image, {"brightness": 0.5, "contrast": 2.0})
    assert seen[0].tolist() == [[0, 50, 150]]
    assert seen.dtype == torch.uint8
