"""What a CRF makes of scores and images that are not as usual: not finite, of one label, grey, in 0..1."""

import math
import warnings

import numpy as np
import pytest
import torch
from oracle import assert_compiles

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError

NAN, INF = math.nan, math.inf


def noise(*size, dtype=torch.float64, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*size, dtype=dtype, generator=generator, device="cpu").to(torch.get_default_device())


def gaussian(features):
    """exp(-|f_i - f_j|^2 / 2), (P, P)."""
    f = features.flatten(2)[0].T.cpu()
    return torch.exp(-torch.cdist(f, f).square() / 2)


def dense_filter(features, normalize):
    """The lattice filter as a matrix, of its answers to every unit value, so that pixels may be left out by hand."""
    pixels = features.shape[2:].numel()
    unit = torch.eye(pixels, dtype=features.dtype).view(1, pixels, *features.shape[2:]).to(features.device)
    return A.permutohedral_filter(unit, features, normalize).flatten(2)[0].T.cpu()


def mean_field_without(scores, kernels, weights, iterations, lost):
    """Mean field by matrices, pixels `lost` sending nothing: the definition, one line a step. Potts weights."""
    logits = scores.flatten(2)[0].cpu().clone()
    logits[:, lost] = 0
    q = logits.softmax(0)
    for _ in range(iterations):
        sent = q.clone()
        sent[:, lost] = 0
        q = (logits + sum(w * sent @ k.T for w, k in zip(weights, kernels))).softmax(0)
    q[:, lost] = NAN
    return q


# A NaN, +inf beside numbers, and -inf alone have no softmax. 3 labels leave lanes of a CPU's vector free; 16 and 64
# leave none, where -inf alone has no number to be compared with; 140 do not fit a GPU's registers.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("labels", [3, 16, 64, 140])
def test_a_pixel_without_softmax_is_lost_alone(backend, labels, dtype):
    scores, image = noise(1, labels, 5, 7, dtype=dtype), noise(1, 3, 5, 7, dtype=dtype, seed=1) * 20 + 100
    scores[0, 1, 2, 3] = NAN
    scores[0, 0, 0, 0] = INF
    scores[0, :, 4, 6] = -INF
    scores[0, 2, 3, 3] = -INF
    lost = [2 * 7 + 3, 0, 4 * 7 + 6]
    layer = ao.DenseCRF(3, 2.0, 1.5, 5.0, 20.0, 2.0, "after")
    q = layer(scores, image)
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    place = torch.stack([x, y])[None].to(scores)
    kernels = [
        dense_filter(place / 2, "after"), dense_filter(torch.cat([place / 5, image / 20], 1), "after"),
    ]  # fmt: skip
    expected = mean_field_without(scores, kernels, (1.5, 2.0), 3, lost).view(1, labels, 5, 7)
    assert q[0, 2, 3, 3] == 0, "-inf beside numbers is a label that cannot be"
    tight = dtype == torch.float64
    torch.testing.assert_close(
        q.cpu(), expected, rtol=1e-9 if tight else 1e-4, atol=1e-11 if tight else 1e-6, equal_nan=True
    )
    # Unrolled for autograd it is the same, and nothing of the lost pixels reaches the gradients.
    leaf = scores.clone().requires_grad_()
    unrolled = layer(leaf, image)
    torch.testing.assert_close(unrolled.detach(), q, rtol=0, atol=1e-9 if tight else 1e-5, equal_nan=True)
    unrolled[0, 0].nansum().backward()
    assert bool(leaf.grad.isfinite().all())
    assert (leaf.grad.flatten(2)[..., lost] == 0).all()
    assert leaf.grad.abs().max() > 0


def test_lost_pixels_of_one_image_in_a_batch(backend):
    """The spatial lattice serves both images; the other image does not notice."""
    scores, image = noise(2, 3, 4, 6, dtype=torch.float32), noise(2, 3, 4, 6, dtype=torch.float32, seed=1) * 20 + 100
    layer = ao.DenseCRF(3)
    expected = layer(scores[1:], image[1:])
    scores[0, 1, 2, 2] = NAN
    for leaf in (scores, scores.clone().requires_grad_()):
        q = layer(leaf, image)
        # Inference and unrolled iterations round differently.
        torch.testing.assert_close(q[1:], expected, rtol=0, atol=1e-5)
        assert int(q.isnan().sum()) == 3
        assert q[0, :, 2, 2].isnan().all()


