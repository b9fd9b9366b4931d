"""Steps a second of recipes, on PyTorch's operators and on this package's: benchmarks/training_speed.py RECIPE...

Each recipe is trained from its start for a few steps, in turn on both and back (A B B A), in this process; a step's
time is the mean of all but the first, of the faster run. The share that is this package's is what the profiler finds in
its operators and their derivatives, of one more run. The data of the recipes are in $ATROUSOPS_DATA.
"""

import csv
import sys
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

import atrousops as ao
from atrousops.engine import train

STEPS, TURNS = 16, ("aten", None, None, "aten")


def run(recipe: Path, backend: str | None) -> float:
    """Seconds of a step; the first, whose time holds the start, is left out."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"schedule.stop={STEPS}", f"pictures_every={STEPS}", f"checkpoint_every={STEPS}"]
        options = {"output": folder, "overrides": overrides, "progress": False}
        if backend is None:
            train.main(recipe, **options)
        else:
            with ao.backend(backend):
                train.main(recipe, **options)
        rows = list(csv.DictReader((Path(folder) / "log.csv").open()))
    times = [float(row["seconds"]) for row in rows]
    return (times[-1] - times[0]) / (len(times) - 1)


def share(recipe: Path) -> float:
    """This package's part of the time of all operators."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run(recipe, None)
    averages = seen.key_averages()
    ours = sum(row.self_cpu_time_total for row in averages if row.key.startswith("atrousops::"))
    return ours / sum(row.self_cpu_time_total for row in averages)


def main() -> None:
    print("| recipe | steps a second on PyTorch's operators | on atrousops | ratio | time in atrousops' operators |")
    print("|---|---|---|---|---|")
    for recipe in map(Path, sys.argv[1:]):
        found: dict[str | None, list[float]] = {"aten": [], None: []}
        for backend in TURNS:
            found[backend].append(run(recipe, backend))
        aten, ours = min(found["aten"]), min(found[None])
        cells = (f"{1 / aten:.2f}", f"{1 / ours:.2f}", f"{aten / ours:.2f}x", f"{100 * share(recipe):.0f} %")
        print(f"| {recipe.parent.name}/{recipe.stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
