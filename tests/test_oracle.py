"""References are computed on the CPU in fp64, whatever device a test runs on."""

from collections.abc import Callable

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch.nn.grad import conv2d_weight
from torch.utils._python_dispatch import TorchDispatchMode

import atrousops as ao
from atrousops.ops import _routes


class Devices(TorchDispatchMode):
    """Where each operator of a name ran, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {t.device.type for t in args if isinstance(t, torch.Tensor)}
        self.seen.setdefault(func._opname, set()).update(devices)
        return func(*args, **(kwargs or {}))


def references(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What tests make references of, by the operator of ATen or torchvision that does the work."""
    x, w = torch.randn(1, 2, 5, 5, dtype=dtype), torch.randn(3, 2, 3, 3, dtype=dtype)
    boxes = torch.tensor([[0, 1, 1, 4, 4]], dtype=dtype)
    layer, a = torch.nn.Linear(5, 2, dtype=dtype), x[0, 0]
    return {
        "convolution": lambda: F.conv_transpose2d(F.conv2d(x, w), w),
        "convolution_backward": lambda: conv2d_weight(x, w.shape, F.conv2d(x, w)),
        "max_pool2d_with_indices": lambda: F.max_pool2d(x, 2, return_indices=True),
        "roi_align": lambda: torchvision.ops.roi_align(x, boxes, 2),
        "mm": lambda: (a @ a, torch.mm(a, a)),
        "bmm": lambda: torch.einsum("nchw,kcvw->nkh", x, x),
        "addmm": lambda: layer(a),
        "_cdist_forward": lambda: torch.cdist(a, a),
        "_softmax": lambda: x.softmax(1),
        "sum": lambda: x.sum((2, 3)),
        "exp": lambda: x.exp(),
        "index_add_": lambda: a.clone().index_add_(0, torch.tensor([0, 1, 0]), a[:3]),
        "addmm_": lambda: a.clone().addmm_(a, a),
    }


def recorded(monkeypatch) -> list[str]:
    """The operators that are computed on the CPU from now on."""
    moved, on_the_cpu = [], oracle.on_the_cpu

    def record(function, *args, **kwargs):
        moved.append(function._opname)
        return on_the_cpu(function, *args, **kwargs)

    monkeypatch.setattr(oracle, "on_the_cpu", record)
    return moved


def moved_by(call: Callable[[], object], monkeypatch) -> list[str]:
    """Those of a call with tensors of the CPU, which stand for a GPU's."""
    with monkeypatch.context() as patched, oracle.References():
        patched.setattr(oracle, "_is_away", lambda t: True)
        moved = recorded(patched)
        call()
    return moved


@pytest.mark.parametrize("name", references(torch.float64))
def test_whatever_is_computed_in_fp64_is_moved_and_that_alone(name, monkeypatch):
    assert name in moved_by(references(torch.float64)[name], monkeypatch)
    assert moved_by(references(torch.float32)[name], monkeypatch) == []


def test_gradients_are_moved_too(monkeypatch):
    x, w = (torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True) for size in (5, 3))
    moved = moved_by(lambda: torch.autograd.grad((F.conv2d(x, w).exp() @ w).sum(), (x, w)), monkeypatch)
    assert moved.count("convolution_backward") == 1
    assert moved.count("bmm") == 3


def test_views_and_what_is_ours_stay(monkeypatch):
    """What shares memory has to go on sharing it; what is under test has to run where it is."""
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    with ao.backend("reference"):
        stay = [lambda: x.view(2, 36)[0].t().fill_, lambda: torch.randn_like(x), lambda: x.to("cpu", torch.float32)]
        assert [moved_by(call, monkeypatch) for call in stay] == [[]] * 3
    y, shape = torch.zeros(2, 3, dtype=torch.float64), (3, 2)
    assert moved_by(lambda: y.t().add_(torch.ones(shape, dtype=torch.float64)), monkeypatch) == ["add_"]
    assert (y == 1).all()
    assert moved_by(lambda: torch.ops.atrousops.max_pool(x, [2, 2], [2, 2], [0, 0], [1, 1], False), monkeypatch) == []


def test_calls_of_ours_go_the_way_they_go_without():
    """A mode of the dispatcher's has them leave out what is quick, and torch.compile compile nothing."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    with oracle.References():
        assert _routes.is_plain((torch.ones(2),))
        torch.compile(lambda x: x.exp() + 1, backend=count, fullgraph=True)(torch.ones(2))
    assert len(graphs) == 1


@pytest.mark.parametrize("other", [lambda x: x.cos(), lambda x: x.detach() * 2 + 0 * x], ids=["values", "gradients"])
def test_a_graph_that_says_something_else_is_found(other):
    with pytest.raises(AssertionError, match="not close"):
        oracle.assert_compiles(
            lambda x: other(x) if torch.compiler.is_compiling() else x * 2, (torch.ones(2).requires_grad_(),)
        )


@pytest.mark.gpu
def test_references_of_a_gpu_live_on_the_cpu():
    x = torch.randn(1, 2, 8, 8, device="cuda", dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, device="cuda", dtype=torch.float64, requires_grad=True)
    with Devices() as devices, oracle.References():
        y = F.max_pool2d(F.conv2d(x, w), 2)
        gradients = torch.autograd.grad(y.sum(), (x, w))
    assert {t.device.type for t in (y, *gradients)} == {"cuda"}
    assert devices.seen["convolution"] == devices.seen["convolution_backward"] == {"cpu"}
    assert devices.seen["max_pool2d_with_indices"] == devices.seen["max_pool2d_with_indices_backward"] == {"cpu"}
    exact = F.max_pool2d(F.conv2d(x.detach().cpu(), w.detach().cpu()), 2)
    assert torch.equal(y.cpu(), exact)


@pytest.mark.gpu
def test_the_fixture_of_a_gpu_does_so(backend, monkeypatch):
    x, moved = torch.randn(1, 1, 5, 5, dtype=torch.float64), recorded(monkeypatch)
    F.conv2d(x, x[..., :3, :3])
    F.conv2d(x.float(), x[..., :3, :3].float())
    assert moved == (["convolution"] if x.is_cuda else [])
