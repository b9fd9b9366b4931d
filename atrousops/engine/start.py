"""Where training starts from: the convolutions of VGG-16, as they are or factorised, or another training's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atrousops import models
from atrousops.common.checks import bad_value
from atrousops.data import SETS, SegmentationSet, transforms
from atrousops.data.files import find
from atrousops.engine.config import Config
from atrousops.models.backbones import load_backbone
from atrousops.models.crf import WithCRF
from atrousops.models.factorise import factorise_vgg16


def from_trunk(model: nn.Module, recipe: Config, root: str | None) -> None:
    """Fills the encoder of a network by `recipe.init`.

    Raises:
        ArgumentError: the network has no module called backbone, or it is not of that kind.
    """
    places = [module for name, module in model.named_modules() if name.split(".")[-1] == "backbone"]
    if not places:
        bad_value("config", "init.trunk", "be null for a network without a backbone", recipe.model.name)
    trunk: dict[str, Tensor] = torch.load(
        find(str(recipe.init.trunk), root), map_location="cpu", weights_only=True
    )  # fmt: skip
    if recipe.init.how == "load":
        # fp16 in the file.
        load_backbone(places[0], {name: value.float() for name, value in trunk.items()})
    elif recipe.init.how == "factorise":
        _factorise(places[0], trunk, recipe, root)
    else:
        bad_value("config", "init.how", "be load or factorise", repr(recipe.init.how))


def from_weights(model: nn.Module, path: str) -> list[str]:
    """Fills a network from a file that `atrousops train` wrote, as far as names and shapes agree.

    Returns:
        The entries that the file does not have, and that start afresh.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: it is damaged, or something else.
        ArgumentError: most of it does not fit.
    """
    target = model.network if isinstance(model, WithCRF) else model
    trained, own = models.load(path).state_dict(), target.state_dict()
    fitting = {name: value for name, value in trained.items() if name in own and value.shape == own[name].shape}
    if 2 * len(fitting) < len(trained):
        bad_value("config", "init.weights", "be of this network, or of the one before its CRF", path)
    target.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _factorise(backbone: nn.Module, trunk: dict[str, Tensor], recipe: Config, root: str | None) -> None:
    images: SegmentationSet = SETS[recipe.data.name](root, recipe.data.train, transforms.calibration(recipe.init.side))
    picked = [images[i][0] for i in range(min(recipe.init.images, len(images)))]
    batches = [torch.stack(picked[i : i + 8]) for i in range(0, len(picked), 8)]
    found, errors = factorise_vgg16(trunk, batches)
    backbone.load_state_dict(found.state_dict())
    print("error of each factorised layer:", " ".join(f"{error:.1e}" for error in errors))
