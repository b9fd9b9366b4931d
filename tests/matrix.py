"""Networks of other packages after convert and optimize, compared with the originals: docs/matrix.md.

Run by `python tests/matrix.py`. Each network has random weights and runs in processes of its own, with limits of time
and memory, so that a crash becomes a row. Needs the packages of `pip install atrousops[matrix]`. A cell holds "ok", or
what went wrong:

- eval: results against the model in float64. The error is at most twice the model's own, and labels are the same unless
they are a near tie in float64. If a model's own error is above one per cent, and for detectors, which choose among
candidates, both sides run in float64. The model's own error is the largest of those with contiguous tensors, in
channels_last if it runs in that, and with inputs changed in the last place; for optimize also with weights changed in
the last place, because folding rounds them.
- training: one step with the same seed; loss, every gradient and every buffer, with the same bound.
- saved: the state dict, loaded into a model that was made with other weights, and the module saved whole, both in
another process; the bits of the results are equal. For optimize, the state dict goes into a copy that was optimised
with other weights and without the check, because the check may undo other fusions there; its results have the bound of
eval.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import tables
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


def _examine(name: str, note: tables.Note, folder: Path) -> None:
    """Everything that is done in the first process, cell by cell."""
    network = networks()[name]
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
    tables.cell(note, "convert eval", on_convert)
    tables.cell(note, "convert training", on_training if network.trains else lambda: "-")
    tables.cell(note, "convert saved", lambda: _save(network, folder, "convert", converted, inputs, {}))
    tables.cell(note, "optimize eval", on_optimize)
    if fast:
        wide = widened(inputs) if oracle.in_double else inputs
        bounds = {name: 2 * oracle.bound(name) for name in oracle.exact}
        tables.cell(note, "optimize saved", lambda: _save(network, folder, "optimize", fast[0], wide, bounds))


def _save(network: Network, folder: Path, tool: str, model: nn.Module, inputs: tuple, bounds: dict[str, float]) -> str:
    """Leaves for the second process the module, its state dict, what it answers, and how far the other may be off."""
    if not network.pickles:
        return "-"
    torch.save(model, folder / f"{tool}.whole")
    torch.save((model.state_dict(), inputs, results(model, inputs), bounds), folder / f"{tool}.state")
    return "ok"


def _reload(name: str, note: tables.Note, folder: Path) -> None:
    """Everything that is done in the second process."""
    network = networks()[name]
    for tool in ("convert", "optimize"):
        if (folder / f"{tool}.state").exists():
            tables.cell(note, f"{tool} saved", partial(_loaded, network, folder, tool))


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


def examine(name: str, limit: float, memory: int) -> dict[str, Any]:
    """The row of one network."""
    preload = ["torch", "torchvision", "timm", "monai.networks.nets", "segmentation_models_pytorch"]
    found = tables.examine(name, (_examine, _reload), limit, memory, preload)
    return found | {"verdict": verdict(found)}


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


if __name__ == "__main__":
    VERSIONS = tables.versions(("torch", "torchvision", "timm", "segmentation-models-pytorch", "monai"))

    def row_of(name: str, limit: float, memory: int, *_: object) -> tables.Row:
        return examine(name, limit, memory)

    tables.main(__doc__ or "", OUT, [*networks()], row_of, table, VERSIONS, limit=240.0)
