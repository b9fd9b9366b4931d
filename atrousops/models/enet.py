"""ENet: a network of dilated and asymmetric bottlenecks whose decoder unpools where its encoder pooled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.models.base import check_images
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d, MaxPool2d, MaxUnpool2d

# Stages 2 and 3 share this middle: kind of the bottleneck, and its dilation.
_MIDDLE = (
    ("dilated", 2),
    ("asymmetric", 1),
    ("dilated", 4),
    ("regular", 1),
    ("dilated", 8),
    ("asymmetric", 1),
    ("dilated", 16),
)


def _block(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels), nn.PReLU()]


class _Initial(nn.Module):
    """A strided convolution beside a max-pooling, concatenated: 3 -> 16 channels, half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.main_branch = AtrousConv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.ext_branch = MaxPool2d(3, stride=2, padding=1)
        self.batch_norm = nn.BatchNorm2d(16)
        self.out_prelu = nn.PReLU(16)

    def forward(self, input: Tensor) -> Tensor:
        return self.out_prelu(self.batch_norm(torch.cat([self.main_branch(input), self.ext_branch(input)], dim=1)))


class _Bottleneck(nn.Module):
    """Projection, a convolution of some kind, expansion, spatial dropout; subclasses add the main branch."""

    def __init__(self, project: nn.Module, middle: list[nn.Module], inner: int, outer: int, dropout: float) -> None:
        super().__init__()
        self.ext_conv1 = nn.Sequential(*_block(project, inner))
        self.ext_conv2 = nn.Sequential(*middle)
        self.ext_conv3 = nn.Sequential(*_block(AtrousConv2d(inner, outer, 1, bias=False), outer))
        self.ext_regul = nn.Dropout2d(dropout)
        self.out_prelu = nn.PReLU(outer)

    def extension(self, input: Tensor) -> Tensor:
        return self.ext_regul(self.ext_conv3(self.ext_conv2(self.ext_conv1(input))))


class _Regular(_Bottleneck):
    def __init__(self, channels: int, dropout: float, kind: str = "regular", dilation: int = 1) -> None:
        inner = channels // 4
        if kind == "asymmetric":
            middle = _block(AtrousConv2d(inner, inner, (5, 1), padding=(2, 0), bias=False), inner)
            middle += _block(AtrousConv2d(inner, inner, (1, 5), padding=(0, 2), bias=False), inner)
        else:
            middle = _block(AtrousConv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False), inner)
        super().__init__(AtrousConv2d(channels, inner, 1, bias=False), middle, inner, channels, dropout)

    def forward(self, input: Tensor) -> Tensor:
        return self.out_prelu(input + self.extension(input))


class _Down(_Bottleneck):
    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        inner = in_channels // 4
        project = AtrousConv2d(in_channels, inner, 2, stride=2, bias=False)
        middle = _block(AtrousConv2d(inner, inner, 3, padding=1, bias=False), inner)
        super().__init__(project, middle, inner, out_channels, dropout)
        self.main_max1 = MaxPool2d(3, stride=2, padding=1, return_indices=True)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        main, indices = self.main_max1(input)
        extension = self.extension(input)
        main = F.pad(main, (0, 0, 0, 0, 0, extension.shape[1] - main.shape[1]))
        return self.out_prelu(main + extension), indices


class _Up(_Bottleneck):
    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        inner = in_channels // 4
        project = AtrousConv2d(in_channels, inner, 1, bias=False)
        middle = _block(
            AtrousConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=False), inner
        )
        super().__init__(project, middle, inner, out_channels, dropout)
        self.main_conv1 = nn.Sequential(
            AtrousConv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.main_unpool1 = MaxUnpool2d(2)

    def forward(self, input: Tensor, indices: Tensor) -> Tensor:
        return self.out_prelu(self.main_unpool1(self.main_conv1(input), indices) + self.extension(input))


class ENet(nn.Module):
    """ENet; see `enet`. Module names are those of davidtvs' PyTorch-ENet, whose weights load."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.initial_block = _Initial()
        self.downsample1_0 = _Down(16, 64, dropout=0.01)
        for number in range(1, 5):
            self.add_module(f"regular1_{number}", _Regular(64, dropout=0.01))
        self.downsample2_0 = _Down(64, 128, dropout=0.1)
        self.regular2_1 = _Regular(128, dropout=0.1)
        self._add_middle(stage=2, first=2)
        self.regular3_0 = _Regular(128, dropout=0.1)
        self._add_middle(stage=3, first=1)
        self.upsample4_0 = _Up(128, 64, dropout=0.1)
        self.regular4_1 = _Regular(64, dropout=0.1)
        self.regular4_2 = _Regular(64, dropout=0.1)
        self.upsample5_0 = _Up(64, 16, dropout=0.1)
        self.regular5_1 = _Regular(16, dropout=0.1)
        self.transposed_conv = AtrousConvTranspose2d(
            16, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False
        )

    def _add_middle(self, stage: int, first: int) -> None:
        for number, (kind, dilation) in enumerate(_MIDDLE, start=first):
            self.add_module(f"{kind}{stage}_{number}", _Regular(128, 0.1, kind, dilation))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores for every pixel.

        Args:
            input: RGB in 0..1, (N, 3, H, W). Sizes that are no multiple of 8 are padded with zeros, and the scores cut.

        Returns:
            {"out": (N, num_classes, H, W)}.
        """
        check_images(type(self).__name__, input)
        height, width = input.shape[-2:]
        x = F.pad(input, (0, -width % 8, 0, -height % 8))
        indices: dict[str, Tensor] = {}
        for name, block in self.named_children():
            if isinstance(block, _Down):
                x, indices[name] = block(x)
            elif isinstance(block, _Up):
                x = block(x, indices[{"upsample4_0": "downsample2_0", "upsample5_0": "downsample1_0"}[name]])
            else:
                x = block(x)
        return {"out": x[..., :height, :width]}


def enet(num_classes: int = 12) -> ENet:
    """ENet, 0.36 M parameters.

    | stage | blocks | channels | stride |
    |---|---|---|---|
    | initial | 3x3 stride 2 beside max-pooling | 16 | 2 |
    | 1 | down, 4 regular | 64 | 4 |
    | 2 | down, regular, dilated 2, asymmetric 5, dilated 4, regular, dilated 8, asymmetric 5, dilated 16 | 128 | 8 |
    | 3 | as stage 2 without the down | 128 | 8 |
    | 4 | up (max-unpooling beside a transposed convolution), 2 regular | 64 | 4 |
    | 5 | up, regular | 16 | 2 |
    | full | transposed convolution 3x3 | num_classes | 1 |

    The weights of davidtvs' PyTorch-ENet for CamVid load by `load_state_dict`: 12 classes, the last one void.

    Source: Paszke et al., ENet: a deep neural network architecture for real-time semantic segmentation (2016), table 1.
    """
    return ENet(num_classes)
