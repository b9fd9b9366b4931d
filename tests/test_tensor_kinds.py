"""Tensors that are not plain: subclasses, meta, mkldnn, distributed, copy-on-write; and dtypes under autocast."""

import re
from typing import ClassVar

import pytest
import samples
import torch
import torch.nn.functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_leaves, tree_map_only

import atrousops as ao
import atrousops.functional as A
from atrousops import nn
from atrousops.models.crf import WithCRF

NAMES = list(samples.FUNCTIONS)
IN_TORCH = [name for name in NAMES if hasattr(F, name)]


def call(name: str, kind=lambda t: t, function=None) -> torch.Tensor:
    """The first output for the sample, of which every tensor is made into that kind."""
    args, kwargs = samples.FUNCTIONS[name]()
    args = tree_map_only(torch.Tensor, kind, list(args))
    return samples.tensors((function or getattr(A, name))(*args, **kwargs))[0]


class Watched(torch.Tensor):
    """Notes which functions it is given to."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "kind", [lambda t: TwoTensor(t, t.clone()), lambda t: t.as_subclass(Watched)], ids=["dispatch", "function"]
)
def test_subclasses_stay_what_they_are(name, kind):
    y = call(name, kind)
    assert type(y) is type(kind(torch.ones(1)))
    inside = y.a if type(y) is TwoTensor else y.as_subclass(torch.Tensor)
    if name != "permutohedral_lattice":  # its numbering is free
        torch.testing.assert_close(inside, call(name))


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("name", IN_TORCH)
def test_a_subclass_is_given_to_pytorch_s_function_once(name):
    """Whatever PyTorch's function asks of it, ours asks no more than its own dtype and layout."""
    seen = []
    for function in (None, getattr(F, name)):
        Watched.seen.clear()
        call(name, lambda t: t.as_subclass(Watched), function)
        seen.append([s for s in Watched.seen if s != "__get__"])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", IN_TORCH)
def test_mkldnn_tensors_go_to_pytorch(name):
    def mkldnn(t: torch.Tensor) -> torch.Tensor:
        return t.to_mkldnn() if t.is_floating_point() else t

    try:
        expected = call(name, mkldnn, getattr(F, name))
    except RuntimeError as error:
        with pytest.raises(type(error), match=re.escape(str(error)[:40])):
            call(name, mkldnn)
        return
    got = call(name, mkldnn)
    assert got.layout == expected.layout
    torch.testing.assert_close(got.to_dense(), expected.to_dense())


# On meta PyTorch's convolution answers in contiguous memory where its kernels do not.
@pytest.mark.parametrize(
    ("name", "last"), [(name, last) for name in NAMES for last in (False, True) if not (last and "con" in name)]
)
def test_meta_tensors_get_what_the_kernels_answer(name, last):
    def kind(device: str):
        def move(t: torch.Tensor) -> torch.Tensor:
            t = t.contiguous(memory_format=torch.channels_last) if last and t.dim() == 4 else t
            return t.to(device)

        return move

    real, meta = call(name, kind("cpu")), call(name, kind("meta"))
    assert meta.is_meta
    # The stride of an axis of one position says nothing.
    of = lambda t: (t.shape, t.dtype, [s for s, size in zip(t.stride(), t.shape) if size > 1])  # noqa: E731
    assert of(meta) == of(real)


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize(
    "name", ["roi_align", "roi_pool", "mean_field", "permutohedral_filter", "permutohedral_lattice"]
)
def test_masked_tensors_are_refused(name):
    """PyTorch's torch.where of one never returns."""
    (x, *rest), kwargs = samples.FUNCTIONS[name]()
    with pytest.raises(TypeError, match="must be no MaskedTensor"):
        getattr(A, name)(torch.masked.masked_tensor(x, x > 0.3), *rest, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_copy_on_write_tensors_are_not_copied(name):
    # With one thread PyTorch's own pointwise convolution copies them.
    torch.set_num_threads(2)
    (first, *rest), kwargs = samples.FUNCTIONS[name]()
    leaves = [t for t in tree_leaves([first, rest]) if isinstance(t, torch.Tensor)]
    clones = {id(t): torch._lazy_clone(t) for t in leaves}
    args = tree_map_only(torch.Tensor, lambda t: clones[id(t)], [first, *rest])
    for _ in range(2):
        getattr(A, name)(*args, **kwargs)
    assert all(torch._C._is_cow_tensor(t) for t in clones.values())


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("name", IN_TORCH)
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_distributed_tensors(mesh, name, shard):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    def distribute(t: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(t, mesh, [Shard(0) if shard else Replicate()])

    def attempt(function=None):
        try:
            return call(name, distribute, function)
        except (RuntimeError, NotImplementedError) as error:
            return str(error)

    got, expected = attempt(), attempt(getattr(F, name))
    assert type(got) is type(expected)
    if isinstance(got, DTensor):
        assert got.placements == expected.placements
        torch.testing.assert_close(got.full_tensor(), expected.full_tensor())
    else:
        assert got == expected


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("forced", [None, "reference"])
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", IN_TORCH)
def test_dtypes_under_autocast(name, dtype, lower, forced):
    def cast(t: torch.Tensor) -> torch.Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    with torch.autocast("cpu", lower), ao.backend(forced):
        assert call(name, cast).dtype == call(name, cast, getattr(F, name)).dtype


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "conv_branches", "context_module"])
def test_the_reference_casts_once_under_autocast(name):
    """Its sums are in float32 there too."""
    with ao.backend("reference"):
        expected = call(name, torch.Tensor.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            got = call(name)
    # A concatenation has the wider dtype of its parts.
    assert torch.equal(got.bfloat16(), expected)


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["conv3d", "conv_transpose3d"])
def test_formats_of_volumes_under_autocast(name, lower):
    """They are decided by the dtype that computes."""
    last = lambda t: t.to(memory_format=torch.channels_last_3d)  # noqa: E731
    with torch.autocast("cpu", lower):
        assert call(name, last).stride() == call(name, last, getattr(F, name)).stride()


