import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atrousops import optimization_report
from atrousops.engine import tiles
from atrousops.engine.predict import Predictor, load_predictor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
quick = settings(deadline=None, derandomize=True, max_examples=60)


class Narrow(nn.Module):
    """Three classes; the receptive field reaches 2 + 3 = 5 pixels to each side, at full resolution."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=3, dilation=3))

    def forward(self, x):
        return {"out": self.layers(x)}


class Strided(nn.Module):
    """Output stride 32, so that the grid matters; scores left small, as a tensor."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.MaxPool2d(4), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        return self.layers(x)


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def predictor(model, classes=3, **options):
    return Predictor(model, [f"class {i}" for i in range(classes)], MEAN, STD, **options)


# Lengths around the tile and its multiples are reached by the sum; overlaps up to the largest legal one by the share.
@given(st.integers(1, 6), st.integers(0, 100), st.integers(1, 700))
@quick
def test_tiles_cover_every_pixel_and_weights_sum_to_one(tile, share, length):
    tile *= tiles.GRID
    overlap = (tile - tiles.GRID) * share // 100
    spans = tiles.spans(length, tile, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(0 < stop - start <= tile and start % tiles.GRID == 0 for start, stop in spans)
    for (_, stop), (start, _) in itertools.pairwise(spans):
        assert stop - start >= overlap
    total = torch.zeros(length, dtype=torch.float64)
    for (start, stop), weight in zip(spans, tiles.weights(spans, overlap)):
        assert weight.shape == (stop - start,)
        assert (weight >= 0).all()
        total[start:stop] += weight
        # What lies within a quarter of the overlap from a neighbour's side counts nothing.
        margin = overlap // 4
        if start > 0 and margin:
            assert not weight[:margin].any()
        if stop < length and margin:
            assert not weight[-margin:].any()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_number_of_tiles_is_the_least():
    # 1000 = 256 + 4 * 192 - 24: five tiles with an overlap of 64, as by hand.
    assert tiles.spans(1000, 256, 64) == [(0, 256), (192, 448), (384, 640), (576, 832), (768, 1000)]


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 64, 0), (5, 0, 0), (5, 48, 0), (5, 64, 33), (5, 64, -1)])
def test_bad_tiling_raises(length, tile, overlap):
    with pytest.raises(ValueError, match="must be"):
        tiles.spans(length, tile, overlap)


# Wide, tall, and both sides cut; one side a multiple of the grid, the others not.
@pytest.mark.parametrize(("height", "width"), [(70, 300), (301, 64), (200, 177)])
def test_tiles_are_seam_free(height, width):
    model = Narrow()
    whole = predictor(model, tile=512, overlap=0).scores(picture(height, width))
    # A quarter of the overlap, 6 pixels, is more than the reach of 5.
    tiled = predictor(model, tile=96, overlap=24).scores(picture(height, width))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_seams_show_without_overlap():
    # The test above can fail: tiles that do not overlap see their own padding.
    whole = predictor(Narrow(), tile=512, overlap=0)
    tiled = Predictor(whole.model, whole.classes, MEAN, STD, tile=96, overlap=0)
    assert (whole.scores(picture(200, 177)) - tiled.scores(picture(200, 177))).abs().max() > 1e-2


def test_tiles_keep_the_grid_of_a_strided_network():
    # Scores of 32x32 cells need no neighbours; only their bilinear enlargement reaches a cell further: margin 32.
    model = Strided()
    whole = predictor(model, 2, tile=1024, overlap=0).scores(picture(250, 390))
    tiled = predictor(model, 2, tile=256, overlap=128).scores(picture(250, 390))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


class Pooled(Narrow):
    """Every score depends on every pixel."""

    def forward(self, x):
        return {"out": self.layers(x) + self.layers(x).mean((2, 3), keepdim=True)}


