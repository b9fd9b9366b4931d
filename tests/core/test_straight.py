"""Which calls are known to go straight to PyTorch's operator: only those that are the same in all that matters."""

import pytest
import torch
from torch import nn

import atrousops as ao
from atrousops import _library
from atrousops import functional as A
from atrousops._checks import ArgumentError
from atrousops.ops import _conv_dispatch
from atrousops.ops.conv import _CONV1D, _CONV2D

ARGS = (1, 0, 1, 1)  # stride, padding, dilation, groups: what A.conv2d(x, w) comes with

# The oldest that these tests have run under; nothing newer may skip them.
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
pytestmark = pytest.mark.skipif(
    _library.planner is None or (OLD and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__")),
    reason="the compiled module is switched off, or this PyTorch is older than DLPack's exchange API",
)


@pytest.fixture(autouse=True)
def _nothing_known():
    _conv_dispatch.forget()
    yield
    _conv_dispatch.forget()


def known(x, w, args=ARGS, call=_CONV2D) -> bool:
    return _conv_dispatch.known(call, x, w, None, *args)


@pytest.fixture
def x():
    return torch.randn(1, 4, 6, 5)


@pytest.fixture
def w():
    return torch.randn(3, 4, 3, 3)


def test_a_call_is_known_once_it_was_made(x, w):
    assert not known(x, w)
    first = A.conv2d(x, w)
    assert known(x, w)
    assert known(torch.randn_like(x), w)
    assert torch.equal(A.conv2d(x, w), first)
    _conv_dispatch.forget()
    assert not known(x, w)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: torch.randn(1, 4, 5, 6),
        lambda x: torch.randn(2, 4, 6, 5),
        lambda x: torch.randn(4, 6, 5),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.bfloat16(),
        lambda x: x.to("meta"),
        lambda x: x.detach().requires_grad_(),
        lambda x: torch.randn(1, 1, 1, 4, 6, 5),
        lambda x: x.to_sparse(),
        lambda x: [1.0],
    ],
    ids=["shape", "batch", "rank", "layout", "dtype", "device", "gradient", "more axes than kept", "sparse", "a list"],
)
def test_another_input_is_another_call(other, x, w):
    A.conv2d(x, w)
    assert not known(other(x), w)
    assert known(x, w)


def test_other_arguments_or_another_operator_are_another_call(x, w):
    A.conv2d(x, w)
    assert not known(x, w, (1, 1, 1, 1))
    assert not known(x, w, ((1, 1), 0, 1, 1))
    assert not known(x, w, call=_CONV1D)
    A.conv2d(x, w, padding=1)
    assert known(x, w, (1, 1, 1, 1))
    assert not known(x, w, ARGS[:3])
    assert not known(x, w, (*ARGS, 1))


def test_another_or_a_changed_weight_is_another_call(x, w):
    A.conv2d(x, w)
    assert not known(x, w.clone())
    w.mul_(2)
    assert not known(x, w)
    A.conv2d(x, w)
    assert known(x, w)


def test_an_address_that_is_used_again_is_not_the_old_weight(x):
    w = torch.randn(3, 4, 3, 3)
    A.conv2d(x, w)
    address = id(w)
    del w
    # CPython hands the address of a freed object to the next of its kind.
    others = [torch.randn(3, 4, 3, 3) for _ in range(64)]
    assert any(id(other) == address for other in others)
    assert not any(known(x, other) for other in others)


def test_gradients_and_autocast_are_told_apart(x, w):
    w.requires_grad_()
    A.conv2d(x, w)
    with torch.no_grad():
        assert not known(x, w)
        A.conv2d(x, w)
        assert known(x, w)
    assert known(x, w)
    with torch.autocast("cpu"):
        assert not known(x, w)


def test_a_forced_backend_is_asked(x, w):
    A.conv2d(x, w)
    with ao.backend("cpu"):
        assert not known(x, w)
    assert known(x, w)


