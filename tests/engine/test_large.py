"""Pictures that are labelled and written a row of tiles at a time: the same pixels as whole ones."""

import itertools

import numpy as np
import pytest
import tifffile
import torch
from own import save_floats
from PIL import Image
from test_predict import Narrow

from atrousops.common.files import OutputError
from atrousops.engine import pictures
from atrousops.engine.predict import Predictor
from atrousops.engine.segment import Failed, Segmenter, plan


def network(model=None, channels=3, **options):
    torch.manual_seed(1)
    options = {"tile": 96, "overlap": 24, **options}
    return Predictor(model or Narrow(), ["a", "b", "background"], (0.5,) * channels, (0.2,) * channels, **options)


def only(segmenter, path):
    (found,) = segmenter.run(plan([path], segmenter.folder))
    return found


def read(path):
    return np.asarray(Image.open(path))


# Two rows and columns of the files' tiles, of which the last are not whole; a TIFF, which is read so too, and a PNG.
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_the_same_as_whole(tmp_path, name):
    picture = np.random.default_rng(0).integers(0, 256, (301, 277, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((277, 301), box=(0, 0, 90, 100)))
    path = tmp_path / name
    Image.fromarray(picture).save(path)
    predictor = network()
    whole = only(Segmenter(predictor, tmp_path / "whole"), path)
    large = only(Segmenter(predictor, tmp_path / "large", stream_above=1000), path)
    assert large.mask.name == "a_mask.tif"
    assert whole.mask.name == "a_mask.png"
    assert large.pixels == whole.pixels
    assert sum(large.pixels) == 301 * 277
    assert len(np.flatnonzero(large.pixels)) == 3
    np.testing.assert_array_equal(read(large.mask), read(whole.mask))
    np.testing.assert_array_equal(read(large.overlay), read(whole.overlay))
    for kind in ("mask", "overlay"):
        files = [Image.open(getattr(each, kind)).convert("RGB") for each in (large, whole)]
        np.testing.assert_array_equal(*map(np.asarray, files))
    assert tifffile.TiffFile(large.mask).is_bigtiff


def test_thick_contours_across_tiles(tmp_path):
    """Lines of 2 x 3 pixels, as of a picture of 1500 rows, cross the edges of the files' tiles."""
    rows, columns = np.mgrid[:1500, :1500]
    picture = np.repeat(np.uint8(255 * ((rows // 64 + columns // 100) % 2))[..., None], 3, axis=2)
    path = tmp_path / "a.tif"
    Image.fromarray(picture).save(path)
    model = torch.nn.Conv2d(3, 3, 1)
    found = only(Segmenter(network(model, tile=512), tmp_path / "out", stream_above=1000), path)
    ids = read(found.mask)
    assert len(np.unique(ids)) == 2
    colors = pictures.class_colors(["a", "b", "background"])
    np.testing.assert_array_equal(read(found.overlay), np.asarray(pictures.overlay_image(picture, ids, colors)))


def test_floats_are_shown_by_a_sample_of_rows(tmp_path):
    picture = np.random.default_rng(0).uniform(0, 1, (60, 80, 3))
    save_floats(tmp_path / "a.tif", picture)
    predictor = network(scale=3000.0)
    whole = only(Segmenter(predictor, tmp_path / "whole"), tmp_path / "a.tif")
    large = only(Segmenter(predictor, tmp_path / "large", stream_above=100), tmp_path / "a.tif")
    # Of 60 rows all are sampled.
    np.testing.assert_array_equal(read(large.overlay), read(whole.overlay))
    np.testing.assert_array_equal(read(large.mask), read(whole.mask))


def test_resume(tmp_path):
    path = tmp_path / "a.tif"
    Image.effect_noise((100, 120), 90).convert("RGB").save(path)
    (job,) = plan([path], tmp_path / "out")
    segmenter = Segmenter(network(), tmp_path / "out", stream_above=1000)
    assert segmenter.done(job) is None
    found = only(segmenter, path)
    before = segmenter.done(job)
    assert (before.mask, before.pixels, before.pages) == (found.mask, found.pixels, 1)
    assert Segmenter(network(flip=True), tmp_path / "out", stream_above=1000).done(job) is None
    found.mask.write_bytes(found.mask.read_bytes()[:100])
    assert segmenter.done(job) is None


def test_a_mask_is_there_only_with_its_overlay(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    Image.effect_noise((100, 120), 90).convert("RGB").save(path)
    write = tifffile.imwrite

    def full(name, *arguments, **options):
        if options["photometric"] == "rgb":
            raise OSError(28, "No space left on device")
        write(name, *arguments, **options)

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(OutputError, match=r"cannot write .*a_overlay\.tif: No space left on device"):
        only(Segmenter(network(), tmp_path / "out", stream_above=1000), path)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_needs_the_whole_picture(tmp_path):
    path = tmp_path / "a.tif"
    Image.effect_noise((100, 120), 90).convert("RGB").save(path)
    for options in ({"size": 50}, {"crf": lambda scores, image: scores}):
        found = only(Segmenter(network(**options), tmp_path, stream_above=1000), path)
        assert isinstance(found, Failed)
        assert (
            "a.tif: more than 0.001 megapixels are labelled in tiles, at their own size: with --size 0" in found.reason
        )


def test_files_never_meet(tmp_path):
    names = pictures.result_names([tmp_path / "a.tif", tmp_path / "a_mask.tif"], tmp_path)
    results = [tmp_path / f"{name}_{kind}.tif" for name, kind in itertools.product(names, ("mask", "overlay"))]
    assert not {tmp_path / "a.tif", tmp_path / "a_mask.tif"} & set(results)
