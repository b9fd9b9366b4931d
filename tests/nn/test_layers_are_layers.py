"""Tools that know the layers of torch.nn find ours to be such: each treats a converted model as it does the model."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
import torch.ao.quantization as quantization
from torch import nn
from torch.nn.utils import fusion, parametrizations, parametrize, prune

import atrousops as ao
from atrousops.nn import in_place

X = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(5))


def model() -> nn.Sequential:
    """What `torch.ao.quantization` fuses, and layers that stand alone."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=2, dilation=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2)]
    return nn.Sequential(quantization.QuantStub(), *layers, quantization.DeQuantStub()).eval()


def converted(stock: nn.Module) -> nn.Module:
    twin = copy.deepcopy(stock)
    ao.convert(twin)
    twin(X)  # what a first call remembers of a layer must not be in anybody's way
    return twin


OURS = sorted(in_place.OURS.items(), key=lambda pair: pair[0].__name__)


@pytest.mark.parametrize(("theirs", "ours"), OURS, ids=lambda kind: kind.__name__)
def test_a_layer_is_a_leaf_and_its_class_tells_the_truth(theirs, ours):
    layer = ours(2, 2, 1) if issubclass(ours, nn.modules.conv._ConvNd) else ours(2)
    assert torch.fx.Tracer().is_leaf_module(layer, "")
    assert layer.__module__ == theirs.__module__
    assert ours.__module__ == inspect.getmodule(ours).__name__ == f"atrousops.nn.{ours.__module__.rpartition('.')[2]}"
    assert repr(ours) == f"<class '{ours.__module__}.{ours.__name__}'>"
    assert repr(layer) != repr(theirs(2, 2, 1) if issubclass(ours, nn.modules.conv._ConvNd) else theirs(2))
    assert not torch.fx.Tracer().is_leaf_module(type("Mine", (ours,), {"__module__": "mine"})(*[2] * 3), "")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(ours, protocol)) is ours
        assert type(pickle.loads(pickle.dumps(layer, protocol))) is ours
    with torch.serialization.safe_globals([ours, theirs, set]):
        assert type(saved(layer, weights_only=True)) is ours


