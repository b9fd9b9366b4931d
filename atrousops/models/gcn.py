"""GCN: large separable kernels, and residual blocks that refine boundaries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import encoder
from atrousops.models.base import bilinear_deconvolution, check_images, crop
from atrousops.nn import AtrousConv2d

_LEVELS = ("low", "mid", "aux", "out")


class GlobalConv2d(nn.Module):
    """A k x k receptive field by two pairs of 1-D filters: (N, C, H, W) -> (N, K, H, W).

    y = (1 x k)((k x 1)(x)) + (k x 1)((1 x k)(x)), without activations.

    Source: Peng et al. (2017), section 3.1, figure 2 B.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        tall, wide = (kernel_size, 1), (1, kernel_size)

        def pair(first: tuple[int, int], second: tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(
                AtrousConv2d(in_channels, out_channels, first, padding=(first[0] // 2, first[1] // 2)),
                AtrousConv2d(out_channels, out_channels, second, padding=(second[0] // 2, second[1] // 2)),
            )

        self.tall_wide, self.wide_tall = pair(tall, wide), pair(wide, tall)

    def forward(self, input: Tensor) -> Tensor:
        return self.tall_wide(input) + self.wide_tall(input)


class StackedConv2d(nn.Sequential):
    """A k x k receptive field by (k - 1) / 2 layers 3x3 without activations: (N, C, H, W) -> (N, K, H, W).

    Source: Peng et al. (2017), section 4.1, figure 4 D, table 3: the alternative to the global convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        count = (kernel_size - 1) // 2
        super().__init__(
            *(AtrousConv2d(out_channels if i else in_channels, out_channels, 3, padding=1) for i in range(count))
        )


class BoundaryRefinement(nn.Module):
    """y = x + conv3x3(relu(conv3x3(x))), with one channel per class.

    Source: Peng et al. (2017), section 3.1, figure 2 C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            AtrousConv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            AtrousConv2d(channels, channels, 3, padding=1),
        )

    def forward(self, input: Tensor) -> Tensor:
        return input + self.residual(input)


class GCN(nn.Module):
    """Global convolutional network; see `gcn`."""

    def __init__(
        self, backbone: nn.Module, channels: Mapping[str, int], num_classes: int, k: int, refine: bool, stack: bool
    ):
        super().__init__()
        large = StackedConv2d if stack else GlobalConv2d

        def refinement() -> nn.Module:
            return BoundaryRefinement(num_classes) if refine else nn.Identity()

        self.backbone = backbone
        self.in_channels: int = getattr(backbone, "in_channels", 3)
        self.levels = nn.ModuleDict(
            {name: nn.Sequential(large(channels[name], num_classes, k), refinement()) for name in _LEVELS}
        )
        self.up = nn.ModuleList(bilinear_deconvolution(num_classes, 2, padding=1) for _ in range(5))
        self.refined = nn.ModuleList(refinement() for _ in range(5))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.in_channels)
        features = self.backbone(input)
        finer = [self.levels[name](features[name]) for name in reversed(_LEVELS[:-1])]
        x = self.levels["out"](features["out"])
        for number, (up, refined) in enumerate(zip(self.up, self.refined, strict=True)):
            x = up(x)
            if number < len(finer):
                x = crop(x, 0, finer[number].shape[-2:]) + finer[number]
            x = refined(x)
        return {"out": crop(x, 0, input.shape[-2:])}


def gcn(
    num_classes: int = 21,
    backbone: str = "resnet152",
    kernel_size: int = 15,
    boundary_refinement: bool = True,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    stack: bool = False,
) -> GCN:
    """GCN: scores of each stage from kernels nearly as large as the map, added from coarse to fine.

    | part | channels | stride |
    |---|---|---|
    | encoder, four stages | 256 512 1024 2048 | 4 8 16 32 |
    | each: global convolution k x k, boundary refinement | num_classes | 4 8 16 32 |
    | deconvolution k4 s2, + the finer stage's scores, boundary refinement; three times | num_classes | 16 8 4 |
    | deconvolution k4 s2, boundary refinement; twice | num_classes | 2 1 |

    Release: none by the authors is known; the network follows the paper's figures.

    Args:
        num_classes: K.
        backbone: a name for `encoder`.
        kernel_size: k, odd, 3 to 15 in the paper.
        boundary_refinement: whether to have these blocks.
        backbone_weights: state dict of torchvision's classifier to start from.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        stack: use `StackedConv2d` instead of the global convolutions, as the paper does for comparison; k is 3 or more.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: kernel_size is even or below 1, or 1 with a stack, a bad backbone, or a weight is missing.

    Source: Peng et al., Large kernel matters: improve semantic segmentation by global convolutional network (2017),
    section 3, figure 2, tables 1 and 4.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        bad_value("gcn", "kernel_size", "be odd and at least 1", kernel_size)
    if stack and kernel_size < 3:
        bad_value("gcn", "kernel_size", "be at least 3 for a stack", kernel_size)
    trunk = encoder(backbone, 32, backbone_weights, in_channels)
    return GCN(trunk, trunk.channels, num_classes, kernel_size, boundary_refinement, stack)