def test_only_plain_tensors_are_known(x, w):
    class Mine(torch.Tensor):
        pass

    assert not known(x.as_subclass(Mine), w)
    A.conv2d(x.as_subclass(Mine), w)
    assert not known(x.as_subclass(Mine), w)
    A.conv2d(x, nn.Parameter(w))
    parameter = nn.Parameter(w)
    A.conv2d(x, parameter)
    assert known(x, parameter)


def test_what_a_transform_wraps_is_never_known(x, w):
    """It is a plain tensor by its type, and has no memory of its own that could be looked at."""
    seen = []

    def call(x):
        y = A.conv2d(x, w)
        seen.append(known(x, w))
        return y.sum()

    for _ in range(2):
        torch.func.vmap(call)(x[:, None])
        torch.func.grad(call)(x)
    assert seen == [False] * 4


def test_weights_without_a_version_are_never_known(x):
    with torch.inference_mode():
        w = torch.randn(3, 4, 3, 3)
        A.conv2d(x, w)
        assert not known(x, w)


def test_weights_with_subnormals_are_never_known(x, w):
    w[0] = 1e-40
    A.conv2d(x, w)
    assert not known(x, w)


def test_calls_of_our_kernels_are_never_known(monkeypatch, w):
    monkeypatch.setattr(_conv_dispatch.choice, "choose", lambda *args: "direct")
    _conv_dispatch.forget()
    x = torch.randn(2 + _conv_dispatch._SMALL_SIZE // (w.numel() * 4096), 4, 32, 32)
    assert x.numel() * w.numel() > _conv_dispatch._SMALL_SIZE
    A.conv2d(x, w)
    assert not known(x, w)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_large_inputs_are_looked_at_whenever_they_come(monkeypatch, dtype, last):
    monkeypatch.setattr(_conv_dispatch.choice, "choose", lambda *args: "aten")
    layout = torch.channels_last if last else torch.contiguous_format
    x = (1 + torch.rand(1, 64, 32, 32)).to(dtype).to(memory_format=layout)
    w = (1 + torch.rand(64, 64, 3, 3)).to(dtype)
    A.conv2d(x, w)
    assert known(x, w)
    tiny = torch.full_like(x, torch.finfo(dtype).smallest_normal / 4)
    assert not known(tiny, w)
    assert not A.conv2d(tiny, w).any()
    assert known(torch.zeros_like(x), w)
    assert known(torch.full_like(x, torch.nan), w)
    # Every other column of a wider image: what lies between is not the input's, and would be read.
    wide = (1 + torch.rand(1, 64, 32, 64)).to(dtype)[..., ::2]
    A.conv2d(wide, w)
    assert not known(wide, w)


def test_an_error_is_the_calls_own(x, w):
    A.conv2d(x, w)
    assert known(x, w)
    with pytest.raises(ArgumentError, match="bias"):
        A.conv2d(x, w, torch.zeros(7))


def test_the_compiled_functions_say_what_they_take(x, w):
    for function in (_conv_dispatch.run, _conv_dispatch.known):
        with pytest.raises(TypeError, match="call, input, weight, bias and args"):
            function(_CONV2D, x, w)
    with pytest.raises(TypeError, match="args and step"):
        _conv_dispatch.note(_CONV2D, x)


def test_without_the_exchange_api_nothing_is_known():
    class Tensor:
        pass

    assert _library.planner.straight(Tensor, (Tensor,), [None], bool, bool, print) is None


def test_more_calls_than_are_kept(w):
    # 4096 are kept; the oldest go all at once, and nothing is known wrongly.
    w = torch.randn(1, 1, 1, 1)
    for i in range(1, 4200):
        _conv_dispatch.note(_CONV2D, torch.empty(1, 1, 1, i), w, ARGS, 0)
    assert not known(torch.empty(1, 1, 1, 1), w)
    assert known(torch.empty(1, 1, 1, 4199), w)
