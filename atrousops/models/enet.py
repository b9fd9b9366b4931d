"""ENet: a network of dilated and asymmetric bottlenecks; the decoder unpools with the encoder's pooling indices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.base import check_images, crop, whole
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d, MaxPool2d, MaxUnpool2d

# The blocks common to stages 2 and 3: kind of the bottleneck, and its dilation.
_MIDDLE = (
    ("dilated", 2),
    ("asymmetric", 1),
    ("dilated", 4),
    ("regular", 1),
    ("dilated", 8),
    ("asymmetric", 1),
    ("dilated", 16),
)


def _norm(channels: int, port: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5 if port else 1e-3)


class _Initial(nn.Module):
    """A strided convolution and a max-pooling, concatenated: C -> 16 channels, half the size."""

    def __init__(self, port: bool, in_channels: int) -> None:
        super().__init__()
        self.main_branch = AtrousConv2d(in_channels, 16 - in_channels, 3, stride=2, padding=1, bias=not port)
        self.ext_branch = _pool(port)
        self.batch_norm = _norm(16, port)
        self.out_prelu = nn.PReLU(16)

    def forward(self, input: Tensor) -> Tensor:
        return self.out_prelu(self.batch_norm(torch.cat([self.main_branch(input), self.ext_branch(input)], dim=1)))


def _pool(port: bool, return_indices: bool = False) -> MaxPool2d:
    return MaxPool2d(3, 2, 1, return_indices=return_indices) if port else MaxPool2d(2, return_indices=return_indices)


class _Bottleneck(nn.Module):
    """Projection, a convolution of some kind, expansion, spatial dropout; subclasses add the main branch.

    Args:
        relu: ReLU instead of PReLU, and no dropout.
    """

    def __init__(
        self,
        project: nn.Module,
        middle: list[nn.Module],
        inner: int,
        outer: int,
        dropout: float,
        port: bool,
        relu: bool = False,
    ) -> None:
        super().__init__()

        def norm_act(channels: int) -> list[nn.Module]:
            # In the port, branches share one slope.
            act = nn.ReLU() if relu else nn.PReLU(1 if port else channels)
            return [_norm(channels, port), act]

        def with_norms(layers: list[nn.Module]) -> list[nn.Module]:
            # Only the port has layers between the two asymmetric convolutions.
            if port:
                return [part for layer in layers for part in (layer, *norm_act(inner))]
            return [*layers, *norm_act(inner)]

        expand = AtrousConv2d(inner, outer, 1, bias=False)
        self.ext_conv1 = nn.Sequential(project, *norm_act(inner))
        self.ext_conv2 = nn.Sequential(*with_norms(middle))
        self.ext_conv3 = nn.Sequential(expand, *(norm_act(outer) if port else (_norm(outer, port),)))
        self.ext_regul = nn.Identity() if relu else nn.Dropout2d(dropout)
        self.out_prelu = nn.ReLU() if relu else nn.PReLU(outer)

    def extension(self, input: Tensor) -> Tensor:
        return self.ext_regul(self.ext_conv3(self.ext_conv2(self.ext_conv1(input))))


class _Regular(_Bottleneck):
    def __init__(
        self,
        channels: int,
        dropout: float,
        port: bool,
        kind: str = "regular",
        dilation: int = 1,
        relu: bool = False,
    ) -> None:
        inner = channels // 4
        middle: list[nn.Module]
        if kind == "asymmetric":
            tall = AtrousConv2d(inner, inner, (5, 1), padding=(2, 0), bias=not port)
            wide = AtrousConv2d(inner, inner, (1, 5), padding=(0, 2), bias=False)
            middle = [tall, wide] if port else [wide, tall]
        else:
            middle = [AtrousConv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=not port)]
        super().__init__(AtrousConv2d(channels, inner, 1, bias=False), middle, inner, channels, dropout, port, relu)

    def forward(self, input: Tensor) -> Tensor:
        return self.out_prelu(input + self.extension(input))


class _Down(_Bottleneck):
    def __init__(self, in_channels: int, out_channels: int, dropout: float, port: bool) -> None:
        inner = (in_channels if port else out_channels) // 4
        project = AtrousConv2d(in_channels, inner, 2, stride=2, bias=False)
        middle: list[nn.Module] = [AtrousConv2d(inner, inner, 3, padding=1, bias=not port)]
        super().__init__(project, middle, inner, out_channels, dropout, port)
        self.main_max1 = _pool(port, return_indices=True)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        main, indices = self.main_max1(input)
        extension = self.extension(input)
        main = F.pad(main, (0, 0, 0, 0, 0, extension.shape[1] - main.shape[1]))
        return self.out_prelu(main + extension), indices


class _Up(_Bottleneck):
    def __init__(self, in_channels: int, out_channels: int, dropout: float, port: bool, relu: bool) -> None:
        inner = (in_channels if port else out_channels) // 4
        project = AtrousConv2d(in_channels, inner, 1, bias=False)
        middle: list[nn.Module] = [
            AtrousConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=not port)
        ]
        super().__init__(project, middle, inner, out_channels, dropout, port, relu)
        self.main_conv1 = nn.Sequential(
            AtrousConv2d(in_channels, out_channels, 1, bias=False), _norm(out_channels, port)
        )
        self.main_unpool1 = MaxUnpool2d(2)

    def forward(self, input: Tensor, indices: Tensor) -> Tensor:
        return self.out_prelu(self.main_unpool1(self.main_conv1(input), indices) + self.extension(input))


class ENet(nn.Module):
    """ENet; see `enet` and, with `port`, `enet_davidtvs`."""

    def __init__(self, num_classes: int, port: bool = False, in_channels: int = 3, decoder_prelu: bool = False) -> None:
        super().__init__()
        check_channels("enet", in_channels)
        if in_channels > 15:
            bad_value(
                "enet", "in_channels", "be at most 15: 16 channels hold the pooled image and one more", in_channels
            )
        self.in_channels = in_channels
        self.initial_block = _Initial(port, in_channels)
        self.downsample1_0 = _Down(16, 64, 0.01, port)
        for number in range(1, 5):
            self.add_module(f"regular1_{number}", _Regular(64, 0.01, port))
        self.downsample2_0 = _Down(64, 128, 0.1, port)
        self.regular2_1 = _Regular(128, 0.1, port)
        self._add_middle(2, 2, port)
        self.regular3_0 = _Regular(128, 0.1, port)
        self._add_middle(3, 1, port)
        # Only the port has dropout in its decoder.
        dropout, relu = (0.1 if port else 0.0), not (port or decoder_prelu)
        self.upsample4_0 = _Up(128, 64, dropout, port, relu)
        self.regular4_1 = _Regular(64, dropout, port, relu=relu)
        self.regular4_2 = _Regular(64, dropout, port, relu=relu)
        self.upsample5_0 = _Up(64, 16, dropout, port, relu)
        self.regular5_1 = _Regular(16, dropout, port, relu=relu)
        if port:
            self.transposed_conv = AtrousConvTranspose2d(
                16, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False
            )
        else:
            self.transposed_conv = AtrousConvTranspose2d(16, num_classes, 2, stride=2)

    def _add_middle(self, stage: int, first: int, port: bool) -> None:
        for number, (kind, dilation) in enumerate(_MIDDLE, start=first):
            self.add_module(f"{kind}{stage}_{number}", _Regular(128, 0.1, port, kind, dilation))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores for every pixel.

        Args:
            input: in 0..1, (N, in_channels, H, W). Sizes that are not multiples of 8 are padded with zeros, and the
                scores cropped.

        Returns:
            {"out": (N, num_classes, H, W)}.
        """
        check_images(type(self).__name__, input, self.in_channels)
        height, width = input.shape[-2:]
        x = F.pad(input, (0, whole(width, 8) - width, 0, whole(height, 8) - height))
        indices: dict[str, Tensor] = {}
        for name, block in self.named_children():
            if isinstance(block, _Down):
                x, indices[name] = block(x)
            elif isinstance(block, _Up):
                x = block(x, indices[{"upsample4_0": "downsample2_0", "upsample5_0": "downsample1_0"}[name]])
            else:
                x = block(x)
        return {"out": crop(x, 0, (height, width))}


