"""Instances by metric learning: the loss by hand, objects that are grouped back, and a network that learns both."""

import math

import pytest
import torch
from networks import losses

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.models import instance_embedding as ml


def test_forward_at_odd_size():
    with torch.inference_mode():
        found = models.metric_learning(3, "resnet18", dimensions=8).eval()(torch.rand(2, 3, 49, 67))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "out": (2, 3, 49, 67),
        "embedding": (2, 8, 49, 67),
        "seeds": (2, 4, 3, 49, 67),
    }
    torch.testing.assert_close(found["out"], found["seeds"].log_softmax(2).max(dim=1).values)


def test_learns():
    """Both losses fall on two squares, and reach every parameter."""
    network = models.metric_learning(3, "resnet18", dimensions=8).train()
    image, instances = torch.rand(2, 3, 48, 48), torch.zeros(48, 48, dtype=torch.long)
    instances[4:20, 4:20], instances[26:44, 26:44] = 1, 2
    image[:, :, instances > 0] += 1
    pixels = ml.sample(instances, 20)

    def loss():
        found = network(image)
        total = torch.zeros(())
        for e, s in zip(found["embedding"], found["seeds"], strict=True):
            total = total + ml.similarity_loss(e, instances, pixels)
            total = total + 0.2 * ml.seed_loss(s, e, instances, (instances > 0).long(), pixels)
        return total

    first, *_, last = losses(network, loss, 6)
    assert last < first
    assert all(p.grad is not None for p in network.parameters())


def scene():
    """Two objects, 4x4 and 4x3 pixels, embedded at 0 and at 3, on background at 6."""
    instances = torch.zeros(8, 10, dtype=torch.long)
    instances[1:5, 1:5], instances[2:6, 6:9] = 1, 2
    place = torch.tensor([6.0, 0.0, 3.0])[instances]
    return torch.stack([place, torch.zeros_like(place)]), instances


def test_similarity():
    a = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    wanted = torch.tensor([[1.0, 2 / (1 + math.exp(5))], [2 / (1 + math.exp(5)), 1.0]])
    torch.testing.assert_close(ml.similarity(a, a), wanted)


def test_loss_of_three_pixels():
    """One pixel of an object, two of another: weights 1, 1/2 and 1/4 by pair, which sum to 4."""
    embedding = torch.tensor([[0.0, 1.0, 1.5]], dtype=torch.float64).view(1, 1, 3)
    instances = torch.tensor([[1, 2, 2]])

    def log_sigma(d):
        return math.log(2 / (1 + math.exp(d)))

    def log_other(d):
        return math.log(1 - 2 / (1 + math.exp(d)))

    # Distances squared: 1 and 2.25 across, 0.25 within.
    wanted = -(2 * 0.5 * log_other(1.0) + 2 * 0.5 * log_other(2.25) + 2 * 0.25 * log_sigma(0.25)) / 4
    got = ml.similarity_loss(embedding, instances, torch.arange(3))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_weights_are_of_whole_instances():
    """Of 2 and 6 pixels, of which one each is seen: weights 1/4, 1/36 and twice 1/12, which sum to 4/9."""
    embedding = torch.tensor([0.0] * 2 + [1.0] * 6, dtype=torch.float64).view(1, 2, 4)
    instances = torch.tensor([[1, 1, 2, 2], [2, 2, 2, 2]])
    wanted = -(2 / 12 * math.log(1 - 2 / (1 + math.e))) / (4 / 9)
    got = ml.similarity_loss(embedding, instances, torch.tensor([0, 5]))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_background_is_no_instance():
    """The loss asks nothing of the embedding of pixels that are of no object."""
    network = models.metric_learning(2, "resnet18", dimensions=2, seed_weight=0.0)
    labels = torch.zeros(1, 2, 32, 32, dtype=torch.long)
    labels[:, :, :16] = 1
    seen = []
    network.register_forward_hook(lambda _, inputs, output: seen.append(output["embedding"]))
    found = network.eval().loss(torch.rand(1, 3, 32, 32), labels)
    (gradient,) = torch.autograd.grad(found, seen[0])
    assert gradient[..., :16, :].any()
    assert not gradient[..., 16:, :].any()


@torch.no_grad()
def test_scales():
    """The maps of the image at half and at its own size side by side, at the size of the latter."""
    network = models.metric_learning(2, "resnet18", dimensions=3, scales=(0.5, 1.0)).double().eval()
    image = torch.rand(1, 3, 48, 64, dtype=torch.float64)
    half = torch.nn.functional.interpolate(image, scale_factor=0.5, mode="bilinear")
    small, own = (network.backbone(x)["out"] for x in (half, image))
    small = torch.nn.functional.interpolate(small, size=own.shape[2:], mode="bilinear")
    embedding = network.embedding(torch.cat([small, own], dim=1))
    wanted = torch.nn.functional.interpolate(embedding, size=(48, 64), mode="bilinear")
    torch.testing.assert_close(network(image)["embedding"], wanted)


def test_loss_falls_as_objects_part():
    embedding, instances = scene()
    pixels = ml.sample(instances, 5)
    close = ml.similarity_loss(0.1 * embedding, instances, pixels)
    apart = ml.similarity_loss(embedding, instances, pixels)
    assert apart < 0.01 < close


def test_sample():
    instances = torch.tensor([[0, 0, 1], [1, -1, 2]])
    picked = ml.sample(instances, 1)
    assert sorted(instances.flatten()[picked].tolist()) == [1, 2]
    assert sorted(instances.flatten()[ml.sample(instances, 1, background=True)].tolist()) == [0, 1, 2]
    assert ml.similarity_loss(torch.zeros(2, 2, 3), instances, picked[:0]) == 0


def test_seeds_are_asked_for_what_they_would_give():
    """Well parted objects: their pixels are good seeds of their class at every threshold, background of none."""
    embedding, instances = scene()
    labels = torch.tensor([0, 2, 1])[instances]
    pixels = ml.sample(instances, 4, background=True)
    right = torch.full((4, 3, 8, 10), -20.0).scatter(1, labels.expand(4, 1, 8, 10), 20.0)
    assert ml.seed_loss(right, embedding, instances, labels, pixels) < 1e-6
    # Where all look alike a mask is the whole image, and no pixel a good seed.
    assert ml.seed_loss(right, 0 * embedding, instances, labels, pixels) > 10


def test_group_finds_objects():
    """Best seed first, each object whole, nothing on background."""
    embedding, instances = scene()
    seeds = torch.full((4, 3, 8, 10), -4.0)
    seeds[:, 0][:, instances == 0] = 4
    seeds[1, 2][instances == 1] = 4
    seeds[2, 1][instances == 2] = 5
    found = ml.group(embedding, seeds)
    assert [instance.label for instance in found] == [1, 2]
    assert torch.equal(found[0].mask, instances == 2)
    assert torch.equal(found[1].mask, instances == 1)
    assert found[0].mask[found[0].seed]
    assert found[0].score > found[1].score > 0.9
    assert len(ml.group(embedding, seeds, count=1)) == 1


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="seeds"):
        ml.group(torch.zeros(2, 4, 5), torch.zeros(3, 2, 4, 5))
