"""DenseCRF against pydensecrf (stored answers, and live where it is installed), CRFasRNN against autograd's rules."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_compiles, by_reference, is_interpreted
from pydensecrf_cases import CASES, live_q, photograph
from roi_cases import repeated
from torch.utils._python_dispatch import TorchDispatchMode

import atrousops as ao
import atrousops.functional as A

STORED = Path(__file__).resolve().parents[1] / "data" / "pydensecrf.npz"
BOUND = 1e-4


@pytest.fixture(scope="module")
def stored():
    with np.load(STORED) as file:
        return dict(file)


@pytest.fixture
def example(stored):
    """Scores and image; behind `backend` in a test's arguments, they are where that wants them."""
    image = torch.from_numpy(stored["image"]).permute(2, 0, 1)[None]
    return tuple(x.to(torch.get_default_device()) for x in (-torch.from_numpy(stored["unary"])[None], image))


@pytest.fixture
def one_thread():
    """For hundreds of tiny calls: waking a second worker costs more than they do."""
    torch.set_num_threads(1)


def crf(iterations=5, **settings):
    return ao.DenseCRF(iterations, **settings)


@pytest.mark.parametrize("case", CASES)
def test_equals_stored_pydensecrf(backend, case, stored, example):
    q = crf(**CASES[case])(*example)
    assert (q[0].cpu() - torch.from_numpy(stored[case])).abs().max() <= BOUND
    # The answer is not the question: the case does move Q.
    assert (q - example[0].softmax(1)).abs().max() > 0.05


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_stored_pydensecrf(case, stored, example):
    with ao.backend("reference"):
        q = crf(**CASES[case])(*example)
    assert (q[0] - torch.from_numpy(stored[case])).abs().max() <= BOUND


@pytest.mark.parametrize("case", CASES)
def test_equals_live_pydensecrf(case, stored):
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    # Wider than the stored image, and again a multiple of four pixels.
    image = np.concatenate([stored["image"], stored["image"][::-1]], 1)
    unary = np.concatenate([stored["unary"], stored["unary"][:, :, ::-1]], 2)
    q = crf(**CASES[case])(-torch.from_numpy(unary)[None], torch.from_numpy(image).permute(2, 0, 1)[None])
    assert (q[0] - torch.from_numpy(live_q(image, unary, **CASES[case]))).abs().max() <= BOUND


def test_real_photograph(real_data):
    real = photograph(real_data)
    scores = -real["unary"][None]
    before = scores.clone()
    q = crf(5)(scores, real["image"].permute(2, 0, 1)[None])
    assert (q[0] - real["Q"]).abs().max() <= BOUND
    assert torch.equal(scores, before)


def test_batch_equals_single_images(backend, example):
    scores, image = example
    other = (scores.flip(3), image.flip(2))
    both = crf()(torch.cat([scores, other[0]]), torch.cat([image, other[1]]))
    assert torch.equal(both, torch.cat([crf()(scores, image), crf()(*other)]))


def test_repeats_bitwise(backend, example):
    scale = 1 if is_interpreted(backend) else 8
    scores, image = (x.repeat(1, 1, scale, scale) for x in example)
    expected, *others = repeated(lambda: crf()(scores, image), backend)
    assert all(torch.equal(other, expected) for other in others)


def test_empty_batch(backend):
    q = crf()(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8))
    assert q.shape == (0, 3, 8, 8)


def test_gradients_and_inference_take_different_paths_to_one_answer(backend, example):
    scores, image = example
    q = crf()(scores, image)
    differentiable = crf()(scores.clone().requires_grad_(), image)
    assert differentiable.requires_grad
    torch.testing.assert_close(differentiable, q, rtol=0, atol=1e-5)


