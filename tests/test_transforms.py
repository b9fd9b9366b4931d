"""Every operator under torch.func's transforms and both modes of differentiation, against PyTorch's operator."""

from collections.abc import Callable
from typing import Any

import pytest
import samples
import torch
import torch.nn.functional as F
from every_operator import WITHOUT_GRADIENT
from torch.utils._pytree import tree_map_only

import atrousops as ao
import atrousops.functional as A
from atrousops import nn

SKIPPED = WITHOUT_GRADIENT


def _codes() -> tuple[tuple, dict]:
    values, codes = A.max_pool2d(samples.rand(2, 4, 9, 8), 2, 2, 1, return_indices="codes")
    return (values, codes, 2, 2, 1), {"output_size": (9, 8)}


def _meeting() -> tuple[tuple, dict]:
    values, indices = F.max_pool2d(samples.rand(2, 4, 9, 8), 3, 2, 1, return_indices=True)
    return (values, indices, 3, 2, 1), {"output_size": (9, 8)}


# Of several values for one position the last stays, and the gradient goes to all, as in PyTorch: no true derivative.
MEETING = "max_unpool2d windows that overlap"
# The samples, and what has paths of its own.
CASES: dict[str, tuple[str, Callable[[], tuple[tuple, dict]]]] = {
    **{name: (name, sample) for name, sample in samples.FUNCTIONS.items() if name not in SKIPPED},
    "max_pool2d indices": ("max_pool2d", lambda: ((samples.rand(2, 4, 9, 8), 3, 2, 1, 1, True, True), {})),
    "max_pool2d codes": ("max_pool2d", lambda: ((samples.rand(2, 4, 9, 8), 3, 2, 1), {"return_indices": "codes"})),
    "max_pool2d dilated": ("max_pool2d", lambda: ((samples.rand(4, 9, 8), 3, 2, 1, 2), {})),
    "max_pool2d empty windows": ("max_pool2d", lambda: ((samples.rand(2, 2, 3, 3), 2, 3, 1, 3, True), {})),
    "max_unpool2d codes": ("max_unpool2d", _codes),
    MEETING: ("max_unpool2d", _meeting),
    "roi_align adaptive": ("roi_align", lambda: ((samples.rand(2, 5, 8, 9), samples.boxes(), 2, 0.7), {})),
    "conv2d same": ("conv2d", lambda: ((samples.rand(2, 4, 7, 8), samples.rand(6, 4, 2, 2)), {"padding": "same"})),
}


def prepared(case: str) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], torch.Tensor]:
    """Ours, the oracle, and the first argument in float64; both of the first argument alone, with one result."""
    name, sample = CASES[case]
    args, kwargs = sample()
    first, *rest = tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, list(args))
    peer = getattr(F, name, None) if kwargs.get("return_indices") != "codes" and "codes" not in case else None

    def call(function: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        return samples.tensors(function(x, *rest, **kwargs))[0]

    def oracle(x: torch.Tensor) -> torch.Tensor:
        if peer is not None:
            return call(peer, x)
        with ao.backend("reference"):
            return call(getattr(A, name), x)

    return (lambda x: call(getattr(A, name), x)), oracle, first


def same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [case for case in CASES if case != MEETING])
def test_every_mode_of_differentiation(case):
    """Reverse, forward, reverse over reverse, forward over reverse, and each batched, against differences."""
    f, _, x = prepared(case)
    x.requires_grad_()
    batched = {"check_batched_grad": True, "fast_mode": True}
    torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_forward_grad=True, **batched)
    torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, **batched)


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("case", CASES)
def test_transforms(case):
    f, oracle, x = prepared(case)
    direction, other = torch.randn_like(x), torch.randn_like(x)
    xs = torch.stack([x, x.flip(-1), other])
    seed = torch.randn_like(oracle(x))

    def transforms(f: Callable[..., torch.Tensor]) -> dict[str, Any]:
        def scalar(x: torch.Tensor) -> torch.Tensor:
            return (f(x) * seed).square().sum()

        def along(t: torch.Tensor) -> torch.Tensor:
            return f(x + t[0] * direction + t[1] * other).flatten()[:7]

        def of_two(t: torch.Tensor) -> torch.Tensor:
            return scalar(x + t[0] * direction + t[1] * other)

        t = torch.tensor([0.01, -0.02], dtype=x.dtype)
        values, pull = torch.func.vjp(f, x)
        return {
            "vjp": (values, pull(seed)),
            "grad": torch.func.grad(scalar)(x),
            "jvp": torch.func.jvp(f, (x,), (direction,)),
            "vmap": torch.vmap(f)(xs),
            "vmap over the last": torch.vmap(f, in_dims=-1, out_dims=1)(xs.movedim(0, -1)),
            "nested vmap": torch.vmap(torch.vmap(f))(torch.stack([xs, -xs])),
            "gradients of each": torch.vmap(torch.func.grad(scalar))(xs),
            "jvp of grad": torch.func.jvp(torch.func.grad(scalar), (x,), (direction,)),
            "grad of jvp": torch.func.grad(lambda x: (torch.func.jvp(f, (x,), (direction,))[1] * seed).sum())(x),
            "jacfwd": torch.func.jacfwd(along)(t),
            "jacrev": torch.func.jacrev(along)(t),
            "hessian": torch.func.hessian(of_two)(t),
            "reverse over reverse": torch.func.jacrev(torch.func.jacrev(of_two))(t),
        }

    ours, theirs = transforms(f), transforms(oracle)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("shared", [False, True], ids=["a map each", "one map"])
