"""The search of the dense CRF's settings: no worse than the start on what it sees, and the same every time."""

import pytest
import torch
from torch import nn

from atrousops.common.checks import ArgumentError
from atrousops.data import SegmentationSet, transforms
from atrousops.engine import tune_crf
from atrousops.engine.tune_crf import START, VALUES

SIZE = 24


class Stripes(SegmentationSet):
    """Stripes one pixel wide in two colours that differ by `contrast`, labelled by colour."""

    classes = ("dark", "bright")
    instances = False

    def __init__(self, contrast, count=3):
        self.contrast, self.count = contrast, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        labels = (torch.arange(SIZE) + index).remainder(2).repeat(SIZE, 1)
        colours = 100.0 + self.contrast * labels.expand(3, -1, -1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (transforms.MEAN, transforms.STD))
        return (colours / 255 - mean) / std, labels


class Unsure(nn.Module):
    """Knows the class of three pixels in four by a little: scores of +-0.5, from the brightness."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        brightness = images.mean(1, keepdim=True)
        bright = (brightness - brightness.mean((2, 3), keepdim=True)).sign() * 0.5
        noise = torch.rand(bright.shape, generator=torch.Generator().manual_seed(0)) < 0.25
        return {"out": torch.cat([-bright, bright], 1) * torch.where(noise, -1.0, 1.0)}


def test_found_settings_are_better_and_the_same_again():
    model = Unsure().train()
    tuned = tune_crf.search(model, Stripes(5.0), progress=False)
    assert model.training
    assert tuned.default < tuned.best, "one of the values tells the two colours apart, the start does not"
    assert tuned.plain < tuned.best
    assert tuned.images == 3
    assert set(tuned.settings) == set(START) == set(VALUES)
    assert tune_crf.search(model, Stripes(5.0), progress=False) == tuned
    assert f"so {100 * tuned.best:.2f} %" in str(tuned)


def test_start_is_kept_where_nothing_is_better():
    """Colours far apart: the defaults refine every pixel, and a tie goes to them."""
    tuned = tune_crf.search(Unsure(), Stripes(200.0), progress=False)
    assert tuned.settings == START
    assert tuned.best == tuned.default == 1.0


def test_images_are_spread(monkeypatch):
    seen = []
    monkeypatch.setattr(tune_crf, "_cases", lambda model, data, chosen, norm: seen.extend(chosen) or [])
    monkeypatch.setattr(tune_crf, "_mean_iou", lambda classes, cases, crf: 0.0)
    tune_crf.search(Unsure(), Stripes(5.0, count=10), images=4, progress=False)
    assert seen == [0, 2, 5, 7]


def test_objects_are_refused():
    data = Stripes(5.0)
    data.instances = True
    with pytest.raises(ArgumentError, match="labelled by classes alone"):
        tune_crf.search(Unsure(), data, progress=False)
