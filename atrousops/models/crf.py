"""A network followed by a dense CRF, with fixed or learned weights, and CRF-RNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.channels import MEAN, STD, normalisation
from atrousops.models.fcn import fcn8s
from atrousops.nn import CRFasRNN, DenseCRF
from atrousops.nn.settings import Settings


class WithCRF(Settings):
    """A network followed by a CRF, which refines its scores along the edges of the image.

    out = log Q, so that softmax(out) = Q, and cross entropy trains the network through the CRF. A DenseCRF has no
    parameters and is skipped in training, as in the papers that use one. CRFasRNN is used in training, with fewer
    steps.

    Args:
        network: normalised images (N, C, H, W) -> {"out": (N, L, H, W)}.
        crf: DenseCRF or CRFasRNN of L labels.
        training_iterations: mean-field steps in training; otherwise those of `crf`.
        mean, std: the normalisation of the images, C numbers each, to recover the colours: input std + mean, in 0..1.

    Source: Kraehenbuehl and Koltun (2011); Zheng et al. (2015), section 5.2: 5 steps in training, 10 in a test.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        crf: DenseCRF | CRFasRNN,
        training_iterations: int = 5,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ) -> None:
        super().__init__()
        self.network = network
        self.crf = crf
        self.iterations = {True: training_iterations, False: crf.iterations}
        self.normalise_by(mean, std)
        self.train(self.training)

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replaces the normalisation from which the colours are recovered; as in the constructor."""
        self.in_channels = len(mean)
        device = "cpu" if torch.get_default_device().type == "meta" else None
        for name, numbers in (("mean", mean), ("std", std)):
            self._set(name, torch.tensor([*numbers], dtype=torch.float32, device=device).view(-1, 1, 1))

    def train(self, mode: bool = True) -> WithCRF:
        super().train(mode)
        self.crf.iterations = self.iterations[mode]
        return self

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        scores = self.network(input)
        if self.training and isinstance(self.crf, DenseCRF):
            return scores
        colours = (255 * (input * self.std + self.mean)).clamp(0, 255)
        q = self.crf(scores["out"], colours)
        return {**scores, "out": q.clamp_min(torch.finfo(q.dtype).tiny).log()}


def normalise_crfs(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Tells every `WithCRF` in a network how its images are normalised; returns the network."""
    for module in network.modules():
        if isinstance(module, WithCRF):
            module.normalise_by(mean, std)
    return network


def with_crf(network: nn.Module, crf: str | None, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The network alone (None), followed by a DenseCRF ("dense"), or followed by CRFasRNN ("rnn").

    Raises:
        ArgumentError: crf is something else.
    """
    if crf is None:
        return network
    if crf not in ("dense", "rnn"):
        bad_value("with_crf", "crf", 'be None, "dense" or "rnn"', repr(crf))
    layer = DenseCRF(10) if crf == "dense" else CRFasRNN(num_classes, 10)
    mean, std = normalisation(in_channels)
    return WithCRF(network, layer, mean=mean, std=std)


def crfrnn(
    num_classes: int = 21,
    width: int = 64,
    padding: int = 100,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """CRF-RNN: FCN-8s and mean field as a recurrent layer, trained end to end.

    | part | channels | stride |
    |---|---|---|
    | FCN-8s, see `fcn8s` | num_classes | 1 |
    | 5 mean-field steps in training, else 10, with learned kernel weights and compatibilities | num_classes | 1 |

    Release: sadeepj's PyTorch version of the authors' network, whose file `load_published` reads. Its compatibilities
    have the opposite sign, and one deconvolution has a bias, which is added to the bias of the scores that it is added
    to.

    Arguments as `fcn8s`. Images must be normalised with ImageNet's mean and deviation, see `WithCRF`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}, log-probabilities.

    Raises:
        ArgumentError: as `fcn8s`.

    Source: Zheng et al., Conditional random fields as recurrent neural networks (2015), sections 4 and 5.
    """
    return with_crf(
        fcn8s(num_classes, width, padding, backbone_weights, in_channels=in_channels), "rnn", num_classes, in_channels
    )