@pytest.mark.parametrize(
    "layer",
    [
        ao.RoIAlign(3, 1.0, 2),
        ao.RoIPool(3, 1.0),
        ao.MultiScaleRoIAlign(["0"], 3, 2),
        ao.DenseCRF(),
        ao.CRFasRNN(3),
        ao.PermutohedralFilter(),
        ao.ContextModule(2),
        ao.nn.FusedConv2d(3, 3, 3),
        ao.nn.QuantizedConv2d(3, 3, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_torch_nn_lacks_are_leaves(layer):
    (node,) = [n for n in torch.fx.symbolic_trace(nn.Sequential(layer)).graph.nodes if n.op == "call_module"]
    assert node.target == "0"


def test_fx_records_calls():
    stock = model()
    ours = converted(stock)
    graphs = [torch.fx.symbolic_trace(m) for m in (stock, ours)]
    assert str(graphs[1].graph) == str(graphs[0].graph)
    torch.testing.assert_close(graphs[1](X), stock(X))


@pytest.mark.torchvision
def test_torchvisions_feature_extractor():
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    torch.manual_seed(0)
    stock = resnet18(num_classes=4).eval()
    ours = converted(stock)
    assert get_graph_node_names(ours) == get_graph_node_names(stock)
    names = ["maxpool", "layer1.0.conv1", "layer3"]
    expected, got = (create_feature_extractor(m, names)(X) for m in (stock, ours))
    assert list(got) == names
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def fuse(m):
    return quantization.fuse_modules(m, [["1", "2", "3"], ["5", "6"]])


def fuse_norm(m):
    return quantization.fuse_modules(m, [["1", "2"]])


def quantize(m):
    per_tensor = quantization.QConfig(quantization.default_observer, quantization.default_weight_observer)
    m.qconfig, m[7].qconfig = quantization.get_default_qconfig("x86"), per_tensor
    quantization.prepare(m, inplace=True)
    m(X)
    return quantization.convert(m)


def fuse_and_quantize(m):
    return quantize(fuse(m))


def train_quantized(m):
    m = quantization.fuse_modules_qat(m.train(), [["1", "2", "3"], ["5", "6"]])
    m.qconfig = quantization.get_default_qat_qconfig("x86")
    m[7] = nn.Identity()
    quantization.prepare_qat(m, inplace=True)
    m(X)
    return quantization.convert(m.eval())


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:.*reduce_range", "ignore:.*TypedStorage"
)
@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="PyTorch has no kernels for it")
@pytest.mark.parametrize("treat", [fuse, fuse_norm, quantize, fuse_and_quantize, train_quantized])
def test_eager_quantisation_takes_each_layer_for_pytorchs(treat):
    stock = model()
    ours = converted(stock)
    expected, got = treat(stock), treat(ours)
    assert got[1].__class__ is expected[1].__class__
    assert torch.equal(got(X), expected(X))


def test_a_layer_kept_out_of_quantisation_stays_ours():
    ours = converted(model())
    assert not hasattr(ours[1], "qconfig")
    ours[1].qconfig = None
    assert type(ours[1]) is ao.AtrousConv2d
    assert ours[1].qconfig is None
    assert type(copy.deepcopy(ours)[1]) is ao.AtrousConv2d
    del ours[1].qconfig
    assert not hasattr(ours[1], "qconfig")


def test_revert_undoes_convert():
    stock = model()
    parametrizations.weight_norm(stock[5])
    ours = converted(stock)
    layers, state = list(ours.modules()), ours.state_dict()
    report = ao.revert(ours)
    assert [(row.name, row.was, row.now) for row in report.swapped] == [
        ("1", "AtrousConv2d", "Conv2d"),
        ("4", "MaxPool2d", "MaxPool2d"),
        ("5", "AtrousConv2d", "Conv2d"),
        ("7", "AtrousConvTranspose2d", "ConvTranspose2d"),
    ]
    assert [in_place.class_of(m) for m in ours.modules()] == [in_place.class_of(m) for m in stock.modules()]
    assert all(a is b for a, b in zip(ours.modules(), layers))
    assert all(t.data_ptr() == state[name].data_ptr() for name, t in ours.state_dict().items())
    assert torch.equal(ours(X), stock(X))
    assert ao.revert(ours).swapped == []
    assert [row.reason for row in ao.revert(ao.nn.FusedConv2d(2, 2, 1)).left] == ["torch.nn has none of its kind"]
    with pytest.raises(TypeError, match=r"revert: model must be a torch\.nn\.Module"):
        ao.revert(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="PyTorch has no kernels for it")
def test_graph_mode_quantisation_after_revert():
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    stock = model()[1:-1]
    ours = converted(stock)
    ao.revert(ours)
    results = []
    for m in (stock, ours):
        prepared = prepare_fx(m, quantization.get_default_qconfig_mapping("x86"), (X,))
        prepared(X)
        results.append(convert_fx(prepared)(X))
    assert torch.equal(*results)


def pruned(m):
    prune.l1_unstructured(m[1], "weight", 0.5)
    prune.ln_structured(m[5], "weight", 0.5, n=2, dim=0)
    prune.global_unstructured([(m[1], "weight"), (m[7], "weight")], prune.L1Unstructured, amount=0.3)
    m(X)
    for layer in (m[1], m[5]):
        prune.remove(layer, "weight")
    return m


def swapped_on_conversion(m):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        m.double()
        m.float()
        m.load_state_dict({name: t * 1.5 if t.is_floating_point() else t for name, t in m.state_dict().items()})
        return m
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def swapped(m):
    torch.utils.swap_tensors(m[1].weight, nn.Parameter(2 * m[1].weight.detach()))
    return m


def normalised(m):
    parametrizations.weight_norm(m[1])
    parametrizations.orthogonal(m[5])
    torch.manual_seed(3)
    parametrizations.spectral_norm(m[7])
    m = copy.deepcopy(m)
    parametrize.remove_parametrizations(m[1], "weight")
    return m


def normalised_by_hooks(m):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(m[1])
    torch.manual_seed(3)
    nn.utils.spectral_norm(m[7])
    return m.eval()


def folded(m):
    m[1], m[2] = fusion.fuse_conv_bn_eval(m[1], m[2]), nn.Identity()
    return m


def synchronised(m):
    return nn.SyncBatchNorm.convert_sync_batchnorm(m)


def compiled(m):
    fast = torch.compile(m, backend="aot_eager", fullgraph=True)
    fast(X)
    m[1].dilation = m[1].padding = (1, 1)  # seen by the compiled model as with PyTorch's layer
    return fast


def exported(m):
    return torch.export.export(m, (X,)).module()


def saved(m, weights_only=False):
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


TREATMENTS = [pruned, swapped_on_conversion, swapped, normalised, normalised_by_hooks, folded, synchronised]
TREATMENTS += [compiled, exported, saved]


@pytest.mark.parametrize("treat", TREATMENTS, ids=lambda treat: treat.__name__)
def test_a_converted_model_is_treated_as_the_model(treat):
    stock = model()
    ours = converted(stock)
    expected, got = treat(stock), treat(ours)
    torch.testing.assert_close(got(X), expected(X))


def test_a_wrapper_that_makes_a_layer_of_the_same_class():
    """As peft's low-rank adapters do."""
    base = ao.AtrousConv2d(4, 6, 3, padding=1)
    low = type(base)(4, 2, base.kernel_size, base.stride, base.padding, bias=False)
    high = type(base)(2, 6, (1, 1), bias=False)
    x = torch.randn(1, 4, 9, 9)
    merged = copy.deepcopy(base)
    merged.weight.data += torch.einsum("kr,rcuv->kcuv", high.weight[:, :, 0, 0], low.weight)
    torch.testing.assert_close(base(x) + high(low(x)), merged(x))
