"""At a tiny width: torch.export takes every network, and channels_last, as in training, changes nothing."""

import copy
import warnings

import pytest
import torch
from small_networks import OTHERS, SMALL
from torch import nn
from torch.nn import functional as F

import atrousops as ao
from atrousops import models
from atrousops.engine.export import Scores
from atrousops.models.base import at_least, crop, resize, scaled


def traced(network, *inputs, **options):
    with warnings.catch_warnings():
        # Checks read shapes.
        warnings.simplefilter("ignore")
        return torch.jit.trace(network, inputs, **options)


@pytest.mark.parametrize("name", [name for name in models.list("networks") if name != "mask_rcnn"])
def test_exports(name):
    network = models.build(name, num_classes=3, **(SMALL | OTHERS).get(name, {})).double().eval()
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    program = torch.export.export(network, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image)["out"], network(image)["out"])


class Cut(nn.Module):
    """Padded to a multiple of 8, as networks do, and cut to the image's size again."""

    def forward(self, image):
        height, width = image.shape[-2:]
        return crop(F.max_pool2d(F.pad(image, (0, -width % 8, 0, -height % 8)), 3, 1, 1), 0, (height, width))


# Traced where nothing is cut, and where something is.
@pytest.mark.parametrize("side", [64, 61])
def test_programs_cut_as_much_as_each_image_needs(side):
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    run = torch.export.export(Cut(), (torch.rand(1, 3, side, side),), dynamic_shapes=(sizes,)).module()
    for shape in ((1, 3, 48, 80), (1, 3, 48, 85), (1, 3, 45, 83)):
        image = torch.rand(shape)
        torch.testing.assert_close(run(image), Cut()(image), rtol=0, atol=0)


class Grown(nn.Module):
    """Mirrored up to 40 pixels where it is smaller; enlarged to a size that is the same for the traced image."""

    def forward(self, image):
        x = at_least(image, 40)
        return resize(F.avg_pool2d(x, 8), [-(side // -10) for side in x.shape[-2:]])


# In-place writes to a stack of maps, for each image of a batch; with parameters that want gradients.
@pytest.mark.parametrize("name", ["msd", "grown"])
def test_traces_serve_any_batch_and_size(name):
    network = Scores(models.build("msd", num_classes=3, depth=3) if name == "msd" else Grown()).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    run = traced(network, torch.rand(2, 3, 40, 40))
    for shape in ((1, 3, 48, 31), (3, 3, 25, 61)):
        image = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(image), network(image))


# Compatibilities that are constants; parameters that want gradients.
@pytest.mark.parametrize("crf", [ao.DenseCRF(2, bilateral_srgb=0.3), ao.CRFasRNN(3, 2, bilateral_srgb=0.3)])
def test_traces_of_a_crf_serve_any_image(crf):
    """Traced with flat colours, whose lattice has few points: a trace had held their number, and failed on others.

    Frozen, its operator for all iterations had failed from the second call on.
    """
    crf = crf.double().eval()
    image = torch.rand(2, 3, 12, 9, dtype=torch.float64)
    plain = traced(crf, image, torch.zeros_like(image), check_trace=False)
    with torch.no_grad():
        frozen = torch.jit.freeze(traced(crf, image, torch.zeros_like(image), check_trace=False))
    for shape in ((2, 3, 12, 9), (1, 3, 12, 9), (3, 3, 7, 16)):
        scores, image = torch.rand(2, *shape, dtype=torch.float64)
        for run in (plain, frozen):
            torch.testing.assert_close(run(scores, 4 * image), crf(scores, 4 * image))


class Scaled(nn.Module):
    """Seen at half its size, and at a size whose ratio is no short fraction."""

    def forward(self, image):
        return [resize(image, [scaled(side, scale) for side in image.shape[-2:]]) for scale in (0.5, 2**-0.5)]


def test_programs_and_traces_scale_each_image(tmp_path):
    """Halves go to the even number, as Python's `round` has them."""
    for scale in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2.0, 2**-0.5):
        assert [scaled(side, scale) for side in range(1, 300)] == [round(scale * side) for side in range(1, 300)]
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    image = torch.rand(1, 3, 41, 43)
    torch.export.save(torch.export.export(Scaled(), (image,), dynamic_shapes=(sizes,)), tmp_path / "program.pt2")
    for run in (torch.export.load(tmp_path / "program.pt2").module(), traced(Scaled(), image)):
        for shape in ((1, 3, 45, 30), (1, 3, 50, 51)):
            image = torch.rand(shape)
            # As graphs have it, which hold PyTorch's operators.
            with ao.backend("reference"):
                wanted = Scaled()(image)
            torch.testing.assert_close(run(image), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("features", "lowest"), [("fpn", 0.0), ("dilated_c5", 0.0), ("dilated_c5", 1.0)], ids=["fpn", "c5", "no object"]
)
def test_mask_rcnn_exports(features, lowest):
    """From two images to boxes and masks; as many as there are in others, and none where no score is good enough."""
    settings = {"min_size": 64, "max_size": 96, "box_score_thresh": lowest, "box_detections_per_img": 5}
    network = models.build("mask_rcnn", num_classes=3, backbone="resnet18", features=features, **settings)
    network = network.double().eval()
    example, images = ([torch.rand(3, *size).double() for size in ((61, 83), (64, 64))] for _ in range(2))
    with torch.no_grad():
        expected = network(images)
        program = torch.export.export(network, (example,))
        for got, wanted in zip(program.module()(images), expected, strict=True):
            assert bool(len(wanted["labels"])) == (lowest == 0)
            for name, value in wanted.items():
                torch.testing.assert_close(got[name], value, msg=name)


@pytest.mark.parametrize("name", [name for name, arguments in SMALL.items() if "backbone" not in arguments])
def test_channels_last(name):
    """Scores and gradients in fp64, as the trainer runs networks."""
    network = models.build(name, num_classes=3, **SMALL[name]).double().eval()
    for parameter in network.parameters():
        if not parameter.any():
            # Scores that start at zero would hide everything.
            torch.nn.init.normal_(parameter, std=0.1)
    theirs = copy.deepcopy(network).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    wanted = network(image)["out"]
    got = theirs(image.contiguous(memory_format=torch.channels_last))["out"]
    torch.testing.assert_close(got, wanted)
    for out in (wanted, got):
        out.square().sum().backward()
    for (parameter, q), ours in zip(network.named_parameters(), theirs.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(ours.grad, q.grad, atol=1e-7, rtol=1e-6, msg=parameter)


def test_programs_of_unpooled_maps_serve_any_size():
    """ENet without the blocks that keep the size: two poolings, two unpoolings beside transposed convolutions.

    PyTorch's solver of constraints had raised NotImplementedError on the sizes of its maps."""
    network = models.build("enet", num_classes=3)
    for name, _ in list(network.named_children()):
        if name.startswith(("regular", "dilated", "asymmetric")):
            delattr(network, name)
    network = Scores(network).double().eval()
    side = torch.export.Dim.DYNAMIC(min=33, max=2048)
    sizes = ({0: torch.export.Dim.DYNAMIC(min=1, max=16), 2: side, 3: side},)
    image = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        run = torch.export.export(network, (image,), dynamic_shapes=sizes, strict=False).module()
        for shape in ((1, 3, 97, 65), (3, 3, 49, 82)):
            image = torch.rand(shape, dtype=torch.float64)
            torch.testing.assert_close(run(image), network(image))