def test_boxes_of_each_batch(name, shared):
    x = samples.rand(3, 2, 5, 8, 9).double()
    boxes = torch.stack([samples.boxes(), samples.boxes().flip(0), samples.boxes() * torch.tensor([1, 1, 1, 0.9, 0.8])])
    maps = x[0] if shared else x
    f = lambda x, b: getattr(A, name)(x, b, (2, 3))  # noqa: E731
    got = torch.vmap(f, (None if shared else 0, 0))(maps, boxes)
    same(got, torch.stack([f(maps if shared else x[i], boxes[i]) for i in range(3)]))
    boxes[1, 0, 0] = 2
    with pytest.raises(ValueError, match=r"image index among 0 \.\. 1"):
        torch.vmap(f, (None if shared else 0, 0))(maps, boxes)


def test_lattices_of_each_batch():
    """Features are detached in every mode, as documented."""
    values, features = samples.rand(3, 2, 4, 5, 6).double(), samples.rand(3, 2, 3, 5, 6).double() * 3
    f = lambda v, g: A.permutohedral_filter(v, g, "symmetric")  # noqa: E731
    each = torch.stack([f(v, g) for v, g in zip(values, features)])
    same(torch.vmap(f)(values, features), each)
    same(torch.vmap(f, (None, 0))(values[0], features), torch.stack([f(values[0], g) for g in features]))
    same(torch.vmap(f, (0, None))(values, features[0]), torch.stack([f(v, features[0]) for v in values]))
    tangent = torch.func.jvp(lambda g: f(values[0], g), (features[0],), (torch.ones_like(features[0]),))[1]
    assert not tangent.any()
    assert not torch.func.grad(lambda g: f(values[0], g).sum())(features[0]).any()
    scores = lambda v, g: A.mean_field(v, [A.permutohedral_lattice(g)], [-torch.ones(4)], 2)  # noqa: E731
    same(torch.vmap(scores)(values, features), torch.stack([scores(v, g) for v, g in zip(values, features)]))


@pytest.mark.parametrize("name", ["max_pool2d", "max_unpool2d", "roi_align", "roi_pool"])
def test_no_batches(name):
    (x, *rest), kwargs = samples.FUNCTIONS[name]()
    one = samples.tensors(getattr(A, name)(x, *rest, **kwargs))[0]
    x = x.new_empty(0, *x.shape).requires_grad_()
    y = torch.vmap(lambda x: samples.tensors(getattr(A, name)(x, *rest, **kwargs))[0])(x)
    assert y.shape == (0, *one.shape)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


class Network(torch.nn.Module):
    """Convolution, pooling with indices, unpooling, convolution."""

    def __init__(self, conv: Any, transpose: Any, pool: Any, unpool: Any) -> None:
        super().__init__()
        self.first, self.up = conv(2, 3, 3, padding=2, dilation=2), transpose(3, 3, 2, stride=2)
        self.pool, self.unpool, self.last = pool(2, return_indices=True), unpool(2), conv(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, indices = self.pool(self.up(torch.tanh(self.first(x))))
        return self.last(self.unpool(torch.tanh(y), indices))


@pytest.mark.usefixtures("nondeterministic")
def test_learning_to_learn():
    """MAML: the gradient of the loss after a step of gradient descent, for each task."""
    stock = Network(torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.MaxPool2d, torch.nn.MaxUnpool2d).double()
    ours = Network(nn.AtrousConv2d, nn.AtrousConvTranspose2d, nn.MaxPool2d, nn.MaxUnpool2d).double()
    ours.load_state_dict(stock.state_dict())
    tasks, targets = torch.randn(3, 2, 2, 6, 6).double(), torch.randn(3, 2, 1, 12, 12).double()

    def gradients(network: torch.nn.Module) -> Any:
        def loss(weights: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (torch.func.functional_call(network, weights, (x,)) - y).square().mean()

        def after_a_step(weights: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            steps = torch.func.grad(loss)(weights, x, y)
            return loss({k: w - 0.1 * steps[k] for k, w in weights.items()}, x, y)

        weights = {k: w.detach() for k, w in network.named_parameters()}
        return torch.vmap(torch.func.grad(after_a_step), (None, 0, 0))(weights, tasks, targets)

    same(gradients(ours), gradients(stock))


@pytest.mark.parametrize("case", ["max_pool2d", "conv2d", "roi_align"])
def test_compiled_transforms(case):
    f, oracle, x = prepared(case)
    compiled = torch.compile(torch.func.grad(lambda x: f(x).square().sum()), backend="eager")
    same(compiled(x), torch.func.grad(lambda x: oracle(x).square().sum())(x))
