"""mean_field: approximate inference in a fully connected CRF with Gaussian edge potentials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atrousops import backends, reference
from atrousops._checks import bad_type, bad_value
from atrousops.ops.permutohedral import Lattice, apply_lattice, lattice_weights, memory_format_of


def mean_field(
    scores: Tensor,
    lattices: Sequence[Lattice],
    compatibilities: Sequence[Tensor],
    iterations: int,
    normalize: str | None = "symmetric",
) -> Tensor:
    """Mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011, algorithm 1).

    Q = softmax(scores) at first, then `iterations` times Q = softmax(scores - sum_k mu_k K_k Q), over labels, with K_k
    the filter of lattice k, normalised. All lattices are built before and serve every iteration and the backward pass.

    Args:
        scores: (N, L, *), minus the unary energies: logits or log-probabilities. float64 is computed in float64, all
            else in float32.
        lattices: one for each kernel, of N images or of one that serves all.
        compatibilities: mu_k, (L) for a diagonal or (L, L) for a full matrix (output label, input label). Positive
            entries are penalties: Potts with weight w is -w for every label.
        iterations: 0 or more.
        normalize: as in permutohedral_filter.

    Returns:
        Q, (N, L, *), of the dtype of scores; differentiable in scores and compatibilities.

    Raises:
        ArgumentError: shapes, counts or devices disagree, or normalize is unknown.
        ArgumentTypeError: scores are not floating, or an argument is of the wrong type.
    """
    _check(scores, lattices, compatibilities, iterations)
    compute = torch.float64 if scores.dtype == torch.float64 else torch.float32
    kernels = [_kernel(lattice, normalize, compute) for lattice in lattices]
    mus = [mu.to(compute) for mu in compatibilities]
    flat = scores.flatten(2).to(compute, memory_format=torch.contiguous_format)
    q = reference.mean_field(flat, kernels, mus, iterations).view(scores.shape).to(scores.dtype)
    return q.contiguous(memory_format=memory_format_of(scores))


def _kernel(lattice: Lattice, normalize: str | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    splat, slices = lattice_weights(lattice, normalize, dtype, "mean_field")
    return lambda q: apply_lattice(q, splat, slices, lattice)


def _check(scores: Tensor, lattices: Sequence[Lattice], compatibilities: Sequence[Tensor], iterations: int) -> None:
    op = "mean_field"
    if not isinstance(scores, Tensor) or scores.dtype not in backends.FLOATING:
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        bad_type(op, "scores", "be a tensor of float64, float32, bfloat16 or float16", got)
    if scores.dim() < 3:
        bad_value(op, "scores", "be (N, L, *)", f"shape {tuple(scores.shape)}")
    if not isinstance(iterations, int) or isinstance(iterations, bool):
        bad_type(op, "iterations", "be an int", type(iterations).__name__)
    if iterations < 0:
        bad_value(op, "iterations", "be 0 or more", iterations)
    if len(lattices) != len(compatibilities):
        bad_value(
            op, "compatibilities", "have one entry for each lattice", f"{len(compatibilities)} for {len(lattices)}"
        )
    labels = scores.shape[1]
    for lattice in lattices:
        images, pixels, _ = lattice.offsets.shape
        if images not in (1, scores.shape[0]) or pixels != scores.shape[2:].numel():
            bad_value(
                op,
                "lattices",
                f"be of 1 or {scores.shape[0]} images of {scores.shape[2:].numel()} pixels",
                f"{images} of {pixels}",
            )
        if lattice.offsets.device != scores.device:
            bad_value(op, "lattices", f"be on {scores.device}, as scores", lattice.offsets.device)
    for mu in compatibilities:
        if mu.shape not in ((labels,), (labels, labels)):
            bad_value(op, "compatibilities", f"be ({labels}) or ({labels}, {labels})", tuple(mu.shape))
        if mu.device != scores.device:
            bad_value(op, "compatibilities", f"be on {scores.device}, as scores", mu.device)