# One vector, a block of four, and more than the registers take.
@pytest.mark.parametrize("labels", [2, 8, 21, 32, 33, 70])
def test_label_counts(backend, labels):
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    scores = torch.randn(1, labels, 6, 7, dtype=torch.float64, generator=generator)
    image = torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=generator) * 255
    matrix = torch.randn(labels, labels, dtype=torch.float64, generator=generator)
    layer = ao.DenseCRF(3, 2.0, matrix * 0.3, 5.0, 40.0, 0.3)
    q = layer(scores, image)
    expected = by_reference(layer, scores, image)
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(layer(scores.float(), image), expected.float(), rtol=0, atol=1e-5)


def test_many_kernels_in_one_step(backend):
    # More lattices than a CUDA pass reads at once, one of them for both images, in registers and out of them.
    many = ((3, torch.float64), (3, torch.float32), (140, torch.float64), (140, torch.float32))
    for labels, dtype in many:
        generator = torch.Generator(torch.get_default_device()).manual_seed(3)

        def noise(*size, generator=generator, dtype=dtype):
            return torch.randn(*size, dtype=dtype, generator=generator)

        scores = noise(2, labels, 30)
        lattices = [A.permutohedral_lattice(noise(1 if k == 1 else 2, 2, 30)) for k in range(6)]
        mus = [noise(labels) for _ in lattices]
        q = A.mean_field(scores, lattices, mus, 2)
        one_by_one = A.mean_field(scores.clone().requires_grad_(), lattices, mus, 2)
        torch.testing.assert_close(q, one_by_one.detach())