def test_reach():
    assert predictor(Narrow(), tile=96, overlap=0).reach() == 5
    assert predictor(nn.Conv2d(3, 2, 1), 2, tile=64, overlap=0).reach() == 0
    # A cell of 32 enlarged bilinearly reaches into half of each neighbour.
    assert predictor(Strided(), 2, tile=256, overlap=0).reach() == 16
    # Its own and the mirror image: as far; at half the size: twice as far, and what the resizing takes.
    assert predictor(Narrow(), tile=96, overlap=0, flip=True).reach() == 5
    assert 10 <= predictor(Narrow(), tile=128, overlap=0, scales=(0.5,)).reach() <= 16
    assert predictor(Pooled(), tile=96, overlap=0).reach() is None


class InDouble(nn.Module):
    """A model whose sums are in fp64, its scores rounded once."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, x):
        found = self.model(x.double())
        return {name: t.float() for name, t in found.items()} if isinstance(found, dict) else found.float()


@pytest.mark.parametrize(("make", "classes", "tile"), [(Narrow, 3, 64), (Strided, 2, 128)])
def test_an_overlap_from_the_reach(make, classes, tile):
    model = make()
    whole = predictor(model, classes, tile=512, overlap=0).scores(picture(200, 177))
    derived = predictor(model, classes, tile=tile, overlap=None)
    assert derived.overlap == 4 * derived.reach()
    exact = predictor(InDouble(model), classes, tile=512, overlap=0).scores(picture(200, 177))
    # Twice the error of PyTorch's own layers on the whole picture, and the two roundings of a weighted mean.
    bound = 2 * (whole - exact).abs().max() + 2 * torch.finfo(torch.float32).eps * exact.abs().max()
    torch.testing.assert_close(derived.scores(picture(200, 177)), exact, rtol=0, atol=float(bound))


def test_a_reach_beyond_the_tile_raises():
    with pytest.raises(ValueError, match=r"model must reach at most 16 pixels .* tiles of 96; got more than a tile"):
        predictor(Pooled(), tile=96, overlap=None)
    with pytest.raises(ValueError, match=r"at most 8 pixels .* got 16\. A larger tile"):
        predictor(Strided(), 2, tile=64, overlap=None)


def differ(found, wanted, scores):
    """Where labels differ though one class leads the others by more than rounding."""
    first, second = scores.topk(2, dim=0).values.numpy()
    return int(((found != wanted) & (first - second > 1e-5)).sum())


def test_strips_are_the_labels():
    """Whatever the rows of tiles: one, several, and a last one that is not whole."""
    model = Narrow()
    for height, width, tile in ((40, 300, 96), (301, 64, 96), (200, 177, 64), (50, 60, 64)):
        image = picture(height, width)
        run = predictor(model, tile=tile, overlap=24)
        parts = list(run.strips(lambda top, bottom, image=image: image[top:bottom], height, width))
        assert differ(np.concatenate(parts), run(image), run.scores(image)) == 0
    assert len(parts) == 1
    assert not torch.is_inference_mode_enabled()
    for options in ({"size": 20}, {"crf": lambda scores, image: scores}):
        run = predictor(model, **options)
        with pytest.raises(ValueError, match="predictor must see pictures in tiles, at their own size, with no CRF"):
            next(run.strips(lambda top, bottom, image=image: image[top:bottom], height, width))


# One pixel, one row, one column, less and more than the grid.
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (33, 1), (31, 33)])
@pytest.mark.parametrize("make", [Narrow, Strided])
def test_any_size(height, width, make):
    model = make()
    classes = 3 if make is Narrow else 2
    labels = predictor(model, classes)(picture(height, width))
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint8
    assert labels.max() < classes


def test_size_bounds_what_the_network_sees():
    seen = []

    class Watching(Narrow):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return super().forward(x)

    model = Watching()
    # 200 x 100 becomes 64 x 32; what is smaller already stays as it is, padded to the grid.
    assert predictor(model, size=64).scores(picture(200, 100)).shape == (3, 200, 100)
    assert predictor(model, size=64).scores(picture(30, 40)).shape == (3, 30, 40)
    assert predictor(model, size=64).scores(picture(1, 300)).shape == (3, 1, 300)
    assert seen == [(64, 32), (32, 64), (32, 64)]


def test_labels_are_the_networks():
    model = Narrow().eval()
    image = picture(64, 96)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    np.testing.assert_array_equal(predictor(model)(image), model(x)["out"][0].argmax(0).numpy())


def test_optimized():
    """Scores within rounding; other weights, so that --resume does not mix the two."""
    plain, fast = load_predictor(), load_predictor(optimized=True)
    image = picture(70, 90)
    scores = plain.scores(image)
    assert np.abs(fast.scores(image) - scores).max() < 1e-3 * np.abs(scores).max()
    assert fast.fingerprint() != plain.fingerprint()
    assert optimization_report(fast.model).fused


def test_crf_gets_scores_and_picture():
    seen = {}

    def crf(scores, image):
        seen.update(scores=scores, image=image)
        return -scores

    image = picture(20, 40)
    labels = predictor(Narrow(), crf=crf)(image)
    np.testing.assert_array_equal(seen["image"][0].permute(1, 2, 0).numpy(), image)
    np.testing.assert_array_equal(labels, seen["scores"][0].argmin(0).numpy())


def test_puts_the_model_into_eval_mode_and_leaves_the_picture():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.5))
    image = picture(40, 30)
    before = image.copy()
    run = predictor(model, 2)
    np.testing.assert_array_equal(run(image), run(image))
    np.testing.assert_array_equal(image, before)


def test_bad_input_raises():
    run = predictor(Narrow())
    with pytest.raises(TypeError, match="picture must be uint8"):
        run(picture(4, 4).astype(np.float32))
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\)"):
        run(picture(4, 4)[..., :2])
    with pytest.raises(ValueError, match="not empty"):
        run(picture(4, 4)[:0])
    with pytest.raises(ValueError, match=r"scores \(1, 5, h, w\)"):
        predictor(Narrow(), 5)(picture(4, 4))
    with pytest.raises(ValueError, match="overlap must be from 0 to 224"):
        predictor(Narrow(), tile=256, overlap=256)
    with pytest.raises(ValueError, match="classes must hold 1 to 256"):
        predictor(Narrow(), 257)
    with pytest.raises(ValueError, match="std must be positive"):
        Predictor(Narrow(), ["a", "b", "c"], MEAN, (1, 0, 1))


def test_damaged_weights_are_noticed():
    model = Narrow()
    with torch.no_grad():
        model.layers[0].bias[0] = float("nan")
        model.layers[0].bias[1] = float("inf")
    with pytest.raises(ValueError, match="finite scores"):
        predictor(model)(picture(40, 40))


@pytest.mark.parametrize("tile", [1024, 64])
def test_odd_sides_are_one_more_pixel(tile):
    """The network sees 32 n + 1 pixels, and what it says of the last row and column is left out, in each tile."""
    network, image = Strided().eval(), picture(64, 96)
    sides = []
    network.register_forward_pre_hook(lambda module, args: sides.append(tuple(args[0].shape[2:])))
    found = predictor(network, 2, tile=tile, overlap=0, odd_sides=True)
    got = found.scores(image)
    assert got.shape == (2, 64, 96)
    assert {*sides} == ({(65, 97)} if tile == 1024 else {(65, 65)})
    if tile == 1024:
        x = nn.functional.pad(found.normalise(image), (0, 1, 0, 1), mode="replicate")
        wanted = nn.functional.interpolate(network(x), size=(65, 97), mode="bilinear")[0, :, :64, :96]
        torch.testing.assert_close(got, wanted)


def test_the_people_network_sees_odd_sides():
    """Its crops had 289 = 32 n + 1 pixels; at even sizes its maps are shifted, and person IoU was 3.7 points lower."""
    assert load_predictor().odd_sides
    assert not load_predictor("unet_nuclei").odd_sides
