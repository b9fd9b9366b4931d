"""Rates of a GPU from the times of `atrousops selfcheck`, replacing the guesses in the machine's file.

A prediction is linear in the inverse of one rate, seconds = constant + work / rate, and is solved for the rate that
gives the measured seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite
from typing import Any, NamedTuple

from atrousops.dispatch import libraries, planner, verdicts
from atrousops.dispatch.devices import Device, Rates
from atrousops.dispatch.verdicts import TimedCall

# At least this share of the measured seconds must be work: a call dominated by its launch says little about the rate.
_LEAST_SHARE = 0.2
_ROUNDS = 3


class Fit(NamedTuple):
    """A rate by name, and whether it comes from a call with dilation."""

    name: str
    rate: float
    dilated: bool


def fitted(device: Device, name: str, channels_last: bool) -> Device:
    """A GPU with the rates that were timed on it, if there are any for its precision and memory format.

    Args:
        name: as str(torch.device).
    """
    if device.kind == "cpu" or not verdicts.there_is(name):
        return device
    key = (device.kind, verdicts.numbered(name), device.precision, channels_last)
    if key not in _rates:
        _rates[key] = _fitted_rates(device, *key[1:])
    return device._replace(rates=_rates[key])


def forget() -> None:
    """Clears the fitted rates, after verdicts have changed."""
    _rates.clear()


_rates: dict[tuple[str, str, str, bool], Rates] = {}


def _fitted_rates(device: Device, name: str, precision: str, channels_last: bool) -> Rates:
    # With a stride cuDNN may use other kernels, and the rates distinguish only dilation.
    fits = [
        fit
        for family, finding in sorted(verdicts.known(device.kind, name).items())
        if finding.ok
        for rate in finding.rates
        if rate.call is not None and max(rate.call.arguments.stride) == 1
        if (rate.call.precision, rate.call.channels_last) == (precision, channels_last)
        for fit in _fits(device, family.partition(" ")[2], rate.call, rate.ours, rate.aten)
    ]
    return _overlaid(device.rates, fits) if fits else device.rates


def _overlaid(rates: Rates, fits: list[Fit]) -> Rates:
    """The lowest value of each rate; if PyTorch is slower with dilation than without, that becomes an exception."""
    found: dict[str, dict[bool, float]] = {}
    for name, rate, dilated in fits:
        theirs = dilated and name.startswith("aten")
        of = found.setdefault(name, {})
        of[theirs] = min(rate, of.get(theirs, inf))
    changed: dict[str, Any] = {name: of.get(False, of.get(True)) for name, of in found.items()}
    exceptions = [
        {"of": name, "rate": of[True], "when": {"dilation_above": 1}} for name, of in found.items() if True in of
    ]
    return rates | changed | {"exceptions": [*rates["exceptions"], *exceptions]}


def _fits(device: Device, kernel: str, call: TimedCall, ours: float, aten: float) -> Iterator[Fit]:
    """The rates that the two predictions depend on, solved from the measured seconds."""
    dilated = max(call.arguments.dilation) > 1
    for of, measured in ((kernel, ours), ("aten", aten)):
        for name in _operations():
            rate = device.rates.get(name, 0.0)
            if rate and _work(device, of, call, name, rate)[1] > 0:
                # The tiling of wgmma depends on its rate, so the fit is repeated with the tiling of the fitted rate.
                for _ in range(_ROUNDS):
                    constant, work = _work(device, of, call, name, rate)
                    rate = work / max(measured - constant, _LEAST_SHARE * measured)
                yield Fit(name, rate, dilated)


def _work(device: Device, kernel: str, call: TimedCall, name: str, rate: float) -> tuple[float, float]:
    """constant and work of seconds = constant + work / rate, from predictions at the rate and at twice the rate."""
    slow, fast = (_seconds(device._replace(rates=device.rates | {name: r}), kernel, call) for r in (rate, 2 * rate))
    return (2 * fast - slow, 2 * (slow - fast) * rate) if isfinite(slow) else (0.0, 0.0)


def _seconds(device: Device, kernel: str, call: TimedCall) -> float:
    plan = planner.plan(planner.call_problem(call.arguments), device, call.itemsize)
    return next((c.seconds for c in plan.candidates if c.kernel == kernel), inf)


def _operations() -> list[str]:
    assert libraries.planner is not None
    return [name for name, (unit, _, gpu) in libraries.planner.rates().items() if gpu and unit == "operations"]