def test_zero_iterations_is_softmax(backend, example):
    torch.testing.assert_close(crf(0)(*example), example[0].softmax(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(backend, dtype, example):
    scores, image = example
    q = crf()(scores.to(dtype), image)
    assert q.dtype == dtype
    # Scores round on the way in, Q on the way out; between them lies float32, or float64.
    exact = crf()(scores.to(dtype).double(), image)
    assert (q.double() - exact).abs().max() <= max(torch.finfo(dtype).eps, 1e-5)


def test_autocast_computes_in_float32(backend, example):
    scores, image = example
    expected = crf()(scores.bfloat16().float(), image)
    with torch.autocast(scores.device.type, torch.bfloat16):
        q = crf()(scores.bfloat16(), image.float())
    assert q.dtype == torch.float32
    assert torch.equal(q, expected)


def test_memory_formats(backend, example):
    scores, image = example
    last = crf()(scores.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, crf()(scores, image), rtol=0, atol=1e-6)


def test_pixels_unlike_all_others_keep_their_label(backend):
    """One white pixel on black, whose scores lean to another label: the bilateral kernel does not smooth it away."""
    image = torch.zeros(1, 3, 12, 12)
    image[..., 6, 6] = 255
    scores = torch.zeros(1, 2, 12, 12)
    scores[:, 0] = 2
    scores[:, :, 6, 6] = torch.tensor([0.0, 1.0])
    q = ao.DenseCRF(5, gaussian_compat=0.0)(scores, image)
    assert q[0, 1, 6, 6] > 0.5
    # The spatial kernel, which sees no colour, does.
    q = ao.DenseCRF(5, bilateral_compat=0.0)(scores, image)
    assert q[0, 1, 6, 6] < 0.5


def small(dtype=torch.float64):
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    scores = torch.randn(2, 2, 2, 3, dtype=dtype, generator=generator)
    return scores, torch.rand(2, 3, 2, 3, dtype=dtype, generator=generator) * 60


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("normalization", ["none", "symmetric", "before", "after"])
def test_gradcheck_scores(backend, normalization):
    scores, image = small()
    layer = ao.DenseCRF(2, 2.0, 0.3, 10.0, 20.0, 0.5, normalization)
    assert torch.autograd.gradcheck(
        lambda s: layer(s, image), scores.requires_grad_(), fast_mode=is_interpreted(backend)
    )


@pytest.mark.usefixtures("one_thread")
def test_gradcheck_crf_as_rnn(backend):
    scores, image = small()
    layer = ao.CRFasRNN(2, 2, bilateral_sxy=10.0, bilateral_srgb=20.0, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(2, 2, dtype=torch.float64) * 0.1)

    def run(s, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (s, image))

    names = [name for name, _ in layer.named_parameters()]
    assert names == ["gaussian_weight", "bilateral_weight", "compatibility"]
    inputs = (scores.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=is_interpreted(backend))


def test_crf_as_rnn_starts_as_a_dense_crf(backend):
    scores, image = small(dtype=torch.float32)
    shared = {"gaussian_sxy": 3.0, "bilateral_sxy": 160.0, "bilateral_srgb": 3.0, "normalization": "after"}
    dense = ao.DenseCRF(5, gaussian_compat=3.0, bilateral_compat=5.0, **shared)
    torch.testing.assert_close(ao.CRFasRNN(2)(scores, image), dense(scores, image))


def test_crf_as_rnn_learns(backend, example):
    scores, image = example
    target = ao.DenseCRF(3, 2.0, 2.0, 20.0, 20.0, 4.0, "after")(scores, image).argmax(1)
    layer = ao.CRFasRNN(3, 3, 2.0, 0.0, 20.0, 20.0, 0.0)
    optimizer = torch.optim.Adam(layer.parameters(), 0.3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(layer(scores, image).clamp_min(1e-6).log(), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_state_dict_round_trip():
    layer, other = ao.CRFasRNN(4), ao.CRFasRNN(4)
    torch.nn.init.normal_(layer.compatibility)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.compatibility, layer.compatibility)
    assert ao.DenseCRF().state_dict() == {}


@pytest.mark.parametrize("layer", [ao.DenseCRF(2), ao.CRFasRNN(3, 2)])
def test_compiles(backend, layer, example):
    assert_compiles(layer.to(torch.get_default_device()), example)


def test_repr():
    assert "iterations=10, gaussian_sxy=3, bilateral_sxy=80, bilateral_srgb=13" in repr(ao.DenseCRF())
    assert repr(ao.CRFasRNN(21)).startswith("CRFasRNN(21, iterations=5")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"iterations": -1}, ValueError, "iterations must be 0 or more"),
        ({"iterations": 2.5}, TypeError, "iterations must be an int"),
        ({"gaussian_sxy": 0.0}, ValueError, "gaussian_sxy must be a positive number"),
        ({"bilateral_sxy": (80.0, -1.0)}, ValueError, "bilateral_sxy must be a positive number or 1 to 3"),
        ({"bilateral_srgb": (13.0,) * 7}, ValueError, "bilateral_srgb must be a positive number or 1 to 6"),
        ({"bilateral_srgb": float("nan")}, ValueError, "bilateral_srgb must be a positive number"),
        ({"bilateral_srgb": "13 or so"}, TypeError, "bilateral_srgb must be a number"),
        ({"gaussian_compat": [[1.0, 2.0]]}, ValueError, "gaussian_compat must be a number, L numbers"),
        ({"bilateral_compat": float("inf")}, ValueError, "bilateral_compat must be finite"),
        ({"bilateral_compat": "Potts"}, TypeError, "bilateral_compat must be a number"),
        ({"kernels": []}, ValueError, "kernels must be at least one"),
        ({"kernels": [{"compat": 1.0}]}, ValueError, r"kernels\[0\]\.sxy must be given unless srgb is"),
        (
            {"kernels": [{"compat": 1.0, "sxy": 1.0, "channels": (0,)}]},
            ValueError,
            r"kernels\[0\]\.channels must be integers",
        ),
        ({"kernels": [{"weight": 1.0}]}, ValueError, r"kernels\[0\] must have keyword arguments of CRFKernel"),
        (
            {"kernels": [{"compat": 1.0, "sxy": 1.0}], "gaussian_sxy": 2.0},
            ValueError,
            "kernels must be None where gaussian_sxy",
        ),
        ({"spacing": 0.0}, ValueError, "spacing must be a positive number"),
        ({"bilateral_sxy": (1.0,) * 4}, ValueError, "bilateral_sxy must be a positive number or 1 to 3"),
        ({"normalization": "both"}, ValueError, "normalization must be one of none, symmetric, before, after"),
    ],
)
def test_rejects_bad_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        ao.DenseCRF(**arguments)


