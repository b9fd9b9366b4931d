"""mean_field: approximate inference in a fully connected CRF with Gaussian edge potentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atrousops import reference
from atrousops.common.checks import bad_type, bad_value, check_device, check_floating
from atrousops.common.formats import empty_values
from atrousops.common.values import transformed
from atrousops.dispatch import backends
from atrousops.ops import _first_call
from atrousops.ops._register import foreign, jit_traces, register
from atrousops.ops.permutohedral import Lattice, apply_lattice, fill, is_known, lattice_weights, memory_format_of


def mean_field(
    scores: Tensor,
    lattices: Sequence[Lattice],
    compatibilities: Sequence[Tensor],
    iterations: int,
    normalize: str | None = "symmetric",
) -> Tensor:
    """Mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011, algorithm 1).

    Starts with Q = softmax(scores), then repeats Q = softmax(scores - sum_k mu_k K_k Q) `iterations` times, with the
    softmax over labels and K_k the normalised filter of lattice k. Lattices are built once, for all iterations and the
    backward pass.

    A score of -inf means that its label is impossible there: Q is 0. A pixel with a NaN or +inf among its scores, or
    with only -inf, has no softmax: its Q is NaN, and the Q of other pixels is computed as if its Q were zero; the
    normalisation of the filters does not change. This holds on every device, without synchronisation. Its scores get no
    gradient.

    Args:
        scores: (N, L, *), L >= 2, minus the unary energies: logits or log-probabilities. float64 is computed in
            float64, all else in float32.
        lattices: one for each kernel, of N images or of one image for all.
        compatibilities: mu_k, (L) for a diagonal or (L, L) for a full matrix (output label, input label). Positive
            entries are penalties: Potts with weight w is -w for every label.
        iterations: 0 or more.
        normalize: as in permutohedral_filter.

    Returns:
        Q, (N, L, *), of the dtype of scores; differentiable in scores and compatibilities.

    Raises:
        ArgumentError: there are fewer than 2 labels; shapes, counts or devices disagree, or normalize is unknown.
        ArgumentTypeError: scores are not floating, or an argument is of the wrong type.
    """
    _check(scores, lattices, compatibilities, iterations)
    compute = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = [lattice_weights(lattice, normalize, compute, "mean_field") for lattice in lattices]
    mus = [mu.to(compute) for mu in compatibilities]
    if _fused(scores, lattices, mus):
        tensors = [t for w, lattice in zip(weights, lattices) for t in (*w, lattice.offsets, *lattice[2:7])]
        return torch.ops.atrousops.mean_field(scores.flatten(2), tensors, mus, iterations).view(scores.shape)
    flat = scores.flatten(2).to(compute, memory_format=torch.contiguous_format)
    lost = _without_softmax(flat)
    kernels = [_kernel(*w, lattice, lost) for w, lattice in zip(weights, lattices)]
    q = reference.mean_field(fill(flat, lost, 0.0), kernels, mus, iterations)
    q = fill(q, lost, float("nan")).view(scores.shape).to(scores.dtype)
    return q.contiguous(memory_format=memory_format_of(scores))


def _kernel(splat: Tensor, slices: Tensor, lattice: Lattice, lost: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda q: apply_lattice(fill(q, lost, 0.0), splat, slices, lattice)


def _without_softmax(scores: Tensor) -> Tensor | None:
    """A mask (N, 1, P) of pixels whose largest score is not finite; None if it is known that there are none."""
    lost = ~scores.detach().amax(1, keepdim=True).isfinite()
    return None if is_known(scores) and not bool(lost.any()) else lost


def _fused(scores: Tensor, lattices: Sequence[Lattice], compatibilities: Sequence[Tensor]) -> bool:
    """One operator for all iterations if no gradient is needed, else one per filter, recorded by autograd."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (scores, *compatibilities)):
        return False
    # PyTorch empties a constant list of tensors of a frozen trace when it passes it to a library's operator.
    if jit_traces():
        return False
    if transformed() or foreign(scores, *compatibilities, *[t for lattice in lattices for t in lattice]):
        return False
    if not _first_call.own("mean_field", scores.device, scores.dtype):
        return False
    # Lattices of the reference have other chunks.
    chunks = [(lattice.row_bounds.shape[0] - 1) // max(lattice.counts.shape[0], 1) for lattice in lattices]
    return all([count == chunks[0] for count in chunks])


def _check(scores: Tensor, lattices: Sequence[Lattice], compatibilities: Sequence[Tensor], iterations: int) -> None:
    op = "mean_field"
    check_floating(op, "scores", scores, backends.FLOATING)
    if scores.dim() < 3:
        bad_value(op, "scores", "be (N, L, *)", f"shape {tuple(scores.shape)}")
    check_labels(op, scores)
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
        if images not in (1, scores.shape[0]) or pixels != math.prod(scores.shape[2:]):
            bad_value(
                op,
                "lattices",
                f"be of 1 or {scores.shape[0]} images of {scores.shape[2:].numel()} pixels",
                f"{images} of {pixels}",
            )
        for part in lattice:
            check_device(op, "scores", scores, lattices=part)
    for mu in compatibilities:
        # torch.compile of torch 2.11 does not find a torch.Size among tuples.
        if tuple(mu.shape) not in ((labels,), (labels, labels)):
            bad_value(op, "compatibilities", f"be ({labels}) or ({labels}, {labels})", tuple(mu.shape))
        check_device(op, "scores", scores, compatibilities=mu)


def check_labels(op: str, scores: Tensor) -> None:
    """Raises ArgumentError unless there are at least two labels: over one label, every softmax is 1."""
    if scores.shape[1] < 2:
        remedy = (
            "For a binary network, whose probability is sigmoid(s), give torch.cat([torch.zeros_like(s), s], 1): the "
            "softmax of [0, s] is [1 - sigmoid(s), sigmoid(s)]."
        )
        bad_value(op, "scores", "have a channel for each of 2 or more labels", tuple(scores.shape), remedy)


def _fake(scores: Tensor, lattices: list[Tensor], compatibilities: list[Tensor], iterations: int) -> Tensor:
    return empty_values(scores)


register("mean_field", fake=_fake)
