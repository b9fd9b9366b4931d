"""CRFs of volumes, signals and other kernels than the usual two, against pydensecrf and the kernels' own formula."""

import warnings

import numpy as np
import pytest
import torch
from oracle import assert_compiles
from pydensecrf_volumes import CASES, STORED

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError, ArgumentTypeError


@pytest.fixture(scope="module")
def stored():
    with np.load(STORED) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def case(stored, name):
    parts = (stored[f"{name}_{part}"][None] for part in ("unary", "image", "q"))
    unary, image, q = (x.to(torch.get_default_device()) for x in parts)
    return -unary, image, q


@pytest.mark.parametrize("name", CASES)
def test_equals_pydensecrf(backend, name, stored):
    scores, image, wanted = case(stored, name)
    layer = ao.DenseCRF(5, **CASES[name][2])
    q = layer(scores, image)
    assert (q - wanted).abs().max() <= 1e-4
    assert (q - scores.softmax(1)).abs().max() > 0.05, "the answer is not the question"


@pytest.mark.parametrize("name", ["tomography", "three_kernels"])
def test_reference_equals_pydensecrf(name, stored):
    scores, image, wanted = case(stored, name)
    with ao.backend("reference"):
        assert (ao.DenseCRF(5, **CASES[name][2])(scores, image) - wanted).abs().max() <= 1e-4


def test_the_usual_two_as_kernels(backend, stored):
    """To the last bit, of images and of volumes, given or learnt."""
    two = {"gaussian_sxy": 2.0, "bilateral_sxy": 6.0, "bilateral_srgb": 150.0}
    same = [{"compat": 3.0, "sxy": 2.0}, ao.CRFKernel(10.0, 6.0, 150.0)]
    for name in ("tomography", "five_channels"):
        scores, image, _ = case(stored, name)
        assert torch.equal(ao.DenseCRF(3, **two)(scores, image), ao.DenseCRF(3, kernels=same)(scores, image))
        learnt = ao.CRFasRNN(3, 3, gaussian_weight=3.0, bilateral_weight=10.0, **{**two, "gaussian_sxy": 2.0})
        other = ao.CRFasRNN(3, 3, kernels=same)
        assert torch.equal(learnt.to(scores.device)(scores, image), other.to(scores.device)(scores, image))


def test_spacing_divides_deviations(backend, stored):
    scores, image, _ = case(stored, "tomography")
    by_spacing = ao.DenseCRF(2, 4.0, 3.0, 12.0, 150.0, spacing=2.0)
    torch.testing.assert_close(by_spacing(scores, image), ao.DenseCRF(2, 2.0, 3.0, 6.0, 150.0)(scores, image))


def test_crf_as_rnn_learns_each_kernel(backend, stored):
    scores, image, _ = case(stored, "three_kernels")
    kernels = [{"compat": 1.0, "sxy": 1.5}, {"compat": 2.0, "sxy": 5.0, "srgb": 150.0}, {"compat": 0.5, "srgb": 200.0}]
    layer = ao.CRFasRNN(3, 2, kernels=kernels).to(scores.device)
    assert [name for name, _ in layer.named_parameters()] == ["weight0", "weight1", "weight2", "compatibility"]
    assert [layer.get_parameter(f"weight{i}")[1, 1].item() for i in range(3)] == [1.0, 2.0, 0.5]
    layer(scores, image)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_compiles(backend, stored):
    scores, image, _ = case(stored, "three_kernels")
    assert_compiles(ao.DenseCRF(2, **CASES["three_kernels"][2]), (scores, image))


def test_memory_format(backend, stored):
    scores, image, _ = case(stored, "colours")
    layer = ao.DenseCRF(2, **CASES["colours"][2])
    q = layer(scores.to(memory_format=torch.channels_last_3d), image)
    assert q.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(q, layer(scores, image), rtol=0, atol=1e-6)


