"""The planner's candidates on a GPU that Triton serves, as atrousops/triton/conv.py chooses among them."""

from __future__ import annotations

from atrousops import geometry
from atrousops.devices import Device
from atrousops.geometry import Problem, product

# aten    PyTorch's own kernel (cuDNN, MIOpen)
# dot     a GEMM over the live taps of each region, by tl.dot
# looped  a loop over the taps and the few channels of a group
KERNELS = ("aten", "dot", "looped")
# Products of channels of a group up to which they are no matter for a GEMM.
FEW = 64
# A tile's rows and columns.
_ROWS, _COLUMNS = 128, (32, 64, 128)


def illegal(kernel: str, problem: Problem) -> str:
    """Why a kernel of ours does not run a problem; empty if it does."""
    few = problem.groups > 1 and (problem.c // problem.groups) * (problem.k // problem.groups) <= FEW
    if kernel == "dot":
        return "few channels a group are a case for a loop" if few else ""
    return "" if few else "too many channels a group for a loop"


def predict(kernel: str, problem: Problem, device: Device, moved: float) -> float:
    """Seconds of a kernel of ours on a problem that is legal for it."""
    rates = device.rates
    axes = [geometry.axis_phases(problem.kind, a) for a in problem.axes]
    flops = float(problem.dense_flops)
    for phases, axis in zip(axes, problem.axes):
        flops *= geometry.live_pairs(phases) / (float(axis.output) * axis.kernel)
    if kernel == "looped":
        return rates.our_call + flops / rates.grouped + moved / rates.copy
    width = (problem.c if problem.kind == "input_grad" else problem.k) // problem.groups
    columns = next((c for c in _COLUMNS if width <= c), _COLUMNS[-1])
    blocks = -(-width // columns)
    written = [a.input if problem.kind == "input_grad" else a.output for a in problem.axes]
    positions = max(float(problem.n) * product(written), 1.0)
    # Half a tile is lost in each region.
    tiles = positions / _ROWS + 0.5 * geometry.region_count(problem)
    flops *= float(blocks * columns) / max(width, 1) * (tiles * _ROWS / positions)
    used = 1.0
    if problem.kind != "weight_grad":
        used = min(1.0, tiles * float(blocks * problem.groups) / max(device.multiprocessors, 1))
    return rates.our_call + flops / (rates.tensor * used) + moved / rates.copy