@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_gradients_of_each_sample(padding):
    """PyTorch's expanded weights."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    ours, stock = (conv(2, 3, 3, padding=padding, dilation=2) for conv in (nn.AtrousConv2d, torch.nn.Conv2d))
    ours.load_state_dict(stock.state_dict())
    x = samples.rand(4, 2, 8, 8)
    for layer in (ours, stock):
        call_for_per_sample_grads(layer)(x).square().sum().backward()
    for got, expected in zip(ours.parameters(), stock.parameters()):
        assert got.grad_sample.shape == (4, *got.shape)
        torch.testing.assert_close(got.grad_sample, expected.grad_sample)


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_under_autocast(name, lower):
    """There is no autocast on meta, and PyTorch raises where one asks; a CPU's leaves them alone."""
    expected = call(name, lambda t: t.to("meta"))
    with torch.autocast("cpu", lower):
        got = call(name, lambda t: t.to("meta"))
    assert (got.shape, got.dtype, got.device) == (expected.shape, expected.dtype, expected.device)


def test_layers_on_meta():
    """And what is wrong there is said."""
    scores, image = (torch.empty(1, 3, 8, 8, device="meta") for _ in range(2))
    crf = nn.DenseCRF(iterations=2).to("meta")
    assert crf(scores, image).is_meta
    assert "gaussian_compat=<meta>" in repr(crf)
    with pytest.raises(ValueError, match="gaussian_compat must have values; got a tensor on meta"):
        nn.DenseCRF(gaussian_compat=torch.ones(3, device="meta"))
    with pytest.raises(TypeError, match=r"weight must have input's dtype, torch\.float64"):
        A.conv2d(scores.double(), torch.empty(2, 3, 3, 3, device="meta"))


def dense_crf():
    return nn.DenseCRF(2, gaussian_compat=2.0, bilateral_compat=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("build", [dense_crf, lambda: WithCRF(torch.nn.Identity(), dense_crf())])
@pytest.mark.parametrize("way", ["to_empty", "assign", "from meta", "emptied"])
def test_settings_are_not_lost_where_a_module_has_no_values(build, way):
    """No state dict holds them: what is built on meta or emptied has them without one."""
    right = build()
    if way == "emptied":
        layer = build().to_empty(device="cpu")
    elif way == "from meta":
        layer = build().to("meta").to_empty(device="cpu")
    else:
        with torch.device("meta"):
            layer = build()
        layer = layer.to_empty(device="cpu") if way == "to_empty" else layer
        layer.load_state_dict(right.state_dict(), assign=way == "assign")
    settings = dict(right.named_buffers())
    assert settings.keys() == dict(layer.named_buffers()).keys()
    for name, got in layer.named_buffers():
        assert torch.equal(got, settings[name]), name
    halves = layer.half()
    assert all(torch.equal(t, settings[name].half()) for name, t in halves.named_buffers())


def test_negative_views():
    """PyTorch's max_pool1d without indices takes the maxima of what lies in memory."""
    x = torch._neg_view(samples.rand(2, 3, 8))
    assert torch.equal(A.max_pool1d(x, 2), A.max_pool1d(x.resolve_neg(), 2))
