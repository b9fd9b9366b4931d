"""Image files as pictures and as masks: what every kind of sample becomes, and what is refused, by name."""

import contextlib
import os
import struct

import numpy as np
import own
import pytest
from PIL import Image

from atrousops.data import decode

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
IDS = np.arange(54, dtype=np.uint8).reshape(6, 9) % 16


def saved(folder, image, name="picture.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.gif", "a.ppm", "noextension"])
def test_lossless_kinds_come_back_as_they_were(tmp_path, name):
    image = Image.fromarray(RGB // 64 * 64)
    image = image.quantize(64, dither=Image.Dither.NONE) if name == "a.gif" else image
    kind = {"noextension": {"format": "PNG"}, "a.webp": {"lossless": True}}.get(name, {})
    read = decode.read_image(saved(tmp_path, image, name, **kind))
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    assert read.dtype == np.uint8


def test_jpeg_and_cmyk_are_near(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    for mode in ("RGB", "CMYK"):
        read = decode.read_image(saved(tmp_path, flat.convert(mode), "a.jpg", quality=95))
        assert np.abs(read.astype(int) - [200, 100, 50]).max() <= 4, mode


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(RGB).convert("L" if mode in ("1", "L", "LA") else "RGB").convert(mode)
    np.testing.assert_array_equal(decode.read_image(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


def test_transparent_palette_shows_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB).convert("P"), transparency=bytes(256))
    assert (decode.read_image(path) == 255).all()


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = (255, 0, 51)
    # Black: opaque, absent, and a fifth over white.
    np.testing.assert_array_equal(
        decode.read_image(saved(tmp_path, Image.fromarray(rgba)))[0, :, 0], np.array([0, 255, 204], dtype=np.uint8)
    )


def test_16_bit_grey(tmp_path):
    values = np.array([[0, 257, 128, 129, 65535, 32896]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        read = decode.read_image(saved(tmp_path, Image.fromarray(values), name))
        np.testing.assert_array_equal(read[0, :, 0], [0, 1, 0, 1, 255, 128])
        assert read.shape == (1, 6, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(decode.read_image(saved(tmp_path, Image.fromarray(RGB), exif=exif)), turned)


def test_broken_exif_does_not_hide_the_pixels(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken")
    np.testing.assert_array_equal(decode.read_image(path), RGB)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        lossless = {"lossless": True} if name == "a.webp" else {}
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **lossless)
        assert (decode.read_image(path) == (255, 0, 0)).all(), name


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
def test_truncated_file(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(decode.PictureError, match=f"{name}: cannot be read: |{name}: not an image"):
        decode.read_image(path)


def test_unreadable_files_name_themselves(tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture\n")
    empty = tmp_path / "empty.png"
    empty.touch()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path, reason in {
        text: "not an image that Pillow can read",
        empty: "not an image that Pillow can read",
        pipe: "not a regular file",
        tmp_path / "absent.png": "no such file",
        tmp_path: "a folder",
    }.items():
        with pytest.raises(decode.PictureError) as caught:
            decode.read_image(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_a_picture_or_a_message(tmp_path):
    # A cheap fuzz: whatever Pillow raises becomes a decode.PictureError.
    random = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.tif", "a.gif"):
        path = saved(tmp_path, Image.fromarray(RGB), name)
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[random.integers(len(data), size=3)] = random.integers(256, size=3)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(decode.PictureError):
                assert decode.read_image(path).shape[2] == 3


# White is the largest number of 8, 10, 12, 14 or 16 bits that the values fit, in a TIFF, which need not say.
@pytest.mark.parametrize(("most", "white"), [(255, 255), (1000, 1023), (4095, 4095), (4096, 16383), (20000, 65535)])
def test_16_bit_tiff_that_fills_fewer_bits(tmp_path, most, white):
    values = np.array([[0, most // 2, most]], dtype=np.uint16)
    read = decode.read_image(saved(tmp_path, Image.fromarray(values), "a.tif"))
    np.testing.assert_array_equal(read[0, :, 0], np.floor(values[0] * (255 / white) + 0.5))


def test_the_largest_sample_that_a_tiff_tells_decides(tmp_path):
    values = np.array([[0, 100, 200]], dtype=np.uint16)
    for largest, expected in {4095: [0, 6, 12], 3500: [0, 6, 12], 65535: [0, 0, 1]}.items():
        path = saved(tmp_path, Image.fromarray(values), "a.tif", tiffinfo={281: largest})
        np.testing.assert_array_equal(decode.read_image(path)[0, :, 0], expected)
    # PNG says by its specification that white is 65535, however dark the picture is.
    np.testing.assert_array_equal(decode.read_image(saved(tmp_path, Image.fromarray(values)))[0, :, 0], [0, 0, 1])


def tiff(width, height, bits, data, *tags):
    """A TIFF with one strip and no compression; tags: (number, value) in place of the usual."""
    usual = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = sorted({**usual, **dict(tags)}.items())
    body = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + body + bytes(4)


def test_packed_12_bit_tiff(tmp_path):
    # Two samples in three bytes, 0x7FF and 0xFFF: half and white.
    (tmp_path / "a.tif").write_bytes(tiff(2, 1, 12, bytes([0x7F, 0xFF, 0xFF, 0])))
    np.testing.assert_array_equal(decode.read_image(tmp_path / "a.tif")[0, :, 0], [127, 255])
    # Dark, and still of 12 bits: 0x00F and 0x010.
    (tmp_path / "a.tif").write_bytes(tiff(2, 1, 12, bytes([0x00, 0xF0, 0x10, 0])))
    np.testing.assert_array_equal(decode.read_image(tmp_path / "a.tif")[0, :, 0], [1, 1])
    np.testing.assert_array_equal(decode.read_mask(tmp_path / "a.tif"), [[15, 16]])


def test_tiffs_in_which_zero_is_white(tmp_path):
    """PhotometricInterpretation 0: pictures are inverted, masks refused, for their ids may be meant either way."""
    cases = {8: bytes([0, 55, 255, 0]), 16: np.array([0, 55 * 257, 65535], dtype="<u2").tobytes()}
    for bits, data in cases.items():
        (tmp_path / "a.tif").write_bytes(tiff(3, 1, bits, data, (262, 0)))
        np.testing.assert_array_equal(decode.read_image(tmp_path / "a.tif")[0, :, 0], [255, 200, 0])
        with pytest.raises(decode.PictureError, match=r"a\.tif: a TIFF in which zero is white"):
            decode.read_mask(tmp_path / "a.tif")


def test_16_bit_colours(tmp_path):
    """PNG's are their upper byte. A TIFF's that fill 12 bits would be nearly black, and Pillow drops the rest."""
    raw = np.array([[[0xFFFF, 0x8040, 0x0100]]], dtype=">u2")
    (tmp_path / "a.png").write_bytes(own.png(1, 1, 16, 2, b"\0" + raw.tobytes()))
    np.testing.assert_array_equal(decode.read_image(tmp_path / "a.png"), [[[255, 128, 1]]])
    with pytest.raises(decode.PictureError, match="16 bits per colour"):
        decode.colour_ids_from(open(tmp_path / "a.png", "rb"), "a.png")  # noqa: SIM115
    tifffile = pytest.importorskip("tifffile")
    for most, rest in {65535: {}, 4095: {}, 4000: {"extratags": [(281, 3, 3, (65535,) * 3, True)]}}.items():
        colours = np.full((2, 2, 3), most, dtype=np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", **rest)
        if most == 4095:
            with pytest.raises(decode.PictureError, match=r"a\.tif: 16-bit colours that fill 14 bits or fewer"):
                decode.read_image(tmp_path / "a.tif")
        else:
            assert (decode.read_image(tmp_path / "a.tif") == most >> 8).all()


def test_floats_in_0_to_1_or_not_at_all(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "a.tif")
    np.testing.assert_array_equal(decode.read_image(path)[0, :, 0], [0, 128, 255])
    for values in ([-1.0, 0.0, 3.0], [0.0, 128.0, 255.0], [float("nan"), 0.25, 1.0]):
        saved(tmp_path, Image.fromarray(np.array([values], dtype=np.float32)), "a.tif")
        with pytest.raises(decode.PictureError, match=r"a\.tif: floats from .* where 0\.\.1 can be read"):
            decode.read_image(path)


def test_32_bit_integers(tmp_path):
    for values, expected in {(0, 7, 255): [0, 7, 255], (0, 257, 65535): [0, 1, 255]}.items():
        path = saved(tmp_path, Image.fromarray(np.array([values], dtype=np.int32)), "a.tif")
        np.testing.assert_array_equal(decode.read_image(path)[0, :, 0], expected)
    for values in ((-5, 0, 5), (0, 1, 65536)):
        saved(tmp_path, Image.fromarray(np.array([values], dtype=np.int32)), "a.tif")
        with pytest.raises(decode.PictureError, match=r"a\.tif: integers from .* where 0\.\.65535 can be read"):
            decode.read_image(path)


def test_colours_without_a_reading(tmp_path):
    path = saved(tmp_path, Image.new("LAB", (4, 4)), "a.tif")
    with pytest.raises(decode.PictureError, match=r"a\.tif: samples of mode LAB have no reading as RGB"):
        decode.read_image(path)


def test_beyond_pillows_limit_of_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("1", (40, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    for read in (decode.read_image, decode.read_mask):
        with pytest.raises(decode.PictureError, match=r"picture\.png: more than the 1198 pixels .*MAX_IMAGE_PIXELS"):
            read(path)
    # Pillow only warns up to twice the limit, and so such files are read.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert decode.read_image(path).shape == (30, 40, 3)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.bmp", "a.tif"])
@pytest.mark.parametrize("seed", [0, 1])
def test_palette_masks_are_their_indices(tmp_path, name, seed):
    """Whatever the palette: of the same colour twice, with colours whose luminance is another id."""
    image = Image.fromarray(IDS, "P")
    image.putpalette(np.random.default_rng(seed).integers(0, 4, (256, 3), dtype=np.uint8).tobytes())
    ids = decode.read_mask(saved(tmp_path, image, name))
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, IDS)


def test_masks_of_every_width(tmp_path):
    cases = {
        "1": Image.fromarray(IDS > 7),
        "L": Image.fromarray(IDS),
        "I;16": Image.fromarray(IDS.astype(np.uint16) * 257),
        "I": Image.fromarray(IDS.astype(np.int32) * 70000 - 5),
    }
    for mode, image in cases.items():
        assert image.mode == mode
        ids = decode.read_mask(saved(tmp_path, image, "a.tif"))
        np.testing.assert_array_equal(ids, np.asarray(image).astype(np.int64))
    # PNG's greys of 2 and 4 bits, which Pillow stretches to 0..255, are ids too.
    for bits in (1, 2, 4, 8):
        ids = IDS & (2**bits - 1)
        packed = np.packbits(np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(6, -1), axis=1)
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        (tmp_path / "a.png").write_bytes(own.png(9, 6, bits, 0, rows))
        np.testing.assert_array_equal(decode.read_mask(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "F"])
def test_masks_that_hold_no_ids_are_refused_by_name(tmp_path, mode):
    name = "a.tif" if mode == "F" else "a.png"
    path = saved(tmp_path, Image.fromarray(IDS).convert(mode), name)
    with pytest.raises(decode.PictureError) as caught:
        decode.read_mask(path)
    said = f"{path}: a mask must hold one class id a pixel (mode 1, L, P, I or I;16); its mode is {mode}; "
    assert str(caught.value) == f"{said}convert it to ids first"


def test_masks_whose_compression_changes_ids_are_refused(tmp_path):
    for name, options in (("a.jpg", {}), ("a.tif", {"compression": "jpeg"})):
        path = saved(tmp_path, Image.fromarray(IDS), name, **options)
        with pytest.raises(
            decode.PictureError, match=r"a mask must be PNG, TIFF, BMP or GIF.*it is (JPEG|TIFF with J)"
        ):
            decode.read_mask(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_orientation_of_masks_is_that_of_images(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for dtype in (np.uint8, np.uint16):
        grey = IDS.astype(dtype) * (1 if dtype == np.uint8 else 257)
        path = saved(tmp_path, Image.fromarray(grey), name, exif=exif)
        mask = decode.read_mask(path) // (1 if dtype == np.uint8 else 257)
        assert mask.shape == ((6, 9) if orientation < 5 else (9, 6))
        image = decode.read_image(path)
        # 15 * 257 fits 12 bits, in a TIFF: white is 4095.
        scaled = mask * 257 * 255 / 4095 if dtype == np.uint16 and name == "a.tif" else mask
        np.testing.assert_array_equal(image[..., 0], np.rint(scaled))
        if orientation == 6:
            np.testing.assert_array_equal(mask, np.rot90(IDS, -1))


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_damaged_masks_name_themselves(tmp_path, cut):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(decode.PictureError) as caught:
        decode.read_mask(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
    assert isinstance(caught.value.__cause__, OSError)


def test_colour_ids(tmp_path):
    image = Image.fromarray(np.array([[[5, 7, 3], [255, 255, 255]]], dtype=np.uint8))
    with open(saved(tmp_path, image), "rb") as file:
        ids = decode.colour_ids_from(file, "ids.png")
    np.testing.assert_array_equal(ids, [[5 + 256 * 7 + 65536 * 3, 2**24 - 1]])
    wrong = pytest.raises(decode.PictureError, match=r"ids\.png: a mask must hold ids R .* its mode is P")
    with open(saved(tmp_path, image.convert("P")), "rb") as file, wrong:
        decode.colour_ids_from(file, "ids.png")