@pytest.mark.parametrize(
    ("scores", "image", "error", "message"),
    [
        (torch.zeros(8, 8), torch.zeros(1, 3, 8, 8), ValueError, "scores must have 3 to 5 dimensions"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8), ValueError, "image must have the N and the axes of scores"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 0, 8, 8), ValueError, "image must have 1 to 5 channels"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 6, 8, 8), ValueError, "image must have 1 to 5 channels"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), ValueError, "image must have the N and the axes of scores"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8), ValueError, "image must have the N and the axes of scores"),
        (torch.zeros(1, 3, 8, 8).int(), torch.zeros(1, 3, 8, 8), TypeError, "scores must be float64"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8).int(), TypeError, "image must be uint8 or floating"),
        (torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), float("nan")), ValueError, "DenseCRF: image must be finite"),
        (torch.zeros(1, 3, 8, 8), None, TypeError, "image must be a tensor"),
        (torch.zeros(1, 3, 8, 8, device="meta"), torch.zeros(1, 3, 8, 8), ValueError, "image must be on meta"),
    ],
)
def test_rejects_bad_input(scores, image, error, message):
    with pytest.raises(error, match=message):
        ao.DenseCRF(1)(scores, image)


def test_rejects_wrong_label_counts(backend):
    scores, image = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="scores must have 4 labels; got 3"):
        ao.CRFasRNN(4)(scores, image)
    with pytest.raises(ValueError, match="gaussian_compat must have as many labels as scores, 3"):
        ao.DenseCRF(gaussian_compat=(1.0, 2.0))(scores, image)
    with pytest.raises(ValueError, match="labels must be 2 or more"):
        ao.CRFasRNN(0)


@pytest.mark.usefixtures("one_thread")
@settings(deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 2),
    labels=st.integers(2, 6),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    normalization=st.sampled_from(["none", "symmetric", "before", "after"]),
    seed=st.integers(0, 99),
)
def test_any_size_equals_reference(backend, n, labels, h, w, normalization, seed):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    scores = torch.randn(n, labels, h, w, dtype=torch.float64, generator=generator)
    image = torch.rand(n, 3, h, w, dtype=torch.float64, generator=generator) * 255
    layer = ao.DenseCRF(2, 2.0, 0.2, 5.0, 40.0, 0.3, normalization)
    q = layer(scores, image)
    torch.testing.assert_close(q, by_reference(layer, scores, image))
    torch.testing.assert_close(q.sum(1), torch.ones(n, h, w, dtype=torch.float64))


def test_lattices_need_no_tensor_of_python_numbers():
    """A GPU would wait for such a tensor's copy, and for all that was queued before it."""
    lifted = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            lifted.append(func._opname == "lift_fresh")
            return func(*args, **(kwargs or {}))

    crf = ao.DenseCRF(iterations=1, bilateral_srgb=(13.0, 9.0, 7.0))
    with Watch():
        crf.lattices(255 * torch.rand(1, 3, 4, 5))
    assert lifted
    assert not any(lifted)


def test_one_program_serves_all_sizes():
    """Of images and batches: nothing of the traced one's may be a constant of the graph."""
    crf = ao.DenseCRF().eval()

    def draw(n, h, w):
        return torch.randn(n, 3, h, w), 255 * torch.rand(n, 3, h, w)

    anything = torch.export.Dim.DYNAMIC
    sizes = {0: anything, 2: anything, 3: anything}
    with torch.no_grad():
        program = torch.export.export(crf, draw(2, 16, 20), dynamic_shapes=(sizes, sizes), strict=False)
        for shape in ((1, 23, 18), (3, 12, 31)):
            inputs = draw(*shape)
            torch.testing.assert_close(program.module()(*inputs), crf(*inputs), rtol=0, atol=0)
