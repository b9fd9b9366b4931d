import pytest
import torch

from atrousops.nn import ContextModule


@pytest.mark.parametrize("border", ["layers", "input"])
@pytest.mark.parametrize("kind", ["basic", "large"])
def test_starts_as_the_identity_borders_included(kind, border):
    # The shares C / c_out are powers of two and the input has eight bits, so that every sum is exact.
    context = ContextModule(3, kind, noise=0.0, border=border)
    x = torch.randint(0, 256, (2, 3, 9, 11)) / 256
    torch.testing.assert_close(context(x), x, rtol=0, atol=0)
    # Truncation after every layer but the last: negative inputs come out as zero.
    torch.testing.assert_close(context(-x), torch.zeros_like(x), rtol=0, atol=0)


def test_equation_5_by_hand():
    # C = 2: from 2 maps to 4, outputs 0, 1 follow map 0 and outputs 2, 3 follow map 1, each with weight 2 / 4.
    first = ContextModule(2, "large", noise=0.0).layers[0].weight
    expected = torch.zeros(4, 2, 3, 3)
    expected[:2, 0, 1, 1] = expected[2:, 1, 1, 1] = 0.5
    torch.testing.assert_close(first.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dilations", "widths"), [((1, 1, 2, 4, 8, 16, 1), (2, 2, 4, 8, 16, 32, 32, 1)), ((1, 1, 2, 1), (2, 2, 4, 4, 1))]
)
def test_widths(dilations, widths):
    """Table 1 of the paper, and a shorter module: doubled from the third layer on, but not by the last 3x3 layer."""
    context = ContextModule(3, "large", dilations=dilations)
    assert [layer.out_channels for layer in context.layers] == [3 * width for width in widths]
    assert [layer.dilation[0] for layer in context.layers] == [*dilations, 1]


def test_noise_is_small_and_elsewhere():
    context = ContextModule(4, "large")
    wide = context.layers[5]
    share = 4 / wide.out_channels
    on = wide.weight == share
    # Output b follows the 16 input maps of its group; all other taps are noise of 0.01 share.
    assert on.sum() == wide.out_channels * (wide.in_channels // 4)
    noise = wide.weight[~on]
    assert noise.std().item() == pytest.approx(0.01 * share, rel=0.02)
    assert abs(noise.mean().item()) < 1e-3 * share


def test_receptive_field_is_67():
    context = ContextModule(1).double()
    for layer in context.layers:
        torch.nn.init.ones_(layer.weight)
    x = torch.ones(1, 1, 81, 81, dtype=torch.float64, requires_grad=True)
    context(x)[0, 0, 40, 40].backward()
    seen = x.grad[0, 0] != 0
    expected = torch.zeros_like(seen)
    expected[40 - 33 : 40 + 34, 40 - 33 : 40 + 34] = True
    assert torch.equal(seen, expected)


def test_compiles_without_graph_breaks_and_trains():
    context = ContextModule(2)
    x = torch.rand(1, 2, 12, 12)
    torch.compile(context, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert all(p.grad is not None for p in context.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "channels must be at least 1"),
        ((3, "huge"), "kind must be"),
        ((3, "large", -1.0), "noise must be"),
        ((3, "basic", 0.0, ()), "dilations must be"),
        ((3, "basic", 0.0, (1, 0)), "dilations must be"),
        ((3, "basic", 0.0, (1, 2), "reflect"), "border must be"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContextModule(*arguments)
