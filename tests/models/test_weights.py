"""Files of weights: what is written is read back, and what is damaged is said to be."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from atrousops import models
from atrousops.models import registry

INFO = models.Info(
    network="enet",
    arguments={"num_classes": 2},
    classes=("background", "person"),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    size=400,
    crf={"bilateral_compat": 4.0},
)


@pytest.fixture
def saved(tmp_path):
    network = models.enet(2)
    path = tmp_path / "enet.safetensors"
    models.save(network, path, INFO)
    return network, path


def test_round_trip(saved):
    network, path = saved
    loaded = models.load(path)
    assert loaded.info == INFO
    assert not loaded.training
    assert loaded.info.dense_crf().bilateral_compat == 4.0
    for name, value in network.state_dict().items():
        # Matrices are stored in fp16: 11 bits, and steps of 2^-24 below its smallest normal number.
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=2**-11, atol=2**-25)


def test_odd_sides_are_in_the_header(saved, tmp_path):
    """Only where they are asked for: other files are those of earlier versions."""
    network, path = saved
    assert registry.header_of(path) == INFO
    assert b"odd_sides" not in path.read_bytes()
    other = dataclasses.replace(INFO, odd_sides=True)
    models.save(network, tmp_path / "odd.safetensors", other)
    assert models.load(tmp_path / "odd.safetensors").info == other


def test_subnormal_weights_are_kept(saved):
    """1e-5 is subnormal in fp16 and an ordinary number for whoever computes with it."""
    network, path = saved
    with torch.no_grad():
        network.transposed_conv.weight[0, 0, 0, 0] = 1e-5
        network.initial_block.batch_norm.bias[0] = 1e-40
    models.save(network, path, INFO)
    state = load_file(path)
    assert state["transposed_conv.weight"][0, 0, 0, 0] == torch.tensor(1e-5).half()
    assert state["initial_block.batch_norm.bias"][0] == torch.tensor(1e-40)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        models.load(tmp_path / "none.safetensors")


def test_truncated(saved):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(models.WeightsError, match="whole safetensors file"):
        models.load(path)


def test_pickle_is_not_run(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(models.enet(2).state_dict(), path)
    with pytest.raises(models.WeightsError, match="safetensors"):
        models.load(path)


def test_weights_of_another_network(saved):
    with pytest.raises(models.WeightsError, match="of another shape"):
        models.load_weights(models.enet(3), saved[1])
    with pytest.raises(models.WeightsError, match="missing"):
        models.load_weights(models.deeplabv3plus_efficientnet_lite2(), saved[1])


def test_no_header(saved, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(saved[1]), bare)
    with pytest.raises(models.WeightsError, match="which network"):
        models.load(bare)
    models.load_weights(models.enet(2), bare)


def test_damaged_header(saved, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file(load_file(saved[1]), path, metadata={"atrousops": json.dumps({"network": "enet"})})
    with pytest.raises(models.WeightsError, match="header"):
        models.load(path)


def test_wrong_hash(saved, monkeypatch):
    path = saved[1]
    monkeypatch.setattr(registry, "_FOLDER", path.parent)
    monkeypatch.setitem(registry.SHIPPED, "enet", registry.Shipped("0" * 64))
    with pytest.raises(models.WeightsError, match="sha256"):
        models.load("enet")


@pytest.mark.parametrize("name", models.list())
def test_shipped(name):
    network = models.load(name)
    assert (registry._FOLDER / f"{name}.md").is_file(), "no model card"
    assert (registry._FOLDER / f"{name}.safetensors").stat().st_size <= 12 * 2**20
    with torch.inference_mode():
        scores = network(torch.rand(1, 3, 40, 56))["out"]
    assert scores.shape == (1, len(network.info.classes), 40, 56)


def test_list():
    assert models.list() == models.list("weights") == tuple(registry.SHIPPED)
    assert {"enet", "mask_rcnn", "fcn_resnet50"} <= {*models.list("networks")}
    with pytest.raises(ValueError, match="kind"):
        models.list("all")


def test_unknown_network():
    with pytest.raises(ValueError, match="deeplabv3_resnet50"):
        models.build("resnet")
    with pytest.raises(ValueError, match="arguments"):
        models.build("enet", classes=3)
