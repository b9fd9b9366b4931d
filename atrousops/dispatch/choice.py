"""The kernel for a call, by prediction or measurement. `plan_call` returns a full plan; `chosen` is cached."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import inf
from operator import index
from typing import NamedTuple

import torch

from atrousops.dispatch import devices, fitted, libraries, measured, planner, verdicts
from atrousops.dispatch.devices import constant_in_graphs, device_of, tf32_allowed
from atrousops.dispatch.measured import Key, Times
from atrousops.dispatch.planner import CallArguments, Candidate, ContextPlan, Plan, call_problem

# The size assumed for an axis that is dynamic in torch.compile; a dynamic batch counts as 1.
UNKNOWN_SIZE = 64


class Chosen(NamedTuple):
    """The kernel of a call, and the argument that our operators get.

    first: the index in the planner's list of the first kernel that may run, 0 for the planned one; None: PyTorch's.
    """

    kernel: str
    first: int | None


class Later(Exception):
    """A first call cannot be measured now; a later one may be."""


_ATEN = Chosen("aten", None)
_chosen: dict[tuple, Chosen] = {}
# Functions that clear other caches of results of `chosen`.
on_forget: list[Callable[[], None]] = []
# Lists that record calls at their first occurrence.
_watchers: list[list[Key]] = []
# Measures the first call of a shape if there is a choice; it may raise Later. Set by a higher level of the package.
contest: Callable[[Key], Times | None] | None = None
_contested: set[Key] = set()
# The number of postponed measurements. A result after a postponement must not be cached, or it would never be measured.
postponed = 0


def forget() -> None:
    """Clears the cached results of `chosen`, after something that they depend on has changed."""
    _chosen.clear()
    _contested.clear()
    fitted.forget()
    for forget_too in on_forget:
        forget_too()


@contextlib.contextmanager
def watched() -> Iterator[list[Key]]:
    """Yields a list of the calls that `chosen` gets for the first time inside the `with` block."""
    seen: list[Key] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def chosen(
    call: CallArguments,
    dtype: torch.dtype,
    channels_last: bool,
    needs_grad: bool = False,
    device: str = "cpu",
    ours: bool = False,
) -> Chosen:
    """The kernel that should run a call; takes about a microsecond if the call is cached.

    Arguments as for `plan_call`. `ours`: choose only among our kernels, or PyTorch's if none has passed its check.
    Under torch.compile the result is a constant of the graph, and dynamic sizes count as UNKNOWN_SIZE.
    """
    if ours:
        known = all([type(size) is int for size in call.input_size])
        return _first_of_ours(tuple(call) if known else _concrete(call), dtype, channels_last, needs_grad, device)
    if torch.compiler.is_compiling():
        return _first_choice(_concrete(call), dtype, channels_last, needs_grad, device)
    if benchmarks(device):
        _hold_contest(Key(call, dtype, channels_last, needs_grad, _state(device)))
    try:
        return _chosen[call, dtype, channels_last, needs_grad, _state(device)]
    except KeyError:
        return _first_choice(tuple(call), dtype, channels_last, needs_grad, device)
    except TypeError:  # a symbolic size has no hash
        return _first_choice(_concrete(call), dtype, channels_last, needs_grad, device)


def benchmarks(device: str) -> bool:
    """Whether the first call of a shape is measured: by torch.backends.cudnn.benchmark, only on GPUs."""
    return device != "cpu" and torch._C._get_cudnn_benchmark()


def _hold_contest(key: Key) -> None:
    if key in _contested or contest is None:
        return
    if measured.lookup(key) is None:
        try:
            times = contest(key)
        except Later:
            global postponed
            postponed += 1
            return
        if times is not None:
            measured.add({key: times}, write=False)
            _chosen.pop(key, None)
    _contested.add(key)


@constant_in_graphs
def _first_of_ours(args: tuple, dtype: torch.dtype, channels_last: bool, needs_grad: bool, device: str) -> Chosen:
    # torch.compile supports plain tuples, but not named ones.
    call = CallArguments(*args)
    ours = proved(call, dtype, channels_last, device)
    return ours[0] if ours else _ATEN


def proved(call: CallArguments, dtype: torch.dtype, channels_last: bool, device: str) -> list[Chosen]:
    """Our kernels that may be chosen automatically for a call: the planned one, then the fastest by prediction."""
    known = _runnable(call, dtype, channels_last, device)
    return [_told(c.kernel, known[0].kernel) for c in _proved(known, call, device)]


def _proved(known: list[Candidate], call: CallArguments, device: str) -> list[Candidate]:
    found = [c for c in known if not unproved(call, c.kernel, device)]
    return sorted(found, key=lambda c: (c is not known[0], c.seconds))


def _runnable(call: CallArguments, dtype: torch.dtype, channels_last: bool, device: str) -> list[Candidate]:
    if libraries.planner is None:
        return []
    machine = fitted.fitted(device_of(device, dtype, channels_last), device, channels_last)
    return planner.runnable(call_problem(call), machine, dtype.itemsize)


def _told(kernel: str, planned: str) -> Chosen:
    """planned: the kernel that our operators run by default."""
    if kernel == "aten":
        return _ATEN
    return Chosen(kernel, 0 if kernel == planned else planner.kernels(devices.gpu_kind()).index(kernel))


def _planned(predicted: Plan) -> str:
    """The fastest of our kernels, or None."""
    ours = [c for c in predicted.candidates if c.kernel != "aten" and c.seconds < inf]
    return min(ours, key=lambda c: c.seconds).kernel if ours else ""


def _state(device: str) -> tuple[str, int | bool]:
    # Process state that a plan depends on.
    if device == "cpu":
        return device, torch.get_num_threads()
    # The index of the GPU; without a GPU, the one that the planner assumes.
    number = f":{devices.gpu_index(device)}" if torch.cuda.is_available() else ""
    return "cuda" + number, tf32_allowed()


@constant_in_graphs
def _first_choice(args: tuple, dtype: torch.dtype, channels_last: bool, needs_grad: bool, device: str) -> Chosen:
    call = CallArguments(*args)
    if len(_chosen) >= 4096:
        _chosen.clear()
    key = Key(call, dtype, channels_last, needs_grad, _state(device))
    predicted = predict_call(call, dtype, channels_last, needs_grad, device)
    plan = _as_proved(_as_measured(predicted, key), call, dtype, channels_last, device)
    found = _chosen[key] = _told(plan.kernel, _planned(predicted))
    for seen in _watchers:
        seen.append(key)
    return found


def predict_call(call: CallArguments, dtype: torch.dtype, channels_last: bool, needs_grad: bool, device: str) -> Plan:
    """`plan_call` without measurements and without regard to verdicts."""
    if libraries.planner is None:
        return planner.unplanned([call_problem(call)], dtype.itemsize)
    machine = device_of(device, dtype, channels_last)
    if device != "cpu":
        machine = fitted.fitted(machine, device, channels_last)
    found: Plan = libraries.planner.plan_call(call, machine._asdict(), dtype.itemsize, needs_grad)
    return found


def _as_measured(predicted: Plan, key: Key) -> Plan:
    times = measured.lookup(key)
    planned = _planned(predicted)
    if times is None or not planned:
        return predicted
    best = times.kernel or planned
    kernel, seconds = (best, times.ours) if times.ours_wins else ("aten", times.aten)
    reason = f"{kernel}: {best} was measured at {times.ours / times.aten:.2f} of the time of aten"
    timed = dict(times.each or [(best, times.ours)]) | {"aten": times.aten}
    shown = []
    for c in predicted.candidates:
        if c.kernel == kernel:
            c = Candidate(kernel, seconds, "")
        elif c.kernel in timed:
            other = timed[c.kernel]
            c = Candidate(c.kernel, other, f"measured at {other / seconds:.2f} of the time of {kernel}")
        shown.append(c)
    boxes = predicted.boxes if kernel == planned else None
    return predicted._replace(kernel=kernel, reason=reason, seconds=seconds, candidates=tuple(shown), boxes=boxes)


def _as_proved(plan: Plan, call: CallArguments, dtype: torch.dtype, channels_last: bool, device: str) -> Plan:
    """Replaces a kernel of ours without a passing verdict on that GPU by the next one that has one, or by PyTorch's."""
    problem = "" if plan.kernel == "aten" else unproved(call, plan.kernel, device)
    if not problem:
        return plan
    aten = plan.candidates[0]
    known = _runnable(call, dtype, channels_last, device)
    alone = next((c.seconds for c in known if c.kernel == plan.kernel), plan.seconds)
    best = Candidate("aten", aten.seconds, "")
    for c in _proved(known, call, device)[:1]:
        # The time of the gradients does not depend on the kernel of the forward pass.
        seconds = plan.seconds - alone + c.seconds
        if planner.is_trusted(seconds, aten.seconds):
            best = Candidate(c.kernel, seconds, "")
    shown = [c._replace(reason=problem) if c.kernel == plan.kernel else c for c in plan.candidates]
    shown = [best if c.kernel == best.kernel else c for c in shown]
    if best.kernel != "aten":
        shown[0] = aten._replace(reason=f"{aten.seconds / best.seconds:.2f} of the time of {best.kernel}")
    return plan._replace(
        kernel=best.kernel,
        reason=f"{best.kernel}: {problem}",
        seconds=best.seconds,
        workspace=0 if best.kernel == "aten" else plan.workspace,
        candidates=tuple(shown),
        boxes=None,
    )


