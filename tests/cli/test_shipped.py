"""The weights that come with the package, from a photograph to a mask."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from atrousops import cli, models


@pytest.mark.parametrize("name", models.list())
def test_a_photograph(name, tmp_path):
    photo = tmp_path / "astronaut.png"
    Image.fromarray(data.astronaut()).resize((128, 96)).save(photo)
    assert cli.main(["segment", str(photo), "--model", name, "-o", str(tmp_path / "out")]) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "astronaut_mask.png"))
    assert mask.shape == (96, 128)
    assert mask.max() < len(models.load(name).info.classes)
