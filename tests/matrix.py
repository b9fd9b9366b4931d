"""Other people's networks after convert and optimize, against themselves: `python tests/matrix.py`, docs/matrix.md.

Each network has random weights and runs in processes of its own, with limits of time and memory, so that a crash is a
row. Needs the packages of `pip install atrousops[matrix]`. A cell holds "ok", or what went wrong:

- eval: results against the model in float64. At most twice the model's own error, and the same labels where float64
  is sure of them. Where a model's own error is above one per cent, and for detectors, which choose among candidates,
  both sides run in float64. Its own error is the largest of what it makes contiguous, in channels_last where it runs
  there, and with inputs that differ in the last place; for optimize also with weights that do, as folding rounds them.
- training: one step with the same seed; loss, every gradient and every buffer, held to the same bound.
- saved: the state dict, loaded into a model that was made with other weights, and the module saved whole, both in
  another process; results are equal to the bit. Weights that were optimised go into a copy that was optimised with
  other weights, unchecked, as a check may undo what it did not undo for the first: there both may be off by what eval
  allows.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matrix_networks import Network, networks
from matrix_oracle import Oracle, error_of, results, step, tensors, widened
from torch import nn

import atrousops as ao

OUT = Path(__file__).resolve().parents[1] / "docs" / "matrix.md"
CELLS = ("convert eval", "convert training", "convert saved", "optimize eval", "optimize saved")


def prepared(network: Network, seed: int = 0) -> nn.Module:
    """A model of random weights in evaluation mode, whose normalisations roughly fit what goes through it."""
    torch.manual_seed(seed)
    model = network.build()
    for weight in model.parameters():
        # Zero or one at the start: layers that do nothing yet would hide what happens before them.
        if weight.is_floating_point() and weight.numel() > 1 and weight.data.min() == weight.data.max():
            weight.data += torch.randn_like(weight) * (0.1 if weight.dim() < 2 else weight[0].numel() ** -0.5)
    norms = [m for m in model.modules() if getattr(m, "running_var", None) is not None]
    momenta = [getattr(norm, "momentum", None) for norm in norms]
    if any(momentum is not None for momentum in momenta):
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(*arguments(network, training=True))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
    for norm in norms:
        norm.running_mean += norm.running_var.sqrt() * (torch.rand_like(norm.running_mean) - 0.5) / 2
        norm.running_var *= torch.rand_like(norm.running_var) / 2 + 0.75
    return model.eval()


def arguments(network: Network, training: bool) -> tuple:
    """What its forward takes."""
    targets = (network.targets(),) if training and network.targets else ()
    return (*network.inputs(), *targets)


def _examine(network: Network, note: Callable[[str, str], None], folder: Path) -> None:
    """Everything that is done in the first process, cell by cell."""
    stock = prepared(network)
    inputs = arguments(network, training=False)
    oracle = Oracle(results, stock, inputs, network.exact, network.single)
    dead = all(t.dim() and len(t) > 1 and not t.double().std(dim=0).any() for t in oracle.exact.values())
    note("network", f"own error {oracle.share:.1e}{', in float64' * oracle.in_double}{', constant' * dead}")
    converted = copy.deepcopy(stock)

    def on_convert() -> str:
        report = ao.convert(converted)
        note("layers", f"{len(report.swapped)} swapped, {len(report.left)} left")
        return oracle.verdict(converted)

    def on_training() -> str:
        given = arguments(network, training=True)
        return Oracle(step, stock, given, network.exact, network.single).verdict(converted)

    def on_optimize() -> str:
        fast.append(ao.optimize(copy.deepcopy(stock).double() if oracle.in_double else stock))
        report = ao.optimization_report(fast[0])
        oracle.allow_folding(stock)
        note("fused", f"{len(report.fused)} fused" + ", undone" * any("undone" in line for line in report.notes))
        return oracle.verdict(fast[0])

    fast: list[nn.Module] = []
    _cell(note, "convert eval", on_convert)
    _cell(note, "convert training", on_training if network.trains else lambda: "-")
    _cell(note, "convert saved", lambda: _save(network, folder, "convert", converted, inputs, {}))
    _cell(note, "optimize eval", on_optimize)
    if fast:
        wide = widened(inputs) if oracle.in_double else inputs
        bounds = {name: 2 * oracle.bound(name) for name in oracle.exact}
        _cell(note, "optimize saved", lambda: _save(network, folder, "optimize", fast[0], wide, bounds))


def _save(network: Network, folder: Path, tool: str, model: nn.Module, inputs: tuple, bounds: dict[str, float]) -> str:
    """Leaves for the second process the module, its state dict, what it answers, and how far the other may be off."""
    if not network.pickles:
        return "-"
    torch.save(model, folder / f"{tool}.whole")
    torch.save((model.state_dict(), inputs, results(model, inputs), bounds), folder / f"{tool}.state")
    return "ok"


def _reload(network: Network, note: Callable[[str, str], None], folder: Path) -> None:
    """Everything that is done in the second process."""
    for tool in ("convert", "optimize"):
        if (folder / f"{tool}.state").exists():
            _cell(note, f"{tool} saved", partial(_loaded, network, folder, tool))


def _loaded(network: Network, folder: Path, tool: str) -> str:
    state, inputs, expected, bounds = torch.load(folder / f"{tool}.state", weights_only=False)
    whole = torch.load(folder / f"{tool}.whole", weights_only=False)
    other = prepared(network, seed=9)
    if any(t.dtype == torch.float64 for t in tensors(inputs)):
        other.double()
    if tool == "optimize":
        if ao.optimization_report(whole).fused:
            other = ao.optimize(other, check=False)
    else:
        other.load_state_dict(state)
        ao.convert(other)
    other.load_state_dict(state)
    for name, model in (("whole", whole), ("state dict", other)):
        got = results(model, inputs)
        for key, t in expected.items():
            error = error_of(got[key], t.double())
            if error > (bounds.get(key, 0.0) if name == "state dict" else 0.0):
                return f"wrong: {name} is off by {error:.1e}"
    return "ok"


def _cell(note: Callable[[str, str], None], cell: str, compute: Callable[[], str]) -> None:
    note(cell, "started")
    try:
        note(cell, compute())
    # Whatever somebody's network raises is what the cell says.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        note(cell, f"error: {type(error).__name__}: {lines[0][:160]}")


def _process(task: Callable[..., None], name: str, folder: Path, memory: int) -> None:
    """The body of a process of its own."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory << 30, memory << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = folder / f"{task.__name__}.json"
    found: dict[str, str] = {}

    def note(cell: str, value: str) -> None:
        found[cell] = value
        row.write_text(json.dumps(found))

    _cell(note, "build", lambda: task(networks()[name], note, folder) or "ok")