def unproved(call: CallArguments, kernel: str, device: str) -> str:
    """Why a kernel of ours is not chosen automatically on a device, or "": on a GPU it needs a passing verdict."""
    return "" if device == "cpu" else verdicts.why_not(devices.gpu_kind(), verdicts.family_of(call, kernel), device)


def _concrete(call: CallArguments) -> tuple:
    # Imported here because it imports the compiler, and only compiled calls need it.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    # Batch and map sizes may stay dynamic, as long as the dilated kernel fits; all other sizes become static.
    kind, input_size, weight_size, stride, padding, dilation, groups, output_padding = call
    weights, dilation, padding = _integers(weight_size), _integers(dilation), _integers(padding)
    rank = len(dilation)
    per_axis = zip(weights[2:], dilation, padding[:rank], padding[-rank:])
    open_sizes = [1, 0, *[max(UNKNOWN_SIZE, d * (k - 1) + 1 - lo - hi) for k, d, lo, hi in per_axis]]
    sizes = [index(s) if has_static_value(s) else o for s, o in zip(input_size, open_sizes)]
    sizes[1] = index(input_size[1])
    rest = (_integers(stride), padding, dilation, index(groups), _integers(output_padding))
    return (kind, tuple(sizes), weights, *rest)


def _integers(values: Sequence[int]) -> tuple[int, ...]:
    return tuple([index(v) for v in values])


