"""optimize changes no result and breaks no model: small models that would show it if it did."""

import copy
import random
import subprocess
import sys

import pytest
import torch
from held import lively
from torch import nn
from torch.nn import functional as F

import atrousops as ao


def conv(channels: int = 4, **options) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 3, padding=1, **options)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(3), nn.BatchNorm2d(4), nn.ReLU()


class Task(Base):
    """An argument with a default decides what is returned."""

    def forward(self, x, task=None):
        y = self.conv(x)
        if task == "raw":
            return y
        return self.act(self.norm(y))


class Mask(Base):
    def forward(self, x, mask=None):
        y = self.norm(self.conv(x))
        return y if mask is None else y * mask


class Kinds(Base):
    """A list of images is one batch."""

    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else torch.stack(x)
        return self.norm(self.conv(x))


class GradMode(Base):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) if torch.is_grad_enabled() else self.norm(y) + y


class Draws(Base):
    """A branch taken at random."""

    def forward(self, x):
        y = self.conv(x)
        if random.random() < 0.5:
            return self.norm(y)
        return y + torch.rand(())


class Noise(Base):
    def forward(self, x):
        return self.norm(self.conv(x)) + torch.rand(x.shape[-1])


class Remembers(Base):
    """Answers with what it stored of the image before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = None

    def forward(self, x):
        y = self.norm(self.conv(x))
        y, self.before = (y if self.before is None else y + self.before), y.mean()
        return y


class Hooked(Base):
    """A hook keeps a map that the model uses."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {}
        self.norm.register_forward_hook(Keep(self.seen))

    def forward(self, x):
        y = self.norm(self.conv(x))
        return y + self.seen["mean"]


class Keep:
    def __init__(self, seen) -> None:
        self.seen = seen

    def __call__(self, module, args, output) -> None:
        self.seen["mean"] = args[0].mean()


class AlwaysDropout(nn.Dropout):
    """Monte-Carlo dropout."""

    def forward(self, input):
        return F.dropout(input, self.p, True)


class Doubles(nn.Identity):
    def forward(self, input):
        return 2 * input


class Flips(nn.ConvTranspose2d):
    """Somebody's own layer under a known base class."""

    def forward(self, input, output_size=None):
        return super().forward(input.flip(-1), output_size).abs()


class ReadsWeights(Base):
    def forward(self, x):
        y = self.norm(self.conv(x))
        return y, F.linear(y.mean((2, 3)), self.conv.weight.flatten(1)[:, :4])


class Penalty(Base):
    """Reads weights without naming them."""

    def forward(self, x):
        return self.norm(self.conv(x)) + sum(p.square().sum() for p in self.parameters())


class Tied(nn.Module):
    """The decoder has the encoder's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm = conv(3, bias=False), nn.BatchNorm2d(4)
        self.decoder = nn.ConvTranspose2d(4, 3, 3, padding=1, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.norm(self.encoder(x)))


class WritesOut(Base):
    def forward(self, x):
        y = self.conv(x)
        z = torch.empty_like(y)
        torch.add(self.norm(y), 1, out=z)
        return z, F.relu(z)


class InPlace(Base):
    """What the convolution returned is changed after the normalisation has read it, and read again."""

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        y.mul_(2)
        return y + z


class Twice(nn.Module):
    """One convolution, two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.stem = conv(3)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(self.stem(x)))))


class OutsideByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Mask()

    def forward(self, x, raw=False):
        return self.encoder.conv(x) if raw else self.encoder(x)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU())


class Outside(Body):
    """Calls a layer inside of another module, where an argument says so."""

    def forward(self, x, raw=False):
        return self.body[0](x) if raw else self.body(x)


