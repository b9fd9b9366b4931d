"""Rows of TIFF files that are not read whole: as the whole picture has them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from atrousops.data import Pixels, bands
from atrousops.data.decode import PictureError
from atrousops.data.strips import TiffRows, open_rows


def numbers(channels, dtype=np.uint8, height=150, width=70):
    most = 1 if dtype == np.float32 else np.iinfo(dtype).max
    values = np.random.default_rng(0).uniform(0, most, (height, width, channels))
    return (values if dtype == np.float32 else np.rint(values)).astype(dtype).squeeze()


def save(path, samples, **options):
    kind = "rgb" if samples.ndim == 3 and samples.shape[2] == 3 else "minisblack"
    tifffile.imwrite(path, samples, photometric=kind, planarconfig="contig" if samples.ndim == 3 else None, **options)


# Tiles that do not divide the sides, strips of some rows, one strip, differences along rows, the other byte order.
STORED = [
    {"tile": (32, 48)},
    {"tile": (32, 48), "compression": "zlib", "predictor": True},
    {"rowsperstrip": 16, "compression": "zlib"},
    {"rowsperstrip": 150, "compression": "zlib"},
    {"rowsperstrip": 16},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"byteorder": ">", "tile": (64, 64), "compression": "zlib"},
]


@pytest.mark.parametrize("options", STORED, ids=str)
@pytest.mark.parametrize(
    ("channels", "dtype", "pixels"),
    [
        (3, np.uint8, Pixels()),
        (1, np.uint8, Pixels()),
        (1, np.uint8, Pixels(1)),
        (5, np.uint16, Pixels(5)),
        (5, np.uint16, Pixels(5, 4095.0)),
        (2, np.float32, Pixels(2, 0.5)),
    ],
    ids=["RGB", "grey as RGB", "grey", "bands", "scaled", "floats"],
)
def test_rows_are_those_of_the_whole_picture(tmp_path, options, channels, dtype, pixels):
    if options.get("predictor") and dtype == np.float32:
        options = {**options, "predictor": False}  # of floats, it takes another package
    path = tmp_path / "a.tif"
    save(path, numbers(channels, dtype), **options)
    whole = bands.read_picture(path, pixels)
    rows = open_rows(path, pixels, 0)
    assert rows.shape == (150, 70)
    # From the top with an overlap, one row, the end, and back to the start.
    for top, bottom in ((0, 40), (30, 75), (74, 75), (149, 150), (0, 1), (0, 150)):
        found = rows.read(top, bottom)
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[top:bottom])


def test_little_of_a_large_file_is_kept(tmp_path):
    path = tmp_path / "a.tif"
    save(path, numbers(3, height=640), tile=(32, 32), compression="zlib")
    rows = TiffRows(path)
    for top in range(0, 600, 20):
        rows.read(top, top + 40)
        assert len(rows._bands) <= 3


def test_tiles_that_are_not_stored_are_zero(tmp_path):
    path = tmp_path / "a.tif"
    blank = np.zeros((64, 64), np.uint8)
    tiles = (blank if index else blank + 7 for index in range(2))
    tifffile.imwrite(path, tiles, shape=(64, 128), dtype=np.uint8, tile=(64, 64), photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([tag.value[0], 0])
    found = TiffRows(path).read(0, 64)[..., 0]
    assert (found[:, :64] == 7).all()
    assert not found[:, 64:].any()


def test_what_is_read_whole(tmp_path):
    """None, and so by the one decoder: small, turned, transparent, palettes, planes, 16 bits whose white is unknown."""
    path = tmp_path / "a.tif"
    save(path, numbers(3))
    assert open_rows(path, Pixels(), 150 * 70) is None
    assert open_rows(path, Pixels(), 150 * 70 - 1) is not None
    assert open_rows(path, Pixels(4), 0) is None
    save(path, numbers(3), extratags=[(274, "H", 1, 6, True)])
    assert open_rows(path, Pixels(), 0) is None
    for samples in (numbers(4), numbers(1, np.uint16)):
        save(path, samples)
        assert open_rows(path, Pixels(), 0) is None
    tifffile.imwrite(path, numbers(3).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert open_rows(path, Pixels(), 0) is None
    Image.fromarray(numbers(1)).convert("P").save(path)
    assert open_rows(path, Pixels(), 0) is None
    path.write_bytes(b"nothing")
    assert open_rows(path, Pixels(), 0) is None
    assert open_rows(tmp_path / "a.png", Pixels(), 0) is None


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "zlib"}], ids=["plain", "tiles"])
def test_a_file_that_is_cut(tmp_path, options):
    path = tmp_path / "a.tif"
    save(path, numbers(3), **options)
    rows = TiffRows(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(PictureError, match=r"a\.tif: cannot be read: "):
        TiffRows(path).read(100, 150)
    with pytest.raises(PictureError, match=r"a\.tif: cannot be read: "):
        rows.read(100, 150)