def test_kernel_of_colours_alone(backend):
    """One step against the filter over I / srgb."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    image = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=generator)
    scores = torch.randn(2, 2, 5, 7, dtype=torch.float64, generator=generator)
    q = ao.DenseCRF(1, kernels=[{"compat": 2.0, "srgb": 0.5, "channels": (2, 0)}])(scores, image)
    filtered = A.permutohedral_filter(scores.softmax(1), image[:, [2, 0]] / 0.5, "symmetric")
    torch.testing.assert_close(q, (scores + 2 * filtered).softmax(1))


def test_images_of_other_units_are_not_warned_of():
    scores = torch.zeros(1, 2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ao.DenseCRF(1, bilateral_srgb=100.0)(scores, 2000 * torch.rand(1, 1, 3, 4, 4) - 1000)
        ao.DenseCRF(1, bilateral_srgb=1.0)(scores, torch.linspace(-3, 3, 48).view(1, 1, 3, 4, 4))
    with pytest.warns(UserWarning, match="its colours are nearly one"):
        ao.DenseCRF(1)(scores, torch.linspace(-3, 3, 48).view(1, 1, 3, 4, 4))


def test_rejects_bad_settings_of_what_is_learnt():
    with pytest.raises(ArgumentError, match="kernels must be None where bilateral_weight is given"):
        ao.CRFasRNN(2, bilateral_weight=1.0, kernels=[{"compat": 1.0, "sxy": 1.0}])
    with pytest.raises(ArgumentTypeError, match=r"kernels\[0\]\.compat must be a number"):
        ao.CRFasRNN(2, kernels=[{"compat": [1.0, 2.0], "sxy": 1.0}])
    with pytest.raises(
        ArgumentTypeError, match=r"kernels\[0\] must be a CRFKernel or its keyword arguments; got float"
    ):
        ao.DenseCRF(kernels=[2.0])


@pytest.mark.parametrize(
    ("arguments", "channels", "message"),
    [
        ({"bilateral_sxy": (3.0, 4.0)}, 1, "bilateral_sxy must be one number or 3, one an axis of scores"),
        ({"spacing": (1.0, 1.0)}, 1, "spacing must be one number or 3"),
        ({}, 5, r"image must have 1 to 4 channels.*give a CRFKernel the channels that matter"),
        ({"kernels": [{"compat": 1.0, "srgb": 1.0, "channels": (3,)}]}, 3, r"channels must be below 3"),
        ({"kernels": [{"compat": 1.0, "srgb": (1.0,) * 2, "channels": (1,)}]}, 3, r"srgb must be one number or 1, one"),
    ],
)
def test_rejects_volumes_that_do_not_fit(arguments, channels, message):
    with pytest.raises(ArgumentError, match=message):
        ao.DenseCRF(1, **arguments)(torch.zeros(1, 2, 2, 3, 4), torch.zeros(1, channels, 2, 3, 4))


def test_volumes_beyond_indices_of_32_bits():
    """Refused before anything is made of them."""
    size = (1200, 1200, 300)
    scores, image = (torch.zeros((), dtype=dtype).expand(1, 2, *size) for dtype in (torch.float32, torch.uint8))
    with pytest.raises(ArgumentError, match=r"image must have N \* P \* \(D \+ 1\) < 2\^31, where D is 5"):
        ao.DenseCRF(1)(scores, image)


def test_settings_of_kernels():
    """Of a volume's three deviations, too; and what there is none of."""
    layer = ao.DenseCRF(bilateral_sxy=(1.0, 2.0, 3.0), spacing=(1.0, 1.0, 2.5))
    assert (layer.gaussian_sxy, layer.bilateral_sxy) == ((3.0, 3.0), (1.0, 2.0, 3.0))
    assert "spacing=(1.0, 1.0, 2.5)" in repr(layer)
    other = ao.DenseCRF(kernels=[{"compat": 1.0, "srgb": 0.5, "channels": (0, 2)}])
    assert "kernels[0].srgb=0.5, kernels[0].channels=(0, 2)" in repr(other)
    assert not hasattr(other, "bilateral_srgb")