def examine(name: str, limit: float, memory: int) -> dict[str, str | float]:
    """The row of one network."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torchvision", "timm", "monai.networks.nets", "segmentation_models_pytorch"]
    )
    start, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for task in (_examine, _reload):
            process = context.Process(target=_process, args=(task, name, Path(folder), memory))
            process.start()
            process.join(limit)
            late = process.is_alive()
            if late:
                process.kill()
                process.join()
            row = Path(folder) / f"{task.__name__}.json"
            notes = json.loads(row.read_text()) if row.exists() else {"build": "started"}
            end = f"timeout: {limit:.0f} s" if late else f"crash: exit code {process.exitcode}"
            found |= {
                cell: end if value == "started" else value
                for cell, value in notes.items()
                if value != "ok" or cell != "build"
            }
    found |= {"seconds": round(time.monotonic() - start, 1), "verdict": verdict(found)}
    return found


def verdict(row: dict[str, Any]) -> str:
    """ok, or the first thing that went wrong."""
    for cell in ("build", *CELLS):
        value = row.get(cell, "ok" if cell == "build" else "missing")
        if value not in ("ok", "-"):
            return f"{cell}: {value}"
    return "ok"


def table(found: dict[str, dict[str, Any]], versions: dict[str, str]) -> str:
    """The page: what was run, how many are well, and a row for each network."""
    rows = [
        "# Other people's networks",
        "",
        "Written by `python tests/matrix.py`, which says what the columns mean; nothing in it is written by hand.",
        "With " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
    ]
    for library in dict.fromkeys(name.partition("/")[0] for name in found):
        own = [row for name, row in found.items() if name.startswith(f"{library}/")]
        rows.append(f"- {library}: {sum(row['verdict'] == 'ok' for row in own)} of {len(own)} ok")
    head = ["network", "layers", "fused", *CELLS, "verdict", "seconds"]
    rows += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in found.items():
        cells = [str(row.get(cell, "")).partition(":")[0] for cell in ("layers", "fused", *CELLS)]
        said = str(row["verdict"]).replace("|", "\\|")
        rows.append(f"| {name} | {' | '.join(cells)} | {said} | {row['seconds']} |")
    return "\n".join(rows) + "\n"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "torchvision", "timm", "segmentation-models-pytorch", "monai")}


def main() -> None:
    """Runs what is asked for and writes the table after every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the table; what it is made of lies beside it, as .json")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--resume", action="store_true", help="leave out those that are ok in the table")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each of a network's two processes")
    parser.add_argument("--memory", type=int, default=8, help="GiB for each process")
    given = parser.parse_args()
    os.environ |= {"ATROUSOPS_PLANS": "none", "OMP_NUM_THREADS": "1"}
    store = given.out.with_suffix(".json")
    found = json.loads(store.read_text())["networks"] if store.exists() else {}
    lock, everything = threading.Lock(), list(networks())

    def run(name: str) -> None:
        row = examine(name, given.limit, given.memory)
        print(f"{name}: {row['verdict']} ({row['seconds']} s)", flush=True)
        with lock:
            found[name] = row
            known = {name: found[name] for name in everything if name in found}
            store.write_text(json.dumps({"versions": _versions(), "networks": known}, indent=1) + "\n")
            given.out.write_text(table(known, _versions()))

    chosen = [name for name in everything if given.only in name]
    if given.resume:
        chosen = [name for name in chosen if found.get(name, {}).get("verdict") != "ok"]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(run, chosen))


if __name__ == "__main__":
    main()
