"""Fully connected conditional random fields: DenseCRF, which is given, and CRFasRNN, which learns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atrousops import ops
from atrousops.common.checks import bad_type, bad_value
from atrousops.dispatch.backends import FLOATING
from atrousops.nn.in_place import leaf
from atrousops.ops.mean_field import check_labels
from atrousops.ops.permutohedral import MAX_FEATURES, NORMALIZATIONS, Blame, Lattice, is_known, lattice_of

# Of the features two are the position.
MAX_CHANNELS = MAX_FEATURES - 2
Compatibility = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


class _GaussianCRF(nn.Module):
    """What both have in common: a spatial and a bilateral kernel, and mean-field inference over them."""

    def __init__(
        self,
        iterations: int,
        gaussian_sxy: float | Sequence[float],
        bilateral_sxy: float | Sequence[float],
        bilateral_srgb: float | Sequence[float],
        normalization: str,
    ) -> None:
        super().__init__()
        self._name = type(self).__name__
        if not isinstance(iterations, int) or isinstance(iterations, bool):
            bad_type(self._name, "iterations", "be an int", type(iterations).__name__)
        if iterations < 0:
            bad_value(self._name, "iterations", "be 0 or more", iterations)
        if normalization not in NORMALIZATIONS:
            bad_value(self._name, "normalization", f"be one of {', '.join(NORMALIZATIONS)}", repr(normalization))
        self.iterations = iterations
        self.gaussian_sxy = self._deviations("gaussian_sxy", gaussian_sxy, (2,))
        self.bilateral_sxy = self._deviations("bilateral_sxy", bilateral_sxy, (2,))
        # One serves all channels.
        self.bilateral_srgb = self._deviations("bilateral_srgb", bilateral_srgb, range(1, MAX_CHANNELS + 1))
        self.normalization = normalization

    def _deviations(self, argument: str, value: float | Sequence[float], counts: Sequence[int]) -> tuple[float, ...]:
        """One positive number for all axes, or one for each; as many as the first count, or another of them."""
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        try:
            numbers = (float(value),) * counts[0] if isinstance(value, int | float) else tuple(map(float, value))
        except (TypeError, ValueError):
            bad_type(self._name, argument, f"be a number or {many} of them", repr(value))
        if len(numbers) not in counts or not all(0 < v < math.inf for v in numbers):
            bad_value(self._name, argument, f"be a positive number or {many} of them", repr(value))
        return numbers

    def _compatibilities(self, labels: int) -> list[Tensor]:
        raise NotImplementedError

    def lattices(self, image: Tensor) -> list[Lattice]:
        """The lattices of the spatial kernel (one for all images) and of the bilateral kernel.

        Args:
            image: (N, C, H, W) in 0..255, float32 or float64; C = 1 to 5, as many as bilateral_srgb has numbers, or
                any where that is one.
        """
        h, w = image.shape[2:]
        x = torch.arange(w, dtype=image.dtype, device=image.device)
        y = torch.arange(h, dtype=image.dtype, device=image.device)

        def position(deviations: tuple[float, ...]) -> Tensor:
            sx, sy = deviations
            return torch.stack([(x / sx).expand(h, w), (y / sy)[:, None].expand(h, w)])[None]

        # By numbers, and not by a tensor of them, which a GPU would have to wait for.
        channels, deviations = image.unbind(1), self.bilateral_srgb
        if len(deviations) == 1:
            deviations *= len(channels)
        colour = torch.stack([channel / deviation for channel, deviation in zip(channels, deviations)], 1)
        place = position(self.bilateral_sxy).expand(image.shape[0], 2, h, w)
        spatial = ops.permutohedral_lattice(position(self.gaussian_sxy))
        return [spatial, lattice_of(torch.cat([place, colour], 1), Blame(self._name, "image", image))]

    def forward(self, scores: Tensor, image: Tensor) -> Tensor:
        """Q (N, L, H, W) for scores (N, L, H, W) and image (N, C, H, W) in 0..255."""
        self._check(scores, image)
        self._check_range(image)
        device = scores.device.type
        dtype = torch.float32 if torch.is_autocast_enabled(device) and scores.dtype != torch.float64 else scores.dtype
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.autocast(device, enabled=False):
            lattices = self.lattices(image.detach().to(compute))
            mus = self._compatibilities(scores.shape[1])
            q = ops.mean_field(scores.to(compute), lattices, mus, self.iterations, self.normalization)
        return q.to(dtype)

    def _check(self, scores: Tensor, image: Tensor) -> None:
        for argument, value in (("scores", scores), ("image", image)):
            if not isinstance(value, Tensor):
                bad_type(self._name, argument, "be a tensor", type(value).__name__)
            if value.dim() != 4:
                bad_value(self._name, argument, "have 4 dimensions (N, channels, H, W)", tuple(value.shape))
        if scores.dtype not in FLOATING:
            bad_type(self._name, "scores", "be float64, float32, bfloat16 or float16", scores.dtype)
        if image.dtype not in (*FLOATING, torch.uint8):
            bad_type(self._name, "image", "be uint8 or floating, in 0..255", image.dtype)
        check_labels(self._name, scores)
        deviations = len(self.bilateral_srgb)
        if not 1 <= image.shape[1] <= MAX_CHANNELS or deviations not in (1, image.shape[1]):
            wanted = f"1 to {MAX_CHANNELS} channels" if deviations == 1 else f"{deviations} channels, as bilateral_srgb"
            remedy = "A grey image has one channel; repeated three times, its distances grow by the root of 3."
            bad_value(self._name, "image", f"have {wanted}", tuple(image.shape), remedy)
        if scores.shape[0] != image.shape[0] or scores.shape[2:] != image.shape[2:]:
            bad_value(
                self._name,
                "image",
                f"have the N, H, W of scores {tuple(scores.shape)}",
                tuple(image.shape),
                "Interpolate scores to the image's size.",
            )
        if scores.device != image.device:
            bad_value(self._name, "image", f"be on {scores.device}, as scores", image.device)

    def _check_range(self, image: Tensor) -> None:
        """Warns of an image whose colours make no difference. Not of a GPU's, since that would wait for it."""
        if not image.is_floating_point() or min(self.bilateral_srgb) < 1 or image.numel() == 0 or not is_known(image):
            return
        low, high = (float(v) for v in image.detach().aminmax())
        # A little below 0 lies what was normalised and brought back.
        if low < -0.5 or 0 < high <= 1:
            warnings.warn(
                f"{self._name}: image is in {low:g}..{high:g}, where 0..255 is expected: to deviations of "
                f"{min(self.bilateral_srgb):g} and more its colours are nearly one. Give it in 0..255, or divide "
                "bilateral_srgb accordingly.",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        def short(values: tuple[float, ...]) -> str:
            return f"{values[0]:g}" if len(set(values)) == 1 else str(values)

        return (
            f"iterations={self.iterations}, gaussian_sxy={short(self.gaussian_sxy)}, "
            f"bilateral_sxy={short(self.bilateral_sxy)}, bilateral_srgb={short(self.bilateral_srgb)}, "
            f"normalization={self.normalization!r}"
        )


@leaf
class DenseCRF(_GaussianCRF):
    """Sharpens label scores along the edges of an image, with a fully connected CRF.

    Mean-field inference (Kraehenbuehl and Koltun, NIPS 2011), Q = softmax(scores - sum_k mu_k K_k Q), with kernels

        gaussian:  exp(-|p_i - p_j|^2 / (2 sxy^2))
        bilateral: exp(-|p_i - p_j|^2 / (2 sxy^2) - |I_i - I_j|^2 / (2 srgb^2))

    on the permutohedral lattice. Equal to pydensecrf with its default DIAG_KERNEL, whose parameters stay at one.

    Args:
        iterations: of mean field.
        gaussian_sxy, bilateral_sxy: standard deviations in pixels, one or (sx, sy).
        bilateral_srgb: standard deviation in image units, one for all channels or one for each.
        gaussian_compat, bilateral_compat: a number w, the Potts model, which rewards neighbours of one label with w; or
            L numbers mu_l or an (L, L) matrix of penalties (so that Potts is -w on the diagonal), of which, as in
            pydensecrf, the symmetric part counts.
        normalization: "symmetric", "before", "after" or "none"; see `functional.permutohedral_filter`.

    Shape:
        scores (N, L, H, W), L >= 2, log-probabilities or logits, left as they are; image (N, C, H, W) in 0..255, uint8
        or floating, C from 1 (grey) to 5; output Q (N, L, H, W), probabilities of the dtype of scores. Computed in
        float64 for float64 scores, else in float32, also under autocast, which then returns float32. Differentiable in
        scores.

    An image in 0..1 is a single flat colour to a srgb of 13. On the CPU there is a warning of floating images with
    values below -0.5, or none above 1, unless a srgb is below 1; on a GPU there is none, since it would wait.

    Scores that are not finite: -inf makes a label impossible at a pixel. A pixel with NaN or +inf, or with -inf alone,
    is NaN in Q and takes no part in the others' Q; see `functional.mean_field`. An image that is not finite is an
    error.

    Raises:
        ArgumentError: an argument is out of range, shapes or devices disagree, there are fewer than two labels, or the
            image is not finite.
        ArgumentTypeError: an argument is of the wrong type or dtype.
    """

    gaussian_compat: Tensor
    bilateral_compat: Tensor

    def __init__(
        self,
        iterations: int = 10,
        gaussian_sxy: float | Sequence[float] = 3.0,
        gaussian_compat: Compatibility = 3.0,
        bilateral_sxy: float | Sequence[float] = 80.0,
        bilateral_srgb: float | Sequence[float] = 13.0,
        bilateral_compat: Compatibility = 10.0,
        normalization: str = "symmetric",
    ) -> None:
        super().__init__(iterations, gaussian_sxy, bilateral_sxy, bilateral_srgb, normalization)
        # Settings, not state: two CRFs may differ in shape here, and none is trained.
        for argument, value in (("gaussian_compat", gaussian_compat), ("bilateral_compat", bilateral_compat)):
            self.register_buffer(argument, self._compatibility(argument, value), persistent=False)

    def _compatibility(self, argument: str, value: Compatibility) -> Tensor:
        try:
            mu = torch.as_tensor(value, dtype=torch.float64).detach().clone()
        except (TypeError, ValueError, RuntimeError):
            bad_type(self._name, argument, "be a number, L numbers or an (L, L) matrix", type(value).__name__)
        if mu.dim() > 2 or (mu.dim() == 2 and mu.shape[0] != mu.shape[1]):
            bad_value(self._name, argument, "be a number, L numbers or an (L, L) matrix", f"shape {tuple(mu.shape)}")
        if not mu.isfinite().all():
            bad_value(self._name, argument, "be finite", value)
        return (mu + mu.T) / 2 if mu.dim() == 2 else mu

    def _compatibilities(self, labels: int) -> list[Tensor]:
        for argument in ("gaussian_compat", "bilateral_compat"):
            mu = getattr(self, argument)
            if mu.dim() > 0 and mu.shape[0] != labels:
                bad_value(self._name, argument, f"have as many labels as scores, {labels}", f"shape {tuple(mu.shape)}")
        both = (self.gaussian_compat, self.bilateral_compat)
        return [-mu.expand(labels) if mu.dim() == 0 else mu for mu in both]

    def extra_repr(self) -> str:
        def short(mu: Tensor) -> str:
            return f"{mu.item():g}" if mu.dim() == 0 else f"<{'x'.join(map(str, mu.shape))}>"

        compat = f"gaussian_compat={short(self.gaussian_compat)}, bilateral_compat={short(self.bilateral_compat)}"
        return f"{super().extra_repr()}, {compat}"


@leaf
class CRFasRNN(_GaussianCRF):
    """A dense CRF whose kernel weights and label compatibilities train with the network (Zheng et al., ICCV 2015).

    Mean field as in DenseCRF, with mu_k = mu W_k: Q = softmax(scores - mu (W_gaussian K_gaussian Q + W_bilateral
    K_bilateral Q)), unrolled and differentiable; the lattices serve all iterations and the backward pass.

    Parameters start where the authors' release starts: mu = -I (the Potts model), W_gaussian = 3 I, W_bilateral = 5 I.
    The paper trains with 5 iterations and tests with 10: set `crf.iterations`.

    Args:
        labels: L.
        iterations, gaussian_sxy, bilateral_sxy, bilateral_srgb, normalization: as in DenseCRF; defaults as in the
            authors' release (3; 160 and 3), whose filter is divided by that of ones: "after".
        gaussian_weight, bilateral_weight: what the kernel weights start with.

    Shape:
        As DenseCRF. Differentiable in scores and all parameters; not in the image.

    Raises:
        As DenseCRF.
    """

    def __init__(
        self,
        labels: int,
        iterations: int = 5,
        gaussian_sxy: float | Sequence[float] = 3.0,
        gaussian_weight: float = 3.0,
        bilateral_sxy: float | Sequence[float] = 160.0,
        bilateral_srgb: float | Sequence[float] = 3.0,
        bilateral_weight: float = 5.0,
        normalization: str = "after",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(iterations, gaussian_sxy, bilateral_sxy, bilateral_srgb, normalization)
        if not isinstance(labels, int) or isinstance(labels, bool):
            bad_type(self._name, "labels", "be an int", type(labels).__name__)
        if labels < 2:
            bad_value(
                self._name,
                "labels",
                "be 2 or more",
                labels,
                "A binary network has two: the scores [0, s] of its score s.",
            )
        self.labels = labels
        self._start = (gaussian_weight, bilateral_weight)
        self.gaussian_weight = nn.Parameter(torch.empty(labels, labels, device=device, dtype=dtype))
        self.bilateral_weight = nn.Parameter(torch.empty(labels, labels, device=device, dtype=dtype))
        self.compatibility = nn.Parameter(torch.empty(labels, labels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """mu = -I, the Potts model, and the kernel weights on the diagonal."""
        with torch.no_grad():
            nn.init.eye_(self.compatibility).neg_()
            nn.init.eye_(self.gaussian_weight).mul_(self._start[0])
            nn.init.eye_(self.bilateral_weight).mul_(self._start[1])

    def _compatibilities(self, labels: int) -> list[Tensor]:
        if labels != self.labels:
            bad_value(self._name, "scores", f"have {self.labels} labels", labels)
        return [self.compatibility @ self.gaussian_weight, self.compatibility @ self.bilateral_weight]

    def extra_repr(self) -> str:
        return f"{self.labels}, {super().extra_repr()}"
