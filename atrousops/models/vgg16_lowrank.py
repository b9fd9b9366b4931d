"""VGG-16's convolutions as pairs of one-dimensional ones: a quarter of the parameters, half of the work."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d

# Per stage: output channels, and the rank of each convolution (None: kept whole).
STAGES: tuple[tuple[int, tuple[int | None, ...]], ...] = (
    (64, (None, 32)),
    (128, (64, 96)),
    (256, (128, 160, 160)),
    (512, (192, 256, 256)),
    (512, (192, 192, 192)),
)


class LowRankConv2d(nn.Sequential):
    """A 3x3 convolution of rank `rank`: a vertical one (3x1, C -> rank), then a horizontal one (1x3, rank -> K).

    W[k, c, i, j] = sum_r horizontal[k, r, j] vertical[r, c, i]   (Jaderberg et al. 2014, scheme 2)

    Input (N, C, H, W), output (N, K, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, rank: int, dilation: int = 1) -> None:
        super().__init__(
            AtrousConv2d(in_channels, rank, (3, 1), padding=(dilation, 0), dilation=(dilation, 1), bias=False),
            AtrousConv2d(rank, out_channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
        )

    @property
    def vertical(self) -> AtrousConv2d:
        return cast(AtrousConv2d, self[0])

    @property
    def horizontal(self) -> AtrousConv2d:
        return cast(AtrousConv2d, self[1])


class VGG16LowRank(nn.Module):
    """The trunk of VGG-16 without its last pooling, each 3x3 convolution but the first factorised.

    | stage | channels | stride at output_stride 16 | at 8 |
    |---|---|---|---|
    | 1 | 64 | 1 | 1 |
    | 2 | 128 | 2 | 2 |
    | 3 ("low" is its output) | 256 | 4 | 4 |
    | 4 | 512 | 8 | 8 |
    | 5 ("out") | 512 | 16 | 8, atrous rate 2 |

    At output stride 8 the fourth pooling keeps its window and loses its stride, so that every second position holds
    what output stride 16 would have given.
    """

    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential
    stage5: nn.Sequential
    out_channels = 512
    low_channels = 256

    def __init__(self, output_stride: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        check_channels("VGG16LowRank", in_channels)
        # Of poolings without padding nothing is left below that.
        self.in_channels, self.least = in_channels, output_stride
        if output_stride not in (8, 16):
            bad_value("VGG16LowRank", "output_stride", "be 8 or 16", output_stride)
        self.output_stride = output_stride
        channels = in_channels
        for number, (width, ranks) in enumerate(STAGES, start=1):
            dilation = 2 if number == 5 and output_stride == 8 else 1
            stage = nn.Sequential()
            for rank in ranks:
                if rank is None:
                    stage.append(AtrousConv2d(channels, width, 3, padding=1))
                else:
                    stage.append(LowRankConv2d(channels, width, rank, dilation))
                stage.append(nn.ReLU())
                channels = width
            self.add_module(f"stage{number}", stage)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = self.stage1(input)
        x = self.stage2(F.max_pool2d(x, 2))
        low = self.stage3(F.max_pool2d(x, 2))
        x = self.stage4(F.max_pool2d(low, 2))
        if self.output_stride == 8:
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)
        else:
            x = F.max_pool2d(x, 2)
        return {"low": low, "out": self.stage5(x)}