@pytest.mark.parametrize("iterations", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lost_pixels_in_16_bits(backend, iterations, dtype):
    scores, image = noise(1, 3, 4, 6).to(dtype), noise(1, 3, 4, 6, seed=1).to(dtype) + 100
    scores[0, 2, 1, 1] = INF
    q = ao.DenseCRF(iterations)(scores, image)
    assert q[0, :, 1, 1].isnan().all()
    assert int(q.isnan().sum()) == 3


def test_compiled_crfs_lose_that_pixel_alone(backend):
    scores, image = noise(1, 3, 4, 6, dtype=torch.float32), noise(1, 3, 4, 6, dtype=torch.float32, seed=1) * 20 + 100
    scores[0, 2, 1, 1] = NAN
    layer = ao.CRFasRNN(3, 2).to(scores.device)
    assert_compiles(layer, (scores, image), (scores.clone().requires_grad_(), image))
    assert int(layer(scores, image).isnan().sum()) == 3


def test_scores_far_below_zero():
    """Only differences of scores count, also where all are lower than what once stood for "no label", -1e30."""
    scores = torch.full((1, 3, 4, 4), -1e31)
    torch.testing.assert_close(ao.DenseCRF(2)(scores, torch.zeros(1, 3, 4, 4)), torch.full((1, 3, 4, 4), 1 / 3))


@pytest.mark.parametrize("normalize", ["none", "symmetric", "before", "after"])
def test_a_filtered_value_that_is_not_finite_stays_where_it_is(backend, normalize):
    values, features = noise(2, 3, 5, 6), noise(2, 2, 5, 6, seed=1)
    values[0, 1, 2, 3], values[1, 0, 0, 0], values[1, 2, 4, 5] = NAN, INF, -INF
    lost = ~values.isfinite()
    y = A.permutohedral_filter(values, features, normalize)
    expected = A.permutohedral_filter(values.nan_to_num(0, 0, 0), features, normalize).masked_fill(lost, NAN)
    assert torch.equal(y.isnan(), lost)
    torch.testing.assert_close(y, expected, equal_nan=True)
    leaf = values.clone().requires_grad_()
    A.permutohedral_filter(leaf, features, normalize)[~lost].sum().backward()
    assert bool(leaf.grad.isfinite().all())
    assert (leaf.grad[lost] == 0).all()


@pytest.mark.parametrize(("value", "named"), [(NAN, "nan"), (INF, "inf")])
def test_an_image_that_is_not_finite_is_an_error(backend, value, named):
    scores, image = noise(2, 3, 4, 6), noise(2, 3, 4, 6, seed=1)
    image[1, 2, 3, 4] = value
    image[1, 2, 3, 5] = NAN
    said = rf"image must be finite; got {named} at \(1, 2, 3, 4\), and 2 such values in all\. Replace them"
    for layer in (ao.DenseCRF(1, bilateral_srgb=0.1), ao.CRFasRNN(3, 1, bilateral_srgb=0.1).to(scores.device)):
        with pytest.raises(ArgumentError, match=f"{type(layer).__name__}: {said}"):
            layer(scores, image)
    with pytest.raises(ArgumentError, match=rf"features must be finite; got {named} at \(1, 2, 3, 4\), and 2"):
        A.permutohedral_lattice(image)


def test_one_label_is_an_error_that_shows_two(backend):
    scores, image = noise(1, 1, 4, 6), noise(1, 3, 4, 6, seed=1) * 20 + 100
    lattice = A.permutohedral_lattice(image / 20)
    shown = r"got \(1, 1, 4, 6\)\. For a binary network.*torch\.cat\(\[torch\.zeros_like\(s\), s\], 1\)"
    for run in (
        lambda: ao.DenseCRF()(scores, image),
        lambda: A.mean_field(scores, [lattice], [torch.ones(1, dtype=torch.float64)], 1),
    ):
        with pytest.raises(ArgumentError, match=f"scores must have a channel for each of 2 or more labels; {shown}"):
            run()
    with pytest.raises(ArgumentError, match=r"labels must be 2 or more; got 1"):
        ao.CRFasRNN(1)
    # What the message shows does what it says.
    two = torch.cat([torch.zeros_like(scores), scores], 1)
    torch.testing.assert_close(ao.DenseCRF(0)(two, image)[:, 1:], scores.sigmoid())


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels(backend, channels):
    """One mean-field step against the filter over (x / sxy, y / sxy, I_c / srgb_c), worked here."""
    scores, image = noise(1, 2, 5, 7), noise(1, channels, 5, 7, seed=1) * 20 + 100
    deviations = [10.0 + 5 * c for c in range(channels)]
    q = ao.DenseCRF(1, gaussian_compat=0.0, bilateral_sxy=4.0, bilateral_srgb=deviations, bilateral_compat=2.0)(
        scores, image
    )
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    colour = image / torch.tensor(deviations).to(image)[:, None, None]
    features = torch.cat([torch.stack([x, y])[None].to(image) / 4, colour], 1)
    assert features.shape[1] == channels + 2
    filtered = A.permutohedral_filter(scores.softmax(1), features, "symmetric")
    torch.testing.assert_close(q, (scores + 2 * filtered).softmax(1))
    # One deviation serves all channels.
    same = [ao.DenseCRF(2, bilateral_srgb=given)(scores, image) for given in (13.0, (13.0,) * channels)]
    assert torch.equal(*same)
    with pytest.raises(ArgumentError, match="channels, as bilateral_srgb"):
        ao.DenseCRF(1, bilateral_srgb=(13.0,) * (2 if channels == 5 else channels + 1))(scores, image)


def test_grey_images_have_distances_of_one_channel(backend):
    """The kernel of a grey image is exp(-|p_i - p_j|^2 / (2 sxy^2) - (I_i - I_j)^2 / (2 srgb^2)), by brute force.

    Repeated three times it would be that of srgb / sqrt(3), which is further away than the lattice's own error.
    """
    # Wide in space, so that the grey values decide.
    sxy, srgb = 20.0, 15.0
    image = (torch.linspace(90, 130, 12, dtype=torch.float64).repeat(9, 1)[None, None] + noise(1, 1, 9, 12).cpu()).to(
        torch.get_default_device()
    )
    values = torch.eye(108, dtype=torch.float64)[:, 50].view(1, 1, 9, 12).to(image.device)
    lattice = ao.DenseCRF(bilateral_sxy=sxy, bilateral_srgb=srgb).lattices(image)[1]
    found = A.permutohedral_filter(values, lattice, "after").cpu()
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")

    def brute(deviation):
        place = torch.stack([x, y]).double()[None] / sxy
        kernel = gaussian(torch.cat([place, image.cpu() / deviation], 1))
        return (kernel[:, 50] / kernel.sum(1)).view(1, 1, 9, 12)

    error = (found - brute(srgb)).abs().max()
    assert error < 0.5 * (found - brute(srgb / math.sqrt(3))).abs().max()
    # The lattice is an approximation; its error on an RGB photograph is bounded in the same way elsewhere.
    assert error < 0.1 * brute(srgb).max()


def test_images_in_0_to_1_are_warned_of():
    scores, image = torch.zeros(1, 2, 4, 4), torch.rand(1, 3, 4, 4)
    for odd in (image, image.half(), image * 4 - 2):
        with pytest.warns(UserWarning, match=r"DenseCRF: image is in .* where 0\.\.255 is expected"):
            ao.DenseCRF(1)(scores, odd)
    with pytest.warns(UserWarning, match="CRFasRNN: image is in"):
        ao.CRFasRNN(2, 1)(scores, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ao.DenseCRF(1)(scores, image * 255 - 1e-4)
        ao.DenseCRF(1)(scores, torch.zeros_like(image))
        ao.DenseCRF(1)(scores, (image > 0.5).byte())
        # Meant so.
        ao.DenseCRF(1, bilateral_srgb=13 / 255)(scores, image)
        ao.DenseCRF(1)(scores[:0], image[:0])


def test_bytes_are_what_floats_are():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 1, 6, 7), dtype=np.uint8))
    scores = torch.randn(1, 2, 6, 7)
    assert torch.equal(ao.DenseCRF(2)(scores, image), ao.DenseCRF(2)(scores, image.float()))