def plan_call(
    call: CallArguments, dtype: torch.dtype, channels_last: bool, needs_grad: bool = False, device: str = "cpu"
) -> Plan:
    """The whole plan of a call on this machine, with its reasons.

    Args:
        needs_grad: weigh forward and both gradients together.
        device: as str(torch.device): "cpu", "cuda:1", or "cuda" for the current GPU, even if there is none.
    """
    predicted = predict_call(call, dtype, channels_last, needs_grad, device)
    found = _as_measured(predicted, Key(call, dtype, channels_last, needs_grad, _state(device)))
    return _as_proved(found, call, dtype, channels_last, device)


def plan_branches(
    size: tuple[int, int, int, int],
    weight_sizes: Sequence[tuple[int, ...]],
    padding: Sequence[tuple[int, ...]],
    dilation: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    channels_last: bool,
    relu: bool,
    others: int = 0,
    device: str = "cuda",
) -> Plan:
    """The plan of `conv_branches`: its kernel is "conv_branches" for one launch, "branches" for separate convolutions.

    Args:
        size: (N, C, H, W) of the input; weight_sizes: (K, C, *kernel) of each; others: number of appended channels.
        device: as for `plan_call`.
    """
    around = zip(weight_sizes, padding, dilation)
    problems = [call_problem(CallArguments("forward", size, w, (1,) * len(p), p, d)) for w, p, d in around]
    if libraries.planner is None:
        return planner.unplanned(problems, dtype.itemsize, "branches")
    machine = fitted.fitted(device_of(device, dtype, channels_last), device, channels_last)
    return planner.plan_branches(problems, machine, dtype.itemsize, channels_last, relu, others)


