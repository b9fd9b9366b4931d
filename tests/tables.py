"""Tables of networks, for matrix.py and roads.py: each row is measured in processes of its own, with limits of time and
memory, so that a crash is a row; a run that was stopped goes on where it was."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
# What is measured of a row: all of it if empty.
Columns = Sequence[str]


class Note:
    """Keeps the cells of a row that one process measures, so that those before a crash are known."""

    def __init__(self, row: Path, wanted: Columns) -> None:
        self._row, self._wanted, self._found = row, wanted, dict[str, str]()

    def __call__(self, name: str, value: str) -> None:
        self._found[name] = value
        self._row.write_text(json.dumps(self._found))

    def wants(self, name: str) -> bool:
        """Whether the cell is to be measured."""
        return not self._wanted or name in (*self._wanted, "build")


# Measures a part of the row of a name, in a folder that the row's tasks share; notes each cell.
Task = Callable[[str, Note, Path], None]


def cell(note: Note, name: str, compute: Callable[[], str]) -> None:
    """Notes what a computation says, or what it raises; nothing of a cell that is not wanted."""
    if not note.wants(name):
        return
    note(name, "started")
    try:
        note(name, compute())
    # Whatever somebody's network raises is what the cell says.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        note(name, f"error: {type(error).__name__}: {lines[0][:160]}")


def _process(task: Task, name: str, folder: Path, memory: int, wanted: Columns) -> None:
    """The body of a process of its own."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory << 30, memory << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    note = Note(folder / f"{task.__name__}.json", wanted)
    cell(note, "build", lambda: task(name, note, folder) or "ok")


def examine(
    name: str, tasks: Sequence[Task], limit: float, memory: int, preload: Sequence[str], wanted: Columns = ()
) -> Row:
    """The row of one network: what its tasks note, one process after the other, and the seconds they took."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    start, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            process = context.Process(target=_process, args=(task, name, Path(folder), memory, wanted))
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
    return found | {"seconds": round(time.monotonic() - start, 1)}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """What is installed."""
    from importlib.metadata import version

    return {name: version(name) for name in packages}


def main(
    description: str,
    out: Path,
    names: Sequence[str],
    row_of: Callable[[str, float, int, Columns, Row], Row],
    table: Callable[[dict[str, Row], dict[str, str]], str],
    made_with: dict[str, str],
    limit: float,
    columns: Columns = (),
) -> None:
    """Runs what is asked for, and writes the table and what it is made of after every row.

    Args:
        description: for --help.
        out: the table; its data lie beside it, as .json.
        names: of all rows, in order.
        row_of: measures a row, within seconds and GiB, or some of its cells and takes the others of the row that is
            there; its "verdict" is "ok" where --resume need not run it again.
        table: makes the page of rows and versions.
        made_with: versions.
        limit: seconds for each process, where none are given.
        columns: that can be measured by themselves.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out, help="the table; what it is made of lies beside it, as .json")
    parser.add_argument("--only", default="", help="the network of this name, or else all whose name contains this")
    parser.add_argument("--resume", action="store_true", help="leave out those that are ok in the table")
    parser.set_defaults(column=None)
    if columns:
        parser.add_argument("--column", choices=columns, help="measure this one alone, of rows that are in the table")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--limit", type=float, default=limit, help="seconds for each of a network's processes")
    parser.add_argument("--memory", type=int, default=8, help="GiB for each process")
    given = parser.parse_args()
    os.environ |= {"ATROUSOPS_PLANS": "none", "OMP_NUM_THREADS": "1"}
    store = given.out.with_suffix(".json")
    found: dict[str, Row] = json.loads(store.read_text())["networks"] if store.exists() else {}
    lock = threading.Lock()

    def run(name: str) -> None:
        wanted = (given.column,) if given.column else ()
        row = row_of(name, given.limit, given.memory, wanted, found.get(name, {}))
        print(f"{name}: {row['verdict']} ({row['seconds']} s)", flush=True)
        with lock:
            found[name] = row
            known = {name: found[name] for name in names if name in found}
            store.write_text(json.dumps({"versions": made_with, "networks": known}, indent=1) + "\n")
            given.out.write_text(table(known, made_with))

    chosen = [given.only] if given.only in names else [name for name in names if given.only in name]
    if given.column:
        chosen = [name for name in chosen if name in found]
    if given.resume:
        chosen = [name for name in chosen if found.get(name, {}).get("verdict") != "ok"]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(run, chosen))
