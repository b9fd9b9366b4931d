"""Calls inside torch.func.functionalize, compiled transforms and dispatch modes, and of what is no plain tensor."""

import copy

import pytest
import samples
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import atrousops.functional as A
from atrousops import nn
from atrousops.common.checks import ArgumentError

NAMES = [name for name in samples.FUNCTIONS if name != "permutohedral_lattice"]


def of_the_first(name: str):
    """The first output of the sample as a function of its first tensor, and that tensor."""
    (first, *rest), kwargs = samples.FUNCTIONS[name]()
    return lambda x: samples.tensors(getattr(A, name)(x, *rest, **kwargs))[0], first


# Those of one and three axes are registered with those of two.
FUNCTIONS = [name for name in NAMES if not name.endswith(("1d", "3d"))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functionalize(name):
    f, x = of_the_first(name)
    expected = f(x)
    torch.testing.assert_close(torch.func.functionalize(f)(x), expected)
    torch.testing.assert_close(make_fx(torch.func.functionalize(f))(x)(x), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("outer", ["functionalize", "grad"])
def test_functionalize_with_derivatives(name, outer):
    f, x = of_the_first(name)
    functionalize, grad = torch.func.functionalize, torch.func.grad
    both = functionalize(grad(loss_of(f))) if outer == "functionalize" else grad(functionalize(loss_of(f)))
    torch.testing.assert_close(both(x), grad(loss_of(f))(x))


def loss_of(f):
    return lambda x: f(x).square().sum()


@pytest.mark.parametrize("transform", [torch.vmap, lambda f: torch.func.grad(loss_of(f))], ids=["vmap", "grad"])
@pytest.mark.parametrize("codes", [False, True])
def test_transforms_of_unpooling_compile_whole(transform, codes):
    x = samples.rand(2, 3, 4, 4)
    values, marks = A.max_pool2d(x, 2, return_indices="codes" if codes else True)

    def unpool(values):
        return A.max_unpool2d(values, marks[0] if values.dim() == 3 else marks, 2)

    compiled = torch.compile(transform(unpool), backend="aot_eager", fullgraph=True)
    if transform is torch.vmap:
        marks = marks[:1].expand_as(marks)
    torch.testing.assert_close(compiled(values), transform(unpool)(values))


class Refused(ValueError):
    """What a mode raises, of the class by which kernels say that values will not do."""


class Refuse(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise Refused("by a mode")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_mode_raises_arrives_from_a_call_that_was_made_before(name):
    f, x = of_the_first(name)
    with torch.no_grad():
        f(x)
        with Refuse(), pytest.raises(Refused, match="by a mode"):
            f(x)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "conv_transpose2d", "max_pool2d"])
def test_nested_tensors_go_to_pytorch(name):
    (x, *rest), kwargs = samples.FUNCTIONS[name]()
    nested = torch.nested.nested_tensor([x, x])
    errors = []
    for function in (getattr(A, name), getattr(F, name)):
        with pytest.raises(NotImplementedError) as error:
            function(nested, *rest, **kwargs)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("function", [A.roi_align, A.roi_pool])
def test_nested_features_are_refused(function):
    with pytest.raises(TypeError, match=r"input must be .* got a nested one"):
        function(torch.nested.nested_tensor([torch.ones(2, 5, 5)] * 2), samples.boxes(), 2)


@pytest.mark.parametrize("name", ["max_unpool2d", "roi_align", "roi_pool"])
@pytest.mark.parametrize("before", [False, True])
def test_a_kernels_word_on_values_is_the_same_inside_a_mode(name, before):
    x, boxes = samples.rand(1, 2, 4, 4), torch.tensor([[0.0, 3, 3, 1, 1]])
    second = torch.full(x.shape, 99) if name == "max_unpool2d" else boxes

    def refused():
        with pytest.raises(ArgumentError, match=r": (indices|boxes) must ") as error:
            getattr(A, name)(x, second, 2)
        return str(error.value)

    if before:
        refused()
    with FlopCounterMode(display=False):
        inside = refused()
    assert inside == refused()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["max_unpool2d", "roi_align", "roi_pool"])
def test_a_kernels_word_on_values_is_a_runtime_error_in_a_compiled_graph(name, backend):
    """As PyTorch's is. It is an ArgumentError wherever torch and our extension share pybind11's internals."""
    x, boxes = samples.rand(1, 2, 4, 4), torch.tensor([[0.0, 3, 3, 1, 1]])
    second = torch.full(x.shape, 99) if name == "max_unpool2d" else boxes
    torch.compiler.reset()
    compiled = torch.compile(lambda x, s: getattr(A, name)(x, s, 2), backend=backend, fullgraph=True)
    with pytest.raises(RuntimeError, match=r": (indices|boxes) must "):
        compiled(x, second)


TRACED = [name for name in NAMES if name.startswith(("conv1", "conv2", "conv3", "conv_t", "max", "roi"))]


@pytest.mark.parametrize("name", TRACED)
def test_fx_traces_functions_as_it_does_pytorchs(name):
    """A model whose forward calls torch.nn.functional and torchvision.ops is traced; so it is with ours."""
    (x, *rest), kwargs = samples.FUNCTIONS[name]()
    f = lambda x: getattr(A, name)(x, *rest, **kwargs)  # noqa: E731
    traced = torch.fx.symbolic_trace(f)
    assert [node.op for node in traced.graph.nodes if node.op != "get_attr"] == [
        "placeholder",
        "call_function",
        "output",
    ]
    torch.testing.assert_close(traced(x), f(x))


def test_fx_traces_pooling_with_codes_and_lists_of_boxes():
    x, boxes = samples.rand(2, 3, 6, 6), samples.boxes()

    def pool(x):
        values, codes = A.max_pool2d(x, 2, return_indices="codes")
        return A.max_unpool2d(values, codes, 2)

    def align(x, first, second):
        return A.roi_align(x, [first, second], 2)

    torch.testing.assert_close(torch.fx.symbolic_trace(pool)(x), pool(x))
    given = (x, boxes[:1, 1:], boxes[1:, 1:])
    torch.testing.assert_close(torch.fx.symbolic_trace(align)(*given), align(*given))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padded_layers_leave_what_is_no_tensor_to_pytorch(mode):
    class Ours(nn.AtrousConv2d):
        """A subclass is traced."""

    layer = Ours(2, 3, 3, padding=1, padding_mode=mode)
    stock = torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    stock.load_state_dict(copy.deepcopy(layer.state_dict()))
    x = samples.rand(1, 2, 6, 5)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), stock(x))
    for wrong in (None, x.numpy(), [x], torch.nested.nested_tensor([x, x])):
        errors = []
        for each in (layer, stock):
            with pytest.raises((TypeError, AttributeError, NotImplementedError)) as error:
                each(wrong)
            errors.append((error.type, str(error.value)))
        assert errors[0] == errors[1]


def test_unpooling_beyond_64_bits():
    values, indices = F.max_pool2d(samples.rand(1, 1, 4, 4), 2, return_indices=True)
    with pytest.raises(ValueError, match=r"output_size must be smaller than 2\^63"):
        A.max_unpool2d(values, indices, 2, 1 << 62 | 1 << 61 | 1 << 63)
