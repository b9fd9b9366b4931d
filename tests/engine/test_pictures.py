import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from atrousops.engine import pictures
from atrousops.engine.pictures import PictureError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(folder, image, name="picture.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.gif", "a.ppm", "noextension"])
def test_lossless_kinds_come_back_as_they_were(tmp_path, name):
    image = Image.fromarray(RGB // 64 * 64)
    image = image.quantize(64, dither=Image.Dither.NONE) if name == "a.gif" else image
    kind = {"noextension": {"format": "PNG"}, "a.webp": {"lossless": True}}.get(name, {})
    read = pictures.read_picture(saved(tmp_path, image, name, **kind))
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    assert read.dtype == np.uint8


def test_jpeg_and_cmyk_are_near(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    for mode in ("RGB", "CMYK"):
        read = pictures.read_picture(saved(tmp_path, flat.convert(mode), "a.jpg", quality=95))
        assert np.abs(read.astype(int) - [200, 100, 50]).max() <= 4, mode


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(RGB).convert("L" if mode in ("1", "L", "LA") else "RGB").convert(mode)
    np.testing.assert_array_equal(pictures.read_picture(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


def test_transparent_palette_shows_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB).convert("P"), transparency=bytes(256))
    assert (pictures.read_picture(path) == 255).all()


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = (255, 0, 51)
    # Black: opaque, absent, and a fifth over white.
    np.testing.assert_array_equal(
        pictures.read_picture(saved(tmp_path, Image.fromarray(rgba)))[0, :, 0], np.array([0, 255, 204], dtype=np.uint8)
    )


def test_16_bit_grey(tmp_path):
    values = np.array([[0, 257, 128, 129, 65535, 32896]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        read = pictures.read_picture(saved(tmp_path, Image.fromarray(values), name))
        np.testing.assert_array_equal(read[0, :, 0], [0, 1, 0, 1, 255, 128])
        assert read.shape == (1, 6, 3)


def test_32_bit_greys(tmp_path):
    cases = {
        # In 0..1, a float is a share of white; otherwise from least to largest; NaN is 0.
        (0.0, 0.5, 1.0): [0, 128, 255],
        (-1.0, 0.0, 3.0): [0, 64, 255],
        (float("nan"), 0.25, 1.0): [0, 64, 255],
        (7.0, 7.0, 7.0): [0, 0, 0],
    }
    for values, expected in cases.items():
        path = saved(tmp_path, Image.fromarray(np.array([values], dtype=np.float32)), "a.tif")
        np.testing.assert_array_equal(pictures.read_picture(path)[0, :, 0], expected)
    for values, expected in {(0, 7, 255): [0, 7, 255], (0, 257, 65535): [0, 1, 255], (-5, 0, 5): [0, 128, 255]}.items():
        path = saved(tmp_path, Image.fromarray(np.array([values], dtype=np.int32)), "a.tif")
        np.testing.assert_array_equal(pictures.read_picture(path)[0, :, 0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(pictures.read_picture(saved(tmp_path, Image.fromarray(RGB), exif=exif)), turned)


def test_broken_exif_does_not_hide_the_pixels(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken")
    np.testing.assert_array_equal(pictures.read_picture(path), RGB)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        lossless = {"lossless": True} if name == "a.webp" else {}
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **lossless)
        assert (pictures.read_picture(path) == (255, 0, 0)).all(), name


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
def test_truncated_file(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PictureError, match=f"{name}: cannot be read: |{name}: not an image"):
        pictures.read_picture(path)


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
        with pytest.raises(PictureError) as caught:
            pictures.read_picture(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_a_picture_or_a_message(tmp_path):
    # A cheap fuzz: whatever Pillow raises becomes a PictureError.
    random = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.tif", "a.gif"):
        path = saved(tmp_path, Image.fromarray(RGB), name)
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[random.integers(len(data), size=3)] = random.integers(256, size=3)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(PictureError):
                assert pictures.read_picture(path).shape[2] == 3


def test_files_of_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "old_mask.png", "old_overlay.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "deep.png").touch()

    def names(*inputs, **options):
        files, errors = pictures.picture_files(inputs, **options)
        return [f.name for f in files], [str(e) for e in errors]

    assert names(tmp_path) == (["a.JPG", "b.png", "old_mask.png", "old_overlay.png"], [])
    assert names(tmp_path, skip=tmp_path) == (["a.JPG", "b.png"], [])
    # A file named outright is taken as it is, and once.
    assert names(tmp_path / "c.txt", tmp_path / "b.png", tmp_path, skip=tmp_path) == (["c.txt", "b.png", "a.JPG"], [])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert names(empty) == ([], [f"{empty}: no pictures directly in this folder"])


def test_result_names_never_meet(tmp_path):
    def names(*files, folder="out"):
        return pictures.result_names([tmp_path / f for f in files], tmp_path / folder)

    assert names("a.jpg", "b.png") == ["a", "b"]
    assert names("a.jpg", "a.png") == ["a_jpg", "a_png"]
    assert names("x/a.jpg", "y/a.jpg", "A.JPG") == ["a_jpg", "a_jpg_2", "A_JPG_3"]
    assert names("a.jpg", "a.png", "a_jpg.png") == ["a_jpg", "a_png", "a_jpg_2"]
    assert names("a.tar.png", ".png") == ["a.tar", ".png"]
    assert [len(name) for name in names("n" * 250 + ".jpg", "n" * 251 + ".jpg")] == [204, 206]
    # Results beside the inputs never replace one of them.
    assert names("a.jpg", "a_mask.png", folder=".") == ["a_2", "a_mask"]


def test_colors():
    colors = pictures.class_colors(["background", *map(str, range(255))])
    assert colors[0].tolist() == [0, 0, 0]
    assert colors[1:].any(axis=1).all(), "black means background alone"
    # VOC has 21 classes; the nearest two of their colours stay apart by more than a shade.
    near = colors[:21].astype(int)
    distance = np.abs(near[:, None] - near[None]).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert distance.min() >= 60
    assert pictures.class_colors(["sky", "background"])[1].tolist() == [0, 0, 0]


def test_mask_keeps_ids(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    colors = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    for count in (256, 2):
        ids = labels % count if count < 256 else labels
        path = tmp_path / "mask.png"
        pictures.write_png(path, pictures.mask_image(ids, colors[:count]))
        with Image.open(path) as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), ids)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[ids])


def test_overlay_tints_classes_but_not_black():
    picture = np.full((12, 20, 3), 100, dtype=np.uint8)
    labels = np.zeros((12, 20), dtype=np.uint8)
    labels[:, 10:] = 1
    colors = np.array([[0, 0, 0], [0, 50, 200]], dtype=np.uint8)
    overlay = np.asarray(pictures.overlay_image(picture, labels, colors, alpha=0.5))
    assert (overlay[:, :9] == 100).all()
    assert (overlay[:, 9] == 255).all(), "the contour, one pixel to each side"
    assert (overlay[:, 10] == (0, 50, 200)).all()
    assert (overlay[:, 11:] == (50, 75, 150)).all()
    assert (picture == 100).all()
    assert pictures.overlay_image(picture[:1, :1], labels[:1, :1], colors).size == (1, 1)
