"""Pictures of 8, 12 and 16 bits and floats, of any number of channels: as stored, divided by the scale."""

import dataclasses
import io
import sys

import numpy as np
import own
import pytest
import tifffile
import torch
from PIL import Image
from torchvision import tv_tensors

from atrousops.common.checks import ArgumentError
from atrousops.data import Pixels, bands, decode, transforms
from atrousops.data.decode import PictureError


def numbers(channels, dtype, most):
    values = np.random.default_rng(0).integers(0, most, (6, 9, channels), endpoint=True)
    return values.astype(dtype)


def deep_png(path, samples, *more):
    """With 16 bits per colour."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    path.write_bytes(own.png(width, height, 16, 2 if channels == 3 else 6, rows, *more))


def pillow(path, samples):
    Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).save(path)


def pages(path, samples):
    tifffile.imwrite(path, np.moveaxis(samples, 2, 0), photometric="minisblack")


def interleaved(path, samples, **options):
    tifffile.imwrite(path, samples, photometric="minisblack", planarconfig="contig", **options)


@pytest.mark.parametrize(
    ("name", "save", "channels", "dtype", "most", "scale"),
    [
        ("bytes.png", pillow, 1, np.uint8, 255, 255),
        ("colours.png", pillow, 3, np.uint8, 255, 255),
        ("alpha.PNG", pillow, 4, np.uint8, 255, 255),  # four channels, not laid on white
        ("camera.tif", pillow, 1, np.uint16, 4095, 4095),  # 12 bits, saved in 16
        ("depth.png", pillow, 1, np.uint16, 65535, 65535),
        ("floats.tif", pillow, 1, np.float32, 3000, 1000),
        ("rgb.tif", interleaved, 3, np.uint16, 10000, 10000),
        ("five.tif", interleaved, 5, np.uint16, 10000, 10000),
        ("pages.TIFF", pages, 5, np.float32, 3000, 1000),
        ("signed.tif", interleaved, 2, np.int16, 3000, 1000),
        ("array.npy", np.save, 7, np.float64, 3000, 1000),
        ("deep.png", deep_png, 3, np.uint16, 65535, 65535),  # Pillow would keep the upper bytes
        ("deep.PNG", deep_png, 4, np.uint16, 4095, 4095),
    ],
)
def test_as_stored_by_the_scale(tmp_path, name, save, channels, dtype, most, scale):
    samples = numbers(channels, dtype, most)
    if np.issubdtype(dtype, np.signedinteger) or np.issubdtype(dtype, np.floating):
        samples[0, 0] = -100
    save(tmp_path / name, samples)
    picture = bands.read_picture(tmp_path / name, Pixels(channels, scale))
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, samples.astype(np.float64) / scale, rtol=1e-7)
    with pytest.raises(PictureError, match=rf"{name}: has shape .*, where the network reads 8 channels"):
        bands.read_picture(tmp_path / name, Pixels(8, scale))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_pillows(tmp_path, orientation):
    """Of TIFFs that Pillow does not read, as of those that it does."""
    samples = numbers(3, np.uint8, 255)
    for dtype, name in ((np.uint8, "eight.tif"), (np.uint16, "sixteen.tif")):
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / name, samples.astype(dtype), photometric="rgb", extratags=tags)
    upright = decode.read_image(tmp_path / "eight.tif")
    found = bands.read_picture(tmp_path / "sixteen.tif", Pixels(3, 1.0))
    np.testing.assert_array_equal(found, upright)


def test_what_is_no_number(tmp_path):
    samples = numbers(5, np.float32, 3000)
    samples[2, 3, 1], samples[4, 5, 0] = np.nan, np.inf
    interleaved(tmp_path / "a.tif", samples)
    with pytest.raises(
        PictureError, match=r"a\.tif: 2 of 270 samples are NaN or infinite; give them a number, and let"
    ):
        bands.read_picture(tmp_path / "a.tif", Pixels(5, 1000.0))
    np.save(tmp_path / "a.npy", samples.astype(np.complex64))
    with pytest.raises(PictureError, match=r"a\.npy: holds complex64, where integers or floats are needed"):
        bands.read_picture(tmp_path / "a.npy", Pixels(5, 1000.0))
    np.save(tmp_path / "b.npy", numbers(5, np.float32, 3000))
    with pytest.raises(PictureError, match=r"b\.npy: holds float32, where uint8 or uint16 is needed, or data\.scale"):
        bands.read_picture(tmp_path / "b.npy", Pixels(5))
    with pytest.raises(ArgumentError, match=r"scale must be positive, .* got 0"):
        Pixels(5, 0)


def test_files_that_cannot_be_read(tmp_path):
    """By the first decoder's words, not those of the one that reads what the first cannot."""
    for name in ("a.png", "a.jpg", "a.tif"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(
            PictureError, match=rf"{name}: (not an image that Pillow can read|cannot be read: not a TIFF)"
        ):
            bands.read_picture(tmp_path / name, Pixels(3, 255.0))
    deep_png(tmp_path / "b.png", numbers(3, np.uint16, 65535))
    with pytest.raises(PictureError, match=r"b\.png: page 2 was asked for"):
        bands.read_picture(tmp_path / "b.png", Pixels(3, 255.0, page=2))
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:90])
    with pytest.raises(PictureError, match=r"b\.png: cannot be read: .*"):
        bands.read_picture(tmp_path / "b.png", Pixels(3, 255.0))