@constant_in_graphs
def why_apart(
    size: tuple,
    weights: tuple,
    padding: tuple,
    dilation: tuple,
    dtype: torch.dtype,
    nhwc: bool,
    relu: bool,
    others: int,
    device: str,
) -> str:
    """Why branches on a GPU are not one launch, or ""; cached."""
    key = (size, weights, padding, dilation, dtype, nhwc, relu, others, device, tf32_allowed())
    answer = _apart.get(key)
    if answer is None:
        if len(_apart) >= 4096:
            _apart.clear()
        plan = plan_branches(*key[:-1])  # everything except whether TF32 is allowed, which plan_branches reads itself
        answer = _apart[key] = "" if plan.kernel == "conv_branches" else plan.candidates[-1].reason or plan.reason
    return answer


_apart: dict[tuple, str] = {}


def plan_context(
    size: tuple[int, int, int, int],
    dilation: tuple[int, ...],
    kernel_sizes: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    gpu: tuple[int, int, int] | None = None,
    device: str = "cuda",
) -> ContextPlan:
    """The plan of `context_module` for (N, C, H, W) and layers of C channels, their dilations and kernel sizes 1 or 3.

    `gpu`: multiprocessors, bytes of shared memory per block, capability; if None those of `device`, or of an H100 if
    there is no GPU.
    """

    def by_layers() -> float:
        rates = devices.gpu_device(dtype, channels_last, device).rates
        moved = 2.0 * dtype.itemsize * size[0] * size[1] * size[2] * size[3]
        seconds = 0.0
        for d, k in zip(dilation, kernel_sizes):
            weight, reach = (size[1], size[1], k, k), (d * (k // 2),) * 2
            call = CallArguments("forward", size, weight, (1, 1), reach, (d, d))
            seconds += plan_call(call, dtype, channels_last, device=device).seconds
            # Plus max(., 0), a separate launch.
            seconds += rates["aten_call"] + moved / rates["copy"]
        return seconds

    if gpu is None and libraries.planner is not None:
        gpu = devices.gpu_device(dtype, channels_last, device)[3:6]
    reach = [d if k == 3 else 0 for d, k in zip(dilation, kernel_sizes)]
    return planner.plan_context(size, reach, dtype.itemsize, gpu or (0, 0, 0), by_layers)


@constant_in_graphs
def one_launch(
    size: tuple, dilation: tuple, kernel_sizes: tuple, dtype: torch.dtype, channels_last: bool, device: str
) -> bool:
    """Whether a context module's plan is one launch; cached."""
    key = (size, dilation, kernel_sizes, dtype, channels_last, device)
    answer = _together.get(key)
    if answer is None:
        if len(_together) >= 4096:
            _together.clear()
        answer = _together[key] = plan_context(*key[:-1], device=device).cluster > 0
    return answer


_together: dict[tuple, bool] = {}
