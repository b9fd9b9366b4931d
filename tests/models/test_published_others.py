"""Published checkpoints of TensorFlow, Torch7, MMSegmentation and smp against those releases in plain PyTorch."""

import pytest
import releases
import releases_others
import releases_tensorflow
import torch
import torchvision
from published_files import assert_same, keep_only, loaded, seen

from atrousops import models

# Of the blocks in a ResNet's stages: enough that a stage's others are not as its first.
COUNTS = (1, 1, 2, 2)


@pytest.fixture
def short(monkeypatch):
    """For ResNet-50 one of fewer blocks."""
    make = torchvision.models.resnet.ResNet
    bottleneck = torchvision.models.resnet.Bottleneck
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: make(bottleneck, list(COUNTS)))


def tensorflows(shapes):
    """`random_state` goes by PyTorch's names and by filters whose inputs come behind their outputs."""
    found = {}
    for name, shape in shapes.items():
        layer, _, part = name.rpartition("/")
        kind = {"moving_variance": "running_var", "gamma": "weight"}.get(part, "bias")
        if len(shape) == 4:
            kind, shape = "weight", (shape[3] * (shape[2] if part == "depthwise_weights" else 1), *shape[:3])
        (value,) = releases.random_state({f"{layer}.{kind}": shape}).values()
        if len(shape) == 4:
            depthwise = part == "depthwise_weights"
            fan = shape[1] * shape[2] * (1 if depthwise else shape[3])
            value = torch.randn(shapes[name]) * (2 / fan) ** 0.5
        found[name] = value
    return found


@torch.inference_mode()
def test_xception(monkeypatch, tmp_path):
    """513 pixels of the release in small: low-level features of 17 and 9, a last map of 5 and 3."""
    state = tensorflows(releases_tensorflow.xception_shapes(4, 21))
    ours = loaded(monkeypatch, tmp_path, "deeplabv3plus_xception65_voc_trainaug", state, ".npz", width=4)
    image = torch.rand(1, 3, 65, 33)
    torch.testing.assert_close(seen(ours, image), 2 * image - 1)
    assert_same(ours(seen(ours, image))["out"], releases_tensorflow.xception(state, 2 * image - 1, 4))


@torch.inference_mode()
def test_auto_deeplab(monkeypatch, tmp_path):
    """Paths to strides 4, 8, 16 and 32 of 65 and 97 pixels."""
    state = tensorflows(releases_tensorflow.hnasnet_shapes(2, 19))
    ours = loaded(monkeypatch, tmp_path, "auto_deeplab_s_cityscapes", state, ".safetensors", width=2)
    image = 2 * torch.rand(1, 3, 65, 97) - 1
    assert_same(ours(image)["out"], releases_tensorflow.hnasnet(state, image))


@torch.inference_mode()
def test_mmseg(monkeypatch, tmp_path, short):
    """With what a training of MMSegmentation leaves beside the weights."""
    state = releases.random_state(releases_others.mmseg_shapes(COUNTS, 21))
    file = {"meta": {"epoch": 3, "CLASSES": ["background"], "PALETTE": [[0, 0, 0]]}, "state_dict": state}
    ours = loaded(monkeypatch, tmp_path, "pspnet50_voc2012_mmseg", file)
    image = seen(ours, torch.rand(1, 3, 35, 50))
    assert_same(ours(image)["out"], releases_others.mmseg(state, image, COUNTS))


@torch.inference_mode()
def test_smp(tmp_path, short):
    """Another encoder and number of classes, by arguments."""
    state = releases.random_state(releases_others.smp_shapes(COUNTS, 5))
    torch.save(state, tmp_path / "file.pth")
    ours = models.load_published("deeplabv3plus_smp", tmp_path / "file.pth", backbone="resnet50", num_classes=5)
    assert ours.info.classes == ("0", "1", "2", "3", "4")
    assert ours.info.arguments["backbone"] == "resnet50"
    image = torch.rand(1, 3, 48, 64)
    assert_same(ours(image)["out"], releases_others.smp(state, image, COUNTS))


@pytest.mark.parametrize("decoder_prelu", [True, False])
@torch.inference_mode()
def test_enet(monkeypatch, tmp_path, decoder_prelu):
    """In fp64 with the same poolings; the scores of the first class, which is unlabelled, go.

    The release's decoder.lua has ReLUs, which are PReLUs of slope 0. Blocks are larger than the last map.
    """
    torch.use_deterministic_algorithms(False)
    state = releases.random_state(releases_others.enet_shapes())
    slopes = [name for name, v in state.items() if v.dim() == 1 and f"{name[:-6]}bias" not in state]
    slopes = [name for name in slopes if name.endswith("weight") and int(name.partition(".")[0]) >= 26]
    assert len(slopes) == 15
    if not decoder_prelu:
        state |= {name: torch.zeros_like(state[name]) for name in slopes}
    file = {name: value for name, value in state.items() if decoder_prelu or name not in slopes}
    ours = loaded(monkeypatch, tmp_path, "enet_cityscapes", file, decoder_prelu=decoder_prelu).double()
    image = torch.rand(1, 3, 40, 24).double()
    double = {name: value.double() for name, value in state.items()}
    assert_same(ours(image)["out"], releases_others.enet(double, image)[:, 1:])


def test_what_is_refused(monkeypatch, tmp_path):
    """A variable that no layer has is named as the release names it."""
    keep_only(monkeypatch, "deeplabv3plus_xception65_voc_trainaug")
    state = tensorflows(releases_tensorflow.xception_shapes(4, 21))
    state |= {"aspp4_depthwise/depthwise_weights": torch.zeros(3, 3, 8, 1), "logits/semantic/biases": torch.zeros(7)}
    text = r"1 unknown, such as aspp4_depthwise/depthwise_weights \(3, 3, 8, 1\); .*classifier\.scores\.bias \(7,\) for"
    with pytest.raises(models.WeightsError, match=text):
        loaded(monkeypatch, tmp_path, "deeplabv3plus_xception65_voc_trainaug", state, ".npz", width=4)