def test_deep_colours_without_their_reader(tmp_path, monkeypatch):
    deep_png(tmp_path / "a.png", numbers(3, np.uint16, 65535))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(PictureError, match=r"a\.png: PNG with 16 bits per colour, .*: pip install imagecodecs"):
        bands.read_picture(tmp_path / "a.png", Pixels(3, 65535.0))


def test_deep_colours_are_upright(tmp_path):
    """EXIF's orientation 6, a quarter turn clockwise, in a chunk of PNG's."""
    samples = numbers(3, np.uint16, 65535)
    exif = Image.Exif()
    exif[274] = 6
    deep_png(tmp_path / "a.png", samples, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    found = bands.read_picture(tmp_path / "a.png", Pixels(3, 65535.0))
    np.testing.assert_allclose(found, np.rot90(samples, -1) / 65535, rtol=1e-6)


def grey_pages(path, **options):
    first, *others = (Image.new("L", (4, 3), value) for value in (10, 20, 30))
    first.save(path, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png"])
@pytest.mark.parametrize("pixels", [Pixels(), Pixels(1), Pixels(1, 255.0)], ids=["RGB", "grey", "as stored"])
def test_pages_and_frames(tmp_path, name, pixels):
    if name == "a.gif" and pixels.scale is not None:
        pixels = Pixels(3, pixels.scale)  # a palette becomes its colours
    path = tmp_path / name
    grey_pages(path)
    assert decode.pages_in(path) == 3
    white = 1 if pixels.scale is None else pixels.scale
    for page, value in ((1, 10), (2, 20), (3, 30)):
        found = bands.read_picture(path, dataclasses.replace(pixels, page=page))
        assert found.shape == (3, 4, pixels.channels)
        np.testing.assert_array_equal(found, np.float32(value / white))
    with pytest.raises(PictureError, match=rf"{name}: page 4 was asked for, and there are 3"):
        bands.read_picture(path, dataclasses.replace(pixels, page=4))


def test_a_page_that_pillow_does_not_read(tmp_path):
    path = tmp_path / "a.tif"
    samples = numbers(5, np.uint16, 65535)
    for value in (samples, samples[::-1]):
        interleaved(path, value, append=True)
    np.testing.assert_array_equal(bands.read_picture(path, Pixels(5, page=2)), samples[::-1])
    with pytest.raises(PictureError, match=r"a\.tif: page 3 was asked for, and there are 2"):
        bands.read_picture(path, Pixels(5, page=3))
    with pytest.raises(ArgumentError, match=r"page must be at least 1.* got 0"):
        Pixels(page=0)


def test_files_of_one_page(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.tif").write_bytes(b"nothing")
    assert [decode.pages_in(tmp_path / name) for name in ("a.png", "b.tif", "absent.gif", "c.npy")] == [1] * 4
    with pytest.raises(PictureError, match=r"a\.png: page 2 was asked for, and there is 1"):
        bands.read_picture(tmp_path / "a.png", Pixels(page=2))


def test_larger_files_by_leave(tmp_path, monkeypatch):
    """Pillow refuses twice its limit; here that is made small."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"more than the 100 pixels that Pillow reads; .*`segment --largest`"):
        decode.read_image(tmp_path / "a.png")
    decode.allow(199)
    assert decode.read_image(tmp_path / "a.png").shape == (10, 20, 3)
    decode.allow(198)
    with pytest.raises(PictureError, match="more than the 198 pixels"):
        decode.read_image(tmp_path / "a.png")


def test_without_tifffile(tmp_path, monkeypatch):
    interleaved(tmp_path / "a.tif", numbers(5, np.uint16, 9))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(PictureError, match=r"a\.tif: .* the package tifffile may read it: pip install tifffile"):
        bands.read_picture(tmp_path / "a.tif", Pixels(5, 9.0))


def test_masks_in_arrays(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([[0, 300]], np.uint16))
    stream.seek(0)
    np.testing.assert_array_equal(bands.integers_from(stream, "a.npy"), [[0, 300]])
    stream = io.BytesIO()
    np.save(stream, np.zeros((1, 2), np.float32))
    stream.seek(0)
    with pytest.raises(PictureError, match=r"a\.npy: a mask must be integers \(H, W\); it is float32"):
        bands.integers_from(stream, "a.npy")


def test_training_keeps_what_is_beyond_0_to_1():
    """With a scale numbers are no colours: jitter does not cut them, and the mean is outside of the image."""
    image = tv_tensors.Image(torch.linspace(-3, 5, 3 * 8 * 8).view(3, 8, 8))
    labels = tv_tensors.Mask(torch.ones(8, 8, dtype=torch.uint8))
    mean, std = (1.0, 2.0, 3.0), (0.5, 1.0, 2.0)
    crop = transforms.Augmentation(crop=(8, 16), size=8, scale=(1.0, 1.0), flip=False, colour=0.0)
    seen, classes = transforms.training(crop, mean, std, 1.0)(image, labels)
    inside = classes == 1
    assert int(inside.sum()) == 64
    whole = transforms.evaluation(mean, std)(image, labels)[0]
    torch.testing.assert_close(seen[:, inside], whole.flatten(1))
    torch.testing.assert_close(seen[:, ~inside], torch.zeros(3, 64))
