"""Instances by metric learning: the loss by hand, objects that are grouped back, and a network that learns both."""

import math
from typing import ClassVar

import pytest
import torch
from networks import NetworkTests

from atrousops import models
from atrousops._checks import ArgumentError
from atrousops.models import instance_embedding as ml


class TestMetricLearning(NetworkTests):
    name = "metric_learning"
    arguments: ClassVar = {"num_classes": 3, "backbone": "resnet18", "dimensions": 8}

    def test_forward_at_odd_size(self):
        with torch.inference_mode():
            found = self.build().eval()(torch.rand(2, 3, *self.odd))
        assert {name: tuple(value.shape) for name, value in found.items()} == {
            "out": (2, 3, *self.odd),
            "embedding": (2, 8, *self.odd),
            "seeds": (2, 4, 3, *self.odd),
        }
        torch.testing.assert_close(found["out"], found["seeds"].log_softmax(2).max(dim=1).values)

    def test_learns(self):
        """Both losses fall on two squares, and reach every parameter."""
        network = self.build().train()
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        image, instances = torch.rand(2, 3, 48, 48), torch.zeros(48, 48, dtype=torch.long)
        instances[4:20, 4:20], instances[26:44, 26:44] = 1, 2
        image[:, :, instances > 0] += 1
        pixels = ml.sample(instances, 20)
        losses = []
        for _ in range(6):
            found = network(image)
            loss = torch.zeros(())
            for e, s in zip(found["embedding"], found["seeds"], strict=True):
                loss = loss + ml.similarity_loss(e, instances, pixels)
                loss = loss + 0.2 * ml.seed_loss(s, e, instances, (instances > 0).long(), pixels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
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


def test_loss_falls_as_objects_part():
    embedding, instances = scene()
    pixels = ml.sample(instances, 5)
    close = ml.similarity_loss(0.1 * embedding, instances, pixels)
    apart = ml.similarity_loss(embedding, instances, pixels)
    assert apart < 0.01 < close


def test_sample():
    instances = torch.tensor([[0, 0, 1], [1, -1, 2]])
    picked = ml.sample(instances, 1)
    assert sorted(instances.flatten()[picked].tolist()) == [0, 1, 2]
    assert ml.similarity_loss(torch.zeros(2, 2, 3), instances, picked[:0]) == 0


def test_seeds_are_asked_for_what_they_would_give():
    """Well parted objects: their pixels are good seeds of their class at every threshold, background of none."""
    embedding, instances = scene()
    labels = torch.tensor([0, 2, 1])[instances]
    pixels = ml.sample(instances, 4)
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
    with pytest.raises(ArgumentError, match="dimensions"):
        models.build("metric_learning", backbone="resnet18", dimensions=0)
