"""Images with any number of channels: the first layer, and adaptation of weights for three channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_type, bad_value

# For RGB in 0..1, on ImageNet.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalisation(in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for images in 0..1: ImageNet's for RGB; their averages for other channel counts."""
    if in_channels == 3:
        return MEAN, STD
    return (sum(MEAN) / 3,) * in_channels, (sum(STD) / 3,) * in_channels


def check_channels(network: str, in_channels: int) -> None:
    """Raises ArgumentError or ArgumentTypeError unless in_channels is an integer of at least 1."""
    if not isinstance(in_channels, int) or isinstance(in_channels, bool):
        bad_type(network, "in_channels", "be an int", type(in_channels).__name__)
    if in_channels < 1:
        bad_value(network, "in_channels", "be at least 1", in_channels, "1 for grey, 3 for RGB.")


def first_layer(network: nn.Module) -> nn.Conv2d:
    """The convolution that reads the image: the first one that was registered."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


@torch.no_grad()
def set_in_channels(network: nn.Module, in_channels: int) -> None:
    """Replaces the first convolution of a network by one for another number of channels, with new weights."""
    check_channels(type(network).__name__, in_channels)
    layer = first_layer(network)
    if layer.in_channels == in_channels:
        return
    layer.in_channels = in_channels
    layer.weight = nn.Parameter(layer.weight.new_empty(layer.out_channels, in_channels, *layer.kernel_size))
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def adapt(weight: Tensor, in_channels: int) -> Tensor:
    """Filters (K, 3, h, w) for RGB as filters (K, in_channels, h, w).

    One channel: w'_k = sum over c of w_kc, so that a grey image gives the same result as with three equal channels. Any
    other number n: w'_kc = (3 / n) w_k,(c mod 3), the filters repeated and scaled to keep the magnitude.

    Source: Wightman, timm, `adapt_input_conv`.
    """
    if in_channels == weight.shape[1]:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(in_channels) % 3] * (3 / in_channels)


def adapted(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which the RGB filters are adapted to a network's shapes by `adapt`; others are unchanged."""
    found = dict(weights)
    for name, value in wanted.items():
        given = found.get(name)
        if given is not None and given.dim() == 4 and given.shape[1] == 3 and given.shape[0] == value.shape[0]:
            found[name] = adapt(given, value.shape[1]) if given.shape[2:] == value.shape[2:] else given
    return found
