"""Networks and readers of other packages, by entry points; one that is broken says so when it is asked for."""

import own
import pytest
import yaml

from atrousops import models
from atrousops.common import plugins
from atrousops.common.checks import ArgumentError
from atrousops.engine import config, evaluate, outputs, train

MODULE = """
from torch import nn
from atrousops.data import Folder, Layout


class Tiny(nn.Module):
    def __init__(self, num_classes=2, in_channels=3):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, input):
        return {"out": self.layer(input)}


class Reader(Folder):
    def __init__(self, root, split, transform, disc="disc"):
        layout = Layout(images="images", masks="masks", classes=("ground", disc), fractions={"val": 0.3})
        super().__init__(root, split, transform, layout=layout)


def nothing(root, split, transform):
    return [1]
"""
POINTS = """
[atrousops.networks]
tiny = theirs:Tiny
broken = broken_module:Net
unet = broken_module:Net
text = theirs:__name__

[atrousops.readers]
theirs = theirs:Reader
broken = broken_module:Reader
nothing = theirs:nothing
"""


def install(folder, name, points, **modules):
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(points)
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package as pip leaves it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    install(packages, "their-package", POINTS, theirs=MODULE, broken_module="import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(packages)
    return packages


def recipe(folder, **changes):
    parts = {
        "model": {"name": "tiny", "arguments": {"num_classes": 2}},
        "data": {"name": "theirs", "root": str(folder)},
        "augmentation": {"crop": 32, "size": 64},
        "schedule": {"steps": 2},
        "batch": 2,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**parts, **changes}))
    return path


def test_a_package_adds_networks_and_readers(tmp_path, installed):
    """From the recipe to the weights' file and its scores; ours come first, whatever a package calls its own."""
    own.write(tmp_path)
    path = recipe(tmp_path, data={"name": "theirs", "root": str(tmp_path), "arguments": {"disc": "coin"}})
    weights = train.main(path, output=tmp_path / "run", progress=False)
    network = models.load(weights)
    assert type(network).__module__ == "theirs"
    assert network.info.classes == ("ground", "coin")
    assert evaluate.main(path, weights, progress=False).classes == ("ground", "coin")
    assert {"tiny", "broken"} <= {*models.list("networks")}
    assert models.list("networks").count("unet") == 1
    assert type(models.build("unet", width=1)).__module__.startswith("atrousops.")
    assert outputs.count("tiny", {}) == 2


@pytest.mark.usefixtures("installed")
def test_a_broken_package_is_named_where_it_is_asked_for(tmp_path):
    own.write(tmp_path)
    why = r"'broken' is broken_module:\w+ of the package their-package, whose import fails: ModuleNotFoundError: .*"
    with pytest.raises(ArgumentError, match=rf"atrousops\.networks: {why}Repair or uninstall their-package"):
        models.build("broken")
    with pytest.raises(ArgumentError, match=rf"atrousops\.readers: {why}"):
        outputs.open_set(config.load(recipe(tmp_path), ["data.name=broken"]), str(tmp_path), "train")
    with pytest.raises(
        ArgumentError, match=r"name must be of a factory in atrousops\.networks; got text, which is str"
    ):
        models.build("text")
    with pytest.raises(
        ArgumentError, match=r"data\.name must be of a reader that gives .*; got nothing, .* gives list"
    ):
        outputs.open_set(config.load(recipe(tmp_path), ["data.name=nothing"]), str(tmp_path), "train")
    with pytest.raises(
        ArgumentError, match=r"data\.name must be one of .*folder, broken, nothing, theirs; got 'their'"
    ):
        outputs.open_set(config.load(recipe(tmp_path), ["data.name=their"]), str(tmp_path), "train")


def test_a_name_of_two_packages(tmp_path, installed, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    install(other, "other-package", "[atrousops.networks]\ntiny = other_module:Tiny\n")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(ArgumentError, match=r"one installed package; got .*other-package.*") as caught:
        models.build("tiny")
    assert "their-package" in str(caught.value)


def test_nothing_is_installed_here():
    assert plugins.names("atrousops.no_such_group") == ()