def enet(num_classes: int = 12, in_channels: int = 3, decoder_prelu: bool = False) -> ENet:
    """ENet as its authors released it, 0.36 M parameters.

    | stage | blocks | channels | stride |
    |---|---|---|---|
    | initial | 3x3 stride 2, concatenated with 2x2 max-pooling | 16 | 2 |
    | 1 | down, 4 regular | 64 | 4 |
    | 2 | down, regular, dilated 2, asymmetric 5, dilated 4, regular, dilated 8, asymmetric 5, dilated 16 | 128 | 8 |
    | 3 | as stage 2 without the down | 128 | 8 |
    | 4 | up (max-unpooling + transposed convolution), 2 regular | 64 | 4 |
    | 5 | up, regular | 16 | 2 |
    | full | transposed convolution 2x2 | num_classes | 1 |

    A block is a 1x1 projection (2x2 with stride 2 for down) to a quarter of its output channels, its convolution, and a
    1x1 expansion, each with normalisation (eps 1e-3). PReLUs with a slope per channel follow the first two and the sum;
    stages 4 and 5 have ReLUs, unless decoder_prelu is set. Spatial dropout is 0.01 in stage 1 and 0.1 in stages 2 and
    3. The initial block has 16 - in_channels filters; ArgumentError if that is 0 or less.

    Release: e-lab's ENet-training, by the authors, with the same layers. It accepts only sizes that are multiples of 8;
    here others are padded with zeros. The authors' model for Cityscapes has decoder_prelu, unlike the release's
    decoder.lua; `load_published` reads the version converted by bermanmaxim's Enet-PyTorch. The port by davidtvs is
    `enet_davidtvs`.

    Source: Paszke et al., ENet: a deep neural network architecture for real-time semantic segmentation (2016), table 1;
    the authors' release, e-lab's ENet-training.
    """
    return ENet(num_classes, in_channels=in_channels, decoder_prelu=decoder_prelu)


def enet_davidtvs(num_classes: int = 12, in_channels: int = 3) -> ENet:
    """ENet as in davidtvs' PyTorch-ENet; its weights for CamVid have 12 classes, the last one void.

    Stages as `enet`, with these differences. Poolings are 3x3 with padding. A block that changes the number of channels
    is a quarter of its input channels wide. PReLUs, also in the decoder, share one slope inside a block; they also
    follow the expansion and the first asymmetric convolution, which is the vertical one. The eps is 1e-5. Only
    normalisations have biases. The decoder has dropout. The last transposed convolution is 3x3.

    Release: https://github.com/davidtvs/PyTorch-ENet, in the version of its CamVid weights.
    """
    return ENet(num_classes, True, in_channels)