class InAList(Body):
    """A tuple, which nn.Module does not see, holds the layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.held = (self.body[0],)

    def forward(self, x):
        return self.body(x), self.held[0](x)


class Alias(Body):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.body[0]

    def forward(self, x):
        return self.body(x) + self.first(x)


class Views(Body):
    """A view of a map, which is one in NCHW only."""

    def forward(self, x):
        y = F.relu(self.body(x))
        return y.view(len(y), -1), y


def around(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(3), layer, nn.BatchNorm2d(4), nn.ReLU())


X = torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(5))
ONE = torch.no_grad()(lambda model: model(X))
CASES = {
    "argument with a default": (Task, [ONE, lambda m: m(X, task="raw")]),
    "mask or None": (Mask, [ONE, lambda m: m(X, 2 * torch.ones(20))]),
    "isinstance": (Kinds, [ONE, lambda m: m(list(X))]),
    "grad mode": (GradMode, [ONE, torch.enable_grad()(ONE)]),
    "random branch": (Draws, [ONE] * 4),
    "random numbers": (Noise, [ONE] * 2),
    "state": (Remembers, [ONE, lambda m: m(-X), ONE]),
    "hook": (Hooked, [ONE, lambda m: m(-X)]),
    "Monte-Carlo dropout": (lambda: around(AlwaysDropout(0.5)), [ONE] * 2),
    "subclass of Identity": (lambda: around(Doubles()), [ONE]),
    "subclass of ConvTranspose2d": (lambda: nn.Sequential(Flips(3, 4, 2), nn.BatchNorm2d(4)), [ONE]),
    "weights read": (ReadsWeights, [ONE]),
    "all weights read": (Penalty, [ONE]),
    "tied weights": (Tied, [ONE]),
    "out=": (WritesOut, [ONE]),
    "changed in place": (InPlace, [ONE]),
    "used twice": (Twice, [ONE]),
    "indexed": (Outside, [ONE, lambda m: m(X, raw=True)]),
    "called from outside": (OutsideByName, [ONE, lambda m: m(X, raw=True)]),
    "held in a tuple": (InAList, [ONE]),
    "two names": (Alias, [ONE]),
    "view": (Views, [ONE]),
}


def close(got, expected, inner: bool = False) -> None:
    """Equal numbers; what a model returns also lies in memory as before, while inner maps need not."""
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1, theirs.abs().max().item()))
        assert inner or ours.is_contiguous() or not theirs.is_contiguous()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", [True, False], ids=["run", "from source alone"])
def test_same_results(case, check):
    make, calls = CASES[case]
    model = lively(make())
    if case in ("all weights read", "held in a tuple") and not check:
        pytest.skip("the source does not name what is read: only a run shows it")
    fast = ao.optimize(model, check=check)
    for network in (model, fast):
        torch.manual_seed(0)
        random.seed(0)
        network.results = [call(network) for call in calls]
    close(fast.results, model.results)


@pytest.mark.parametrize("case", CASES)
def test_modules_stay_what_they_are(case):
    model = lively(CASES[case][0]())
    fast = ao.optimize(model)
    modules = dict(fast.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        assert isinstance(modules[name], type(module))
        assert vars(module).keys() <= vars(modules[name]).keys()
    assert model.state_dict().keys() <= fast.state_dict().keys()


def test_methods_and_attributes_stay():
    class Net(Base):
        colours = ("red", "green")

        def embed(self, x):
            return self.norm(self.conv(x)).mean((2, 3))

        def forward(self, x):
            return self.act(self.norm(self.conv(x)))

    model = lively(Net())
    model.palette = {"red": 1}
    fast = ao.optimize(model)
    assert (type(fast), fast.colours, fast.palette) == (Net, Net.colours, model.palette)
    close(fast.embed(X), model.embed(X))
    assert "folded" in repr(fast.norm)


def test_hooks_of_an_identity_are_called():
    model = lively(around(nn.Identity()))
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    fast = ao.optimize(model)
    seen.clear()
    close(fast(X), model(X))
    close(seen[0], seen[1])


def test_hooks_on_the_copy_see_what_the_layer_returns():
    model = lively(nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU()))
    fast, seen = ao.optimize(model), []
    for network in (model, fast):
        network[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        network(X)
    close(*seen)


def test_hooks_on_all_modules():
    model, seen = lively(nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU())), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, output: seen.append(output.clone()))
    try:
        fast = ao.optimize(model)
        seen.clear()
        model(X)
        fast(X)
    finally:
        handle.remove()
    assert len(seen) == 8
    close(seen[4:], seen[:4])
    assert any("hooks on all modules" in note for note in ao.optimization_report(fast).notes)


def test_layers_called_in_order_from_outside():
    model = lively(nn.Sequential(nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU()), conv()))
    fast = ao.optimize(model)
    close(fast[0][1](fast[0][0](X)), model[0][1](model[0][0](X)), inner=True)
    close(fast[0][:2](X), model[0][:2](X), inner=True)
    close(fast[1](fast[0](X)), model(X))


def test_dropout_in_training_mode_stays_random():
    model = lively(around(nn.Dropout(0.5)))
    model[1].train()
    fast = ao.optimize(model)
    torch.manual_seed(0)
    expected = model(X)
    torch.manual_seed(0)
    close(fast(X), expected)
    assert not torch.equal(fast(X), fast(X))


def test_saved_whole_and_loaded_elsewhere(tmp_path):
    from torchvision.models import resnet18

    model = lively(resnet18(weights=None, num_classes=4))
    fast = ao.optimize(model)
    torch.save(fast, tmp_path / "fast.pt")
    torch.save((X, fast(X)), tmp_path / "pair.pt")
    code = (
        "import sys, torch\n"
        "fast = torch.load(sys.argv[1] + '/fast.pt', weights_only=False)\n"
        "x, y = torch.load(sys.argv[1] + '/pair.pt')\n"
        "torch.testing.assert_close(fast(x), y)\n"
        "print(type(fast.layer1[0]).__module__, fast.layer1[0].bn1)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.stdout.startswith("torchvision.models.resnet BatchNorm2d("), run.stderr
    close(copy.deepcopy(fast)(X), fast(X))


def test_torchvision_s_feature_extractor():
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    model = lively(resnet18(weights=None))
    nodes = {"layer1": "low", "layer2.0.bn1": "inner", "layer4.1.relu_1": "out"}
    found = [create_feature_extractor(network, nodes)(X) for network in (model, ao.optimize(model))]
    close(found[1], found[0], inner=True)
