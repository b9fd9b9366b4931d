"""The memory order of results: sequences (N, C, L) are contiguous, as PyTorch's are, and fake kernels know it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from shapes import channels_last
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import atrousops as ao
import atrousops.functional as A
from atrousops.common.formats import in_channels_last

LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "(N, L, C)": channels_last,
    "every second position": lambda t: torch.stack([t, t], -1)[..., 0],
    "a slice of (N, L, C)": lambda t: channels_last(torch.cat([t, t], 1))[:, : t.shape[1]],
}


def sequences(module, layout):
    """Results and gradients of every function of sequences."""
    # PyTorch's unpooling would refuse.
    torch.use_deterministic_algorithms(False)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, generator=generator) for s in ((2, 4, 9), (4, 4, 3)))
    x, w = (t.to(torch.get_default_device()) for t in (x, w))
    x = LAYOUTS[layout](x).requires_grad_()
    values, indices = F.max_pool1d(x.detach(), 2, return_indices=True)
    values = LAYOUTS[layout](values).requires_grad_()
    found = {
        "conv1d": (module.conv1d(x, w, padding=2, dilation=2), x),
        "depthwise": (module.conv1d(x, w[:, :1], padding=1, groups=4), x),
        "conv_transpose1d": (module.conv_transpose1d(x, w, stride=2), x),
        "max_pool1d": (module.max_pool1d(x.detach(), 3, 2), None),
        "max_unpool1d": (module.max_unpool1d(values, indices, 2), values),
    }
    gradients = {f"gradient of {n}": torch.autograd.grad(y, at, y)[0] for n, (y, at) in found.items() if at is not None}
    return {name: y for name, (y, _) in found.items()} | gradients


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequences_are_contiguous_as_in_pytorch(layout, backend):
    ours, theirs = sequences(A, layout), sequences(F, layout)
    for name, y in ours.items():
        # On CUDA, as with a gradient, its max_pool1d is max_pool2d, which keeps (N, L, C).
        if name != "max_pool1d" or not y.is_cuda:
            assert theirs[name].is_contiguous(), f"{name}: PyTorch's is not"
        assert y.stride() == theirs[name].stride(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequences_on_the_reference(layout):
    with ao.backend("reference"):
        results = {name: y for name, y in sequences(A, layout).items() if "gradient" not in name}
        for name, y in results.items():
            assert y.is_contiguous(), name


PARTS = {
    "channels": lambda t: channels_last(torch.cat([t, t], 1))[:, : t.shape[1]],
    "columns": lambda t: channels_last(torch.cat([t, t], -1))[..., : t.shape[-1]],
    "every second image": lambda t: channels_last(torch.cat([t, t]))[::2],
}


def maps(module, part):
    """Results and gradients of functions of maps, of which one holds a part."""
    generator = torch.Generator().manual_seed(0)
    x, w, volume = (torch.randn(s, generator=generator) for s in ((2, 4, 9, 8), (4, 4, 3, 3), (2, 4, 5, 6, 7)))
    arrange = PARTS.get(part, torch.Tensor.contiguous)
    w = channels_last(w) if part == "weights" else w
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    for name, leaf, call in (
        ("conv2d", x, lambda t: module.conv2d(t, w, padding=2, dilation=2)),
        ("depthwise", x, lambda t: module.conv2d(t, w[:, :1], padding=1, groups=4)),
        ("conv_transpose2d", x, lambda t: module.conv_transpose2d(t, w, stride=2)),
        ("max_pool2d", x, lambda t: module.max_pool2d(t, 3, 2, return_indices=True)),
        ("max_pool3d", volume, lambda t: module.max_pool3d(t, 2, return_indices=True)),
    ):
        leaf = arrange(leaf).requires_grad_()
        y = call(leaf)
        y, *marks = y if isinstance(y, tuple) else (y,)
        yield name, [y, *marks, *torch.autograd.grad(y, leaf, y)]
    yield "max_unpool2d", [module.max_unpool2d(arrange(values), arrange(indices), 2)]


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("part", [*PARTS, "weights"])
def test_what_pytorch_answers_in_channels_last(part):
    """It goes by the order of strides, of weights too: a part of a map in channels_last need not be dense."""
    with ao.backend("cpu"):
        ours = dict(maps(A, part))
    for name, expected in maps(F, part):
        for got, theirs in zip(ours[name], expected, strict=True):
            torch.testing.assert_close(got, theirs)
            assert got.stride() == theirs.stride(), name


VOLUMES = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": in_channels_last,
    "a slice of channels_last": lambda t: channels_last(torch.cat([t, t], 1))[:, : t.shape[1]],
}


def significant(t):
    return [step for step, size in zip(t.stride(), t.shape) if size > 1]


def trained(module, name, rank, orders):
    """Results and gradients of a function of inputs, weights or indices, and gradients of results in some orders."""
    generator = torch.Generator().manual_seed(0)
    # Small integers, whose sums are exact in any order.
    some = lambda *size: torch.randint(-9, 10, size, generator=generator).float()  # noqa: E731
    of_x, of_other, of_dy = (VOLUMES[order] if rank > 1 else LAYOUTS[order] for order in orders)
    size, function = (5, 6, 7)[:rank], getattr(module, f"{name.split()[0]}{rank}d")
    x = of_x(some(2, 4, *size)).requires_grad_()
    leaves = [x]
    if name == "max_unpool":
        wide = some(2, 4, *(2 * n for n in size))
        results = [function(x, of_other(getattr(F, f"max_pool{rank}d")(wide, 2, return_indices=True)[1]), 2)]
    elif "pool" in name:
        results = function(x, 3, 2, return_indices="indices" in name)
        results = results if isinstance(results, tuple) else [results]
    else:
        groups = 4 if "depthwise" in name else 1
        w = some(4, 4 // groups, *[3] * rank)
        leaves += [of_other(w).requires_grad_(), torch.zeros(4, requires_grad=True)]
        results = [function(*leaves, 2, 1, groups=groups)]
    dy = of_dy(some(*results[0].shape))
    return [*results, *torch.autograd.grad(results[0], leaves, dy)]


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["conv", "conv depthwise", "conv_transpose", "max_pool", "max_pool indices", "max_unpool"]
)
def test_gradients_are_in_pytorchs_format(name, rank):
    """Whatever the result's gradient is in: after an input or a weight in channels_last, or contiguous."""
    torch.set_num_threads(1)
    of_x = list(VOLUMES if rank > 1 else LAYOUTS)
    of_other = of_x[:1] if name.startswith("max_pool") else [of_x[0], of_x[1], of_x[-1]]
    for orders in itertools.product(of_x, of_other, of_x[:2]):
        with ao.backend("cpu"):
            ours = trained(A, name, rank, orders)
        for got, theirs in zip(ours, trained(F, name, rank, orders), strict=True):
            torch.testing.assert_close(got, theirs, rtol=0, atol=0)
            if name != "max_unpool" or got is not ours[-1]:
                # Unpooling's gradient is contiguous in PyTorch, and stays in channels_last here.
                assert significant(got) == significant(theirs), orders


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("size", [(2, 18, 1, 1), (2, 1, 5, 6), (1, 18, 1, 1), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_maps_in_both_formats_are_pooled_as_their_strides_say(size, last):
    found = []
    for module in (A, F):
        x = (in_channels_last if last else torch.Tensor.contiguous)(torch.randn(size)).requires_grad_()
        with ao.backend("cpu"):
            y, marks = module.max_pool2d(x, 2, 1, 1, return_indices=True)
            wide = module.max_unpool2d(x, torch.zeros(size, dtype=torch.int64), 2)
            (dx,) = torch.autograd.grad(y, x, in_channels_last(torch.ones_like(y)))
        found.append([t.stride() for t in (y, marks, wide, dx)])
    assert found[0] == found[1]


# Of fp64 maps with groups PyTorch joins pieces, and answers in what their order comes to.
@pytest.mark.parametrize(
    ("rank", "dtype"), [(2, torch.float32), (2, torch.bfloat16), (3, torch.float32), (3, torch.float64)]
)
def test_depthwise_maps_and_volumes_are_answered_as_pytorch_does(rank, dtype):
    """Of one channel, one position and one image, by inputs and weights: what oneDNN takes of a volume, and not."""
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    sizes = [(n, c, *s) for n in (1, 2) for c in (1, 4) for s in ((5, 6, 7)[:rank], (1,) * rank, (5, 6, 1)[-rank:])]
    for size, kernel, x_order, w_order, stride in itertools.product(sizes, (1, 3), VOLUMES, VOLUMES, (1, 2)):
        x = VOLUMES[x_order](torch.randn(size, generator=generator).to(dtype)).requires_grad_()
        w = VOLUMES[w_order](torch.randn(size[1], 1, *[kernel] * rank, generator=generator).to(dtype))
        for name, padding in ((f"conv{rank}d", kernel // 2), (f"conv_transpose{rank}d", 0)):
            options = {"stride": stride, "padding": padding, "groups": size[1]}
            ours, theirs = (getattr(module, name)(x, w, **options) for module in (A, F))
            message = f"{name} {size} {kernel} {x_order} {w_order} {stride}"
            if w.shape[2:].numel() > 1 or w_order != "a slice of channels_last":
                assert significant(ours) == significant(theirs), message
            got, expected = (torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (ours, theirs))
            if ours.stride() == theirs.stride():
                assert significant(got) == significant(expected), f"gradient of {message}"


def test_a_sequence_of_channels_turned_into_a_row_is_contiguous_as_in_pytorch():
    """Dense with channels innermost, but not by all of its strides."""
    x, w = torch.randn(9, 4, 1, 1).transpose(0, -1), torch.randn(4, 1, 3, 3)
    ours, theirs = (module.conv_transpose2d(x, w, stride=2, groups=4) for module in (A, F))
    assert ours.stride() == theirs.stride()


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("order", VOLUMES)
def test_unpooled_volumes_are_contiguous_as_in_pytorch(order):
    values, indices = F.max_pool3d(torch.randn(2, 4, 4, 6, 8), 2, return_indices=True)
    for module in (A, F):
        x = VOLUMES[order](values).requires_grad_()
        y = module.max_unpool3d(x, VOLUMES[order](indices), 2)
        assert y.is_contiguous()
        assert torch.autograd.grad(y, x, torch.ones_like(y))[0].is_contiguous()


def parts_of_maps():
    generator = torch.Generator().manual_seed(0)
    w, small = torch.randn(4, 1, 3, 3, generator=generator), torch.randn(2, 4, 8, 10, generator=generator)
    v, volume = torch.randn(4, 1, 3, 3, 3, generator=generator), torch.randn(2, 4, 4, 6, 8, generator=generator)
    last = w.to(memory_format=torch.channels_last)
    yield "conv2d", small, lambda m, t: m.conv2d(t, w, padding=1, groups=4)
    yield "weights in channels_last", small, lambda m, t: m.conv2d(t, last, padding=1, groups=4)
    yield "conv_transpose2d", small, lambda m, t: m.conv_transpose2d(t, w, stride=2, groups=4)
    yield "conv3d", volume, lambda m, t: m.conv3d(t, v, padding=1, groups=4)
    yield "max_pool2d", small, lambda m, t: m.max_pool2d(t, 3, 2)
    yield "max_unpool2d", small, lambda m, t: m.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), 2)


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("part", ["channels", "columns"])
def test_compiled_calls_answer_as_eager_ones(part):
    for name, t, call in parts_of_maps():
        torch._dynamo.reset()
        x = PARTS[part](t)
        with ao.backend("cpu"):
            compiled = torch.compile(lambda t, call=call: call(A, t), backend="aot_eager", fullgraph=True)(x)
        assert compiled.stride() == call(F, x).stride(), name


def operators(rank):
    """Calls of the operators, with the tensors whose layout may differ first."""
    op, ones, zeros = torch.ops.atrousops, [1] * rank, [0] * rank
    map_, small = torch.randn(2, 4, *(9, 8, 7)[:rank]), torch.randn(2, 4, *(4, 4, 3)[:rank])
    w = torch.randn(4, 4, *[3] * rank)
    marks = F.max_pool3d(map_[(...,) + (None,) * (3 - rank)], [2] * rank + [1] * (3 - rank), return_indices=True)[1]
    window, rest = [2] * rank, (ones, zeros, ones, 1)
    pool = (window, window, zeros, ones, False)
    marks = marks.view(small.shape)
    yield "conv", lambda t: op.conv(t, w, None, *rest), (map_,)
    yield (
        "conv_grad_input",
        lambda t: op.conv_grad_input(t, w, [2, 4, *(n + 2 for n in map_.shape[2:])], *rest),
        (map_,),
    )
    yield "conv_transpose", lambda t: op.conv_transpose(t, w, None, window, zeros, zeros, ones, 1), (map_,)
    yield "max_pool", lambda t: op.max_pool(t, *pool), (map_,)
    yield "max_pool_codes", lambda t: op.max_pool_codes(t, *pool), (map_,)
    yield "max_pool_values", lambda t: op.max_pool_values(t, *pool), (map_,)
    size = list(map_.shape[2:])
    yield "max_unpool", lambda t, m: op.max_unpool(t, m, size, window, window, zeros), (small, marks)
    yield (
        "max_pool_backward",
        lambda t, m: op.max_pool_backward(t, m, size, window, window, zeros, ones),
        (small, marks),
    )
    yield "max_unpool_backward", lambda t, m: op.max_unpool_backward(t, m, window, window, zeros, ones), (map_, marks)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fake_kernels_know_the_strides(rank, backend):
    for name, call, tensors in operators(rank):
        for layout, arrange in LAYOUTS.items():
            arranged = [arrange(t) for t in tensors]
            real = call(*arranged)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = call(*map(mode.from_tensor, arranged))
            same_order(real, fake, f"{name}, {layout}")


def same_order(real, fake, message):
    pairs = zip(real, fake) if isinstance(real, tuple) else [(real, fake)]
    for a, b in pairs:
        assert (a.shape, a.stride()) == (tuple(map(int, b.shape)), tuple(map(int, b.stride()))), message


def pooled_boxes():
    """Features and pooling of boxes, of which no channels_last is contiguous as well."""
    op, boxes = torch.ops.atrousops, torch.tensor([[0.0, 1, 1, 6, 5], [1, 0, 2, 3, 7]])
    yield "roi_align", lambda t: op.roi_align(t, boxes, 1.0, 2, 2, 2, True), (torch.randn(2, 4, 9, 8),)
    yield "roi_pool", lambda t: op.roi_pool(t, boxes, 1.0, 2, 2), (torch.randn(2, 4, 9, 8),)


@pytest.mark.torchvision
@pytest.mark.parametrize("layout", ["contiguous", "(N, L, C)"])
def test_fake_kernels_know_the_strides_of_symbolic_sizes(layout):
    """Fake tensors ask PyTorch's table of decompositions for those; Inductor asserts what they say."""
    for name, call, tensors in (*operators(2), *operators(3), *pooled_boxes()):
        arranged = [LAYOUTS[layout](t) for t in tensors]
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as mode:
            fakes = [mode.from_tensor(t, source=ConstantSource(f"t{i}")) for i, t in enumerate(arranged)]
            same_order(call(*arranged), call(*fakes), f"{name}, {layout}")
