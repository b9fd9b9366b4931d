"""Q <- softmax of scores - sum_k mu_k K_k Q over labels, from softmax(scores); scores (N, L, P), mu (L) or (L, L).

A pixel whose scores have no softmax sends no message, and is NaN in the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import empty_values
from atrousops.triton._common import cdiv, full, interpreted, jit, launch, narrow, split, wide
from atrousops.triton.permutohedral import Filter, apply, filter_of


@jit
def mean_field_kernel(
    logits, message, mu, out, labels: tl.int64, pixels: tl.int64, count: tl.int64, l_n: tl.int64, l_c: tl.int64,
    l_p: tl.int64, o_n: tl.int64, o_c: tl.int64, o_p: tl.int64, lost, HAS_MESSAGE: tl.constexpr, FULL: tl.constexpr,
    SOFTMAX: tl.constexpr, BM: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    # The message is (N, P, L) and contiguous.
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.arange(0, BL).to(tl.int64)
    image, p = split(i, pixels)
    live, exists = i < count, c < labels
    both = live[:, None] & exists[None, :]
    value = wide(tl.load(logits + (image * l_n + p * l_p)[:, None] + (c * l_c)[None, :], mask=both, other=0))
    if HAS_MESSAGE:
        if FULL:
            sent = full((BM, BL), 0.0, message)
            for j in range(0, labels):
                column = tl.load(mu + c * labels + j, mask=exists, other=0)
                sent += column[None, :] * tl.load(message + i * labels + j, mask=live, other=0)[:, None]
        else:
            sent = tl.load(message + (i * labels)[:, None] + c[None, :], mask=both, other=0)
            sent = sent * tl.load(mu + c, mask=exists, other=0)[None, :]
        value = value - sent
    if SOFTMAX:
        largest = tl.max(tl.where(exists[None, :], value, float("-inf")), 1)
        power = tl.where(exists[None, :], tl.exp(value - largest[:, None]), 0)
        total = tl.sum(power, 1)[:, None]
        value = tl.where(total == total, power / total, lost)
    to = out + (image * o_n + p * o_p)[:, None] + (c * o_c)[None, :]
    tl.store(to, narrow(value, out), mask=both)


def _step(logits: Tensor, message: Tensor | None, mu: Tensor | None, out: Tensor, softmax: bool, last: bool) -> Tensor:
    n, labels, p = logits.shape
    columns = triton.next_power_of_2(max(labels, 1))
    rows = max(4096 // columns, 16) if interpreted() else max(1024 // columns, 1)
    given = message is not None and mu is not None
    arguments = (logits, message if given else logits, mu if given else logits, out, labels, p, n * p)
    flags = (given, mu is not None and mu.dim() == 2, softmax)
    lost = float("nan") if last else 0.0
    strides = (*logits.stride(), *out.stride())
    launch(mean_field_kernel, cdiv(n * p, rows), *arguments, *strides, lost, *flags, rows, columns)
    return out


def mean_field(scores: Tensor, lattices: list[Tensor], compatibilities: list[Tensor], iterations: int) -> Tensor:
    n, labels, p = scores.shape
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32

    def buffer() -> Tensor:
        return scores.new_empty((n, p, labels), dtype=dtype).transpose(1, 2)

    built = []
    for k in range(len(compatibilities)):
        splat, slices, _, neighbours, row_starts, rows, _, counts = lattices[8 * k : 8 * k + 8]
        built.append(filter_of(splat, slices, neighbours, row_starts, rows, counts))
    mus = [mu.contiguous() for mu in compatibilities]
    output = empty_values(scores)
    iterated = iterations > 0 and len(mus) > 0
    q = _step(scores, None, None, buffer() if iterated else output, True, not iterated)
    for iteration in range(iterations if mus else 0):
        logits = scores
        for k, (lattice, mu) in enumerate(zip(built, mus)):
            message = _message(q, lattice, buffer())
            normalise = k + 1 == len(mus)
            last = normalise and iteration + 1 == iterations
            logits = _step(logits, message, mu, output if last else buffer(), normalise, last)
        q = logits
    return output


def _message(q: Tensor, lattice: Filter, out: Tensor) -> Tensor:
    n, labels, p = q.shape
    if lattice.splat_weights.shape[0] == n:
        return apply(q, lattice, False, out)
    # One image of features serves all: their labels side by side.
    together = q.reshape(1, n * labels, p)
    return out.copy_(apply(together, lattice, False, torch.empty_like(together)).view(n, labels, p))
