"""The lattice against an independent lattice (the reference), against brute force, and by the rules of operators."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_close, assert_compiles, by_reference, is_interpreted, on_the_cpu
from pydensecrf_cases import photograph
from roi_cases import repeated
from torch.autograd import gradcheck, gradgradcheck

import atrousops as ao
import atrousops.functional as A

NORMALIZATIONS = ("none", "symmetric", "before", "after")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def random(*size, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(*size, dtype=torch.float64, generator=generator, device="cpu")
    return x.mul(scale).to(torch.get_default_device(), dtype)


def reference_filter(values, features, normalize=None):
    return by_reference(A.permutohedral_filter, values, features, normalize)


def brute_force(values, features):
    """sum_j exp(-|f_i - f_j|^2 / 2) x_j, divided by that of ones."""
    f = features.flatten(2).double().transpose(1, 2)
    kernel = torch.exp(-torch.cdist(f, f).square() / 2)
    x = values.flatten(2).double()
    return ((x @ kernel) / kernel.sum(1)[:, None]).view(values.shape)


@pytest.mark.parametrize("d", range(1, 8))
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_equals_reference(d, normalize, backend):
    # Two images, spread so that most simplices are shared, and an odd number of channels.
    values, features = random(2, 5, 17, 11), random(2, d, 17, 11, seed=1)
    y = A.permutohedral_filter(values, features, normalize)
    expected = reference_filter(values, features, normalize)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    # In fp32 a lattice is placed by another kernel; a feature that rounds across a simplex's face moves little.
    single = A.permutohedral_filter(values.float(), features.float(), normalize)
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-4)


# One lane, a vector of 8, a block of 32 and one more, and a long row.
@pytest.mark.parametrize("channels", [1, 3, 8, 21, 32, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_and_dtypes(channels, dtype, backend):
    # In the 16-bit types the rounding of the result is all there is: theirs is the exact answer, rounded once.
    values, features = random(1, channels, 300, dtype=dtype), random(1, 3, 300, seed=1)
    exact = reference_filter(values.double(), features, "after")
    theirs = reference_filter(values, features, "after")
    y = A.permutohedral_filter(values, features, "after")
    if dtype == torch.float64:
        # Nothing more exact to compare with: another order of some hundred sums.
        torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-13)
    else:
        assert_close(y, exact, theirs)


def test_shares_and_isolates(backend):
    """By hand: a value at distance 0 is shared, one at distance 50 is not seen; "after" gives means."""
    values = torch.tensor([[[1.0, 3.0, 10.0]]])
    features = torch.tensor([[[0.0, 0.0, 50.0], [0.0, 0.0, 50.0]]])
    y = A.permutohedral_filter(values, features, "after")
    torch.testing.assert_close(y, torch.tensor([[[2.0, 2.0, 10.0]]]))


def test_raw_gain_is_pydensecrfs(backend):
    """By hand, one pixel at f = 0, D = 1: weight 1 on (0, 0), 0 on (1, -1), which is its neighbour on both axes.

    The first axis gives (1, 1/2), the second 1 + 1/4 at (0, 0); pydensecrf's constant is 1 / (1 + 2^-1) = 2/3.
    """
    y = A.permutohedral_filter(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    assert y.item() == pytest.approx(5 / 6)


def test_brute_force_on_a_photograph(real_data, backend):
    image = photograph(real_data)["image"].permute(2, 0, 1)[None, :, ::4, ::4].float()
    image = image.to(torch.get_default_device())
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in image.shape[2:]), indexing="ij")
    features = torch.cat([torch.stack([x, y])[None] / 20, image / 13], 1)
    if is_interpreted(backend):
        image, features = image[..., ::3, ::3], features[..., ::3, ::3]
    values = image / 255
    y = A.permutohedral_filter(values, features, "after")
    # Another lattice agrees to rounding; the lattice itself is an approximation of the Gaussian.
    assert (y - reference_filter(values, features, "after")).abs().max() < 1e-5
    error = (y - on_the_cpu(brute_force, values, features)).abs()
    assert error.mean() < 5e-3
    assert error.max() < 0.065


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradients(normalize, backend):
    values, features = random(2, 2, 2, 3).requires_grad_(), random(2, 3, 2, 3, seed=1)
    lattice = A.permutohedral_lattice(features)
    torch.set_num_threads(1)

    def run(v):
        return A.permutohedral_filter(v, lattice, normalize)

    fast = is_interpreted(backend)
    assert gradcheck(run, values, fast_mode=fast)
    assert gradgradcheck(run, values, fast_mode=fast)


def test_features_are_detached(backend):
    features = random(1, 2, 9).requires_grad_()
    values = random(1, 1, 9, seed=1).requires_grad_()
    A.permutohedral_filter(values, features).sum().backward()
    assert features.grad is None
    assert values.grad is not None


def test_lattice_is_reused(backend):
    values, features = random(2, 3, 8, 9), random(2, 4, 8, 9, seed=1)
    lattice = A.permutohedral_lattice(features)
    n, p, corners = lattice.offsets.shape
    assert (n, p, corners) == (2, 72, 5)
    assert lattice.neighbours.shape == (5, int(lattice.counts.sum()), 2)
    torch.testing.assert_close(lattice.weights.sum(2), torch.ones(2, 72, dtype=torch.float64))
    assert torch.equal(A.permutohedral_filter(values, lattice), A.permutohedral_filter(values, features))


def test_one_lattice_serves_all_images(backend):
    values, features = random(3, 4, 30), random(1, 2, 30, seed=1)
    y = A.permutohedral_filter(values, features, "symmetric")
    torch.testing.assert_close(y, A.permutohedral_filter(values, features.expand(3, -1, -1), "symmetric"))


def test_neighbours_point_at_each_other(backend):
    lattice = A.permutohedral_lattice(random(1, 5, 500, scale=2.0))
    vertices = torch.arange(lattice.neighbours.shape[1], dtype=torch.int32)
    for forth, back in ((0, 1), (1, 0)):
        for axis in lattice.neighbours:
            linked = axis[:, forth] >= 0
            assert linked.any()
            assert torch.equal(axis[axis[linked, forth].long(), back], vertices[linked])


def test_memory_formats_views_and_inputs_untouched(backend):
    values, features = random(2, 6, 9, 8), random(2, 3, 9, 8, seed=1)
    expected = A.permutohedral_filter(values, features)
    last = values.to(memory_format=torch.channels_last)
    y = A.permutohedral_filter(last, features)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, expected)
    # A strided view, and a pointer that no vector is aligned to.
    wide = random(2, 6, 9, 17)
    wide[..., 1::2] = values
    assert torch.equal(A.permutohedral_filter(wide[..., 1::2], features), expected)
    # Three-dimensional volumes.
    assert torch.equal(
        A.permutohedral_filter(values.view(2, 6, 3, 3, 8), features.view(2, 3, 3, 3, 8)).view(values.shape), expected
    )
    assert torch.equal(values, random(2, 6, 9, 8))
    assert torch.equal(features, random(2, 3, 9, 8, seed=1))


# Planes of whole vectors, more than a tile of 128 pixels, and of an odd size; rows of whole vectors and of 21 classes.
@pytest.mark.parametrize(("channels", "size"), [(8, (4, 33)), (8, (3, 5)), (21, (4, 33)), (21, (3, 5))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_alignments_give_the_same_bits(channels, size, dtype, backend):
    values, features = random(1, channels, *size, dtype=dtype), random(1, 2, *size, seed=1)
    expected = A.permutohedral_filter(values, features)
    last = values.to(memory_format=torch.channels_last)
    for same in (values, last):
        assert torch.equal(A.permutohedral_filter(same, features), expected)
        # A pointer that no vector is aligned to.
        shifted = torch.empty(values.numel() + 1, dtype=dtype)[1:].as_strided(same.shape, same.stride()).copy_(same)
        assert torch.equal(A.permutohedral_filter(shifted, features), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_empty(shape, backend):
    features = torch.zeros(shape[0], 2, *shape[2:])
    assert A.permutohedral_filter(torch.zeros(shape), features).shape == shape


def test_repeats_bitwise(backend):
    # Large enough for several chunks and workers; where a CPU executes the kernels, for several blocks.
    pixels, spread = (300, 3.0) if backend == "triton" else (1500, 1.0) if is_interpreted(backend) else (40000, 3.0)
    values = random(1, 5, pixels, dtype=torch.float32)
    features = random(1, 3, pixels, seed=1, scale=spread).float()

    def run():
        lattice = A.permutohedral_lattice(features)
        return [*lattice, A.permutohedral_filter(values, lattice, "symmetric")]

    expected, *others = repeated(run, backend)
    if backend == "cpu":
        assert len(expected[5]) > 2
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(expected, other))
    torch.testing.assert_close(expected[-1], reference_filter(values, features, "symmetric"), rtol=0, atol=1e-5)


def test_vertices_of_many_pixels(backend):
    """A uniform area puts all its pixels on the same vertices: long lists, cut into segments on a GPU."""
    values, features = random(2, 5, 700), random(2, 2, 700, seed=1)
    features[..., 100:600] = features[..., :1]
    y = A.permutohedral_filter(values, features, "symmetric")
    torch.testing.assert_close(y, reference_filter(values, features, "symmetric"), rtol=1e-9, atol=1e-11)


def test_opcheck(backend):
    values, features = random(1, 3, 20).requires_grad_(), random(1, 2, 20, seed=1)
    torch.library.opcheck(torch.ops.atrousops.permutohedral_lattice.default, (features,))
    lattice = A.permutohedral_lattice(features)
    tensors = (lattice.weights, lattice.weights, lattice.offsets, *lattice[2:7])
    torch.library.opcheck(torch.ops.atrousops.permutohedral_apply.default, (values, *tensors, False))
    mu = [torch.full((3,), -1.0, dtype=torch.float64)]
    torch.library.opcheck(torch.ops.atrousops.mean_field.default, (values.detach(), list(tensors), mu, 2))


def test_compiles(backend):
    values, features = random(1, 3, 6, 7).requires_grad_(), random(1, 4, 6, 7, seed=1)
    assert_compiles(lambda v, f: A.permutohedral_filter(v, f, "after"), (values, features))


def test_autocast_is_float32(backend):
    values, features = random(1, 3, 20, dtype=torch.bfloat16), random(1, 2, 20, seed=1).float()
    with torch.autocast(values.device.type, torch.bfloat16):
        y = A.permutohedral_filter(values, features)
        with ao.backend("reference"):
            assert A.permutohedral_filter(values, features).dtype == torch.float32
    assert torch.equal(y, A.permutohedral_filter(values.float(), features))


def test_module(backend):
    values, features = random(1, 3, 20), random(1, 2, 20, seed=1)
    layer = ao.nn.PermutohedralFilter("after")
    assert torch.equal(layer(values, features), A.permutohedral_filter(values, features, "after"))
    assert repr(layer) == "PermutohedralFilter(normalize='after')"
    with pytest.raises(ValueError, match="normalize must be None or one of"):
        ao.nn.PermutohedralFilter("mean")


@pytest.mark.parametrize(
    ("values", "features", "error", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(1, 2, 4), ValueError, "values must be"),
        (torch.zeros(1, 3, 4), torch.zeros(2, 4), ValueError, "features must be"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 2, 5), ValueError, "features must be"),
        (torch.zeros(3, 3, 4), torch.zeros(2, 2, 4), ValueError, "features must be"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 8, 4), ValueError, "features must have 1 to 7 channels; got 8"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 0, 4), ValueError, "features must have 1 to 7 channels; got 0"),
        (torch.zeros(1, 3, 4).int(), torch.zeros(1, 2, 4), TypeError, "values must be a tensor of float64"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 2, 4).long(), TypeError, "features must be a tensor of float64"),
        (torch.zeros(1, 3, 4), None, TypeError, "features must be a tensor"),
        (torch.zeros(1, 3, 4, device="meta"), torch.zeros(1, 2, 4), ValueError, "features must be on meta"),
        (torch.zeros(1, 3, 4), torch.full((1, 2, 4), float("nan")), ValueError, "features must be finite"),
        (
            torch.zeros(1, 3, 4),
            torch.full((1, 5, 4), 1e6),
            ValueError,
            "features must (fit 64-bit keys|be finite and within 12276)",
        ),
    ],
)
def test_rejects_bad_input(values, features, error, message, backend):
    values, features = (
        x.to(torch.get_default_device()) if x is not None and x.device.type == "cpu" else x for x in (values, features)
    )
    with pytest.raises(error, match=message):
        A.permutohedral_filter(values, features)


def test_rejects_bad_lattices_and_normalizations(backend):
    lattice = A.permutohedral_lattice(torch.zeros(2, 2, 9))
    with pytest.raises(ValueError, match="values must be of 2 images and 9 pixels"):
        A.permutohedral_filter(torch.zeros(2, 1, 8), lattice)
    with pytest.raises(ValueError, match="normalize must be None or one of"):
        A.permutohedral_filter(torch.zeros(2, 1, 9), lattice, "both")


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 3),
    channels=st.integers(1, 9),
    d=st.integers(1, 7),
    size=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    normalize=st.sampled_from(NORMALIZATIONS),
)
def test_any_size_equals_reference(n, channels, d, size, spread, normalize, backend):
    values, features = random(n, channels, *size), random(n, d, *size, seed=1, scale=spread)
    y = A.permutohedral_filter(values, features, normalize)
    torch.testing.assert_close(y, reference_filter(values, features, normalize), rtol=1e-8, atol=1e-10)
