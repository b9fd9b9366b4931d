"""Every network exported in every way and compared with itself: `python tests/roads.py`, docs/roads.md.

Each network is small, with random weights, in evaluation mode, on the CPU in float32; the two that come with the
package are unchanged. It is exported with two images of 64x80 pixels, and the result is run on one image and on three
of other sizes. Scores may differ by 1e-4 of the largest, or by twice the network's own error against float64, whichever
is larger. A cell holds "ok" and the largest difference found; "refused" and the reason; or what went wrong.

- onnxruntime, OpenVINO: the file that `atrousops export` writes.
- torch.export: with a range for batch, height and width, `Dim.DYNAMIC(min=, max=)`; saved, loaded in another process.
- AOTInductor: that program compiled with our operators in it, and loaded in another process. Compilation takes minutes
for some networks, so it runs in a process of its own and without vector instructions in the compiler's loops. `--column
AOTInductor` measures only this column.
- AOTInductor, decomposed: the program in PyTorch's operators, loaded in a process without this package; for one
network.
- jit: `torch.jit.trace` on the network's first call, frozen, loaded in a process without this package (with it for
networks with a dense CRF, for which PyTorch has no operators).
- optimised: a copy by `atrousops.optimize`, saved by torch.save and by pickle, loaded in another process; bits are
equal.

Needs the packages of `pip install atrousops[export]`, and a C++ compiler.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matrix
import tables
import torch
from matrix_networks import Network
from small_networks import OTHERS, SMALL
from torch import Tensor, nn

import atrousops as ao
from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.engine.export import INPUT, TOLERANCE, Scores, differences, export
from atrousops.ops import decompose

OUT = Path(__file__).resolve().parents[1] / "docs" / "roads.md"
CELLS = (
    "onnxruntime",
    "OpenVINO",
    "torch.export",
    "AOTInductor",
    "AOTInductor, decomposed",
    "jit",
    "optimised",
)
# What a compiler makes of the program, in minutes.
PACKAGES = CELLS[3:5]
NAMES = (*models.list("weights"), *models.list("networks"))
TRACED = (2, 3, 64, 80)
# Odd sides, one of them above and one below what was traced.
SHAPES = ((1, 3, 97, 65), (3, 3, 49, 82))
# Where of the largest of four values the next is not within rounding: one road would pool another pixel than the other.
WITHOUT_TIES = {"segnet_basic": ((1, 3, 97, 73), (3, 3, 49, 94))}
# Takes a list of images and gives objects: tests/models/test_export.py.
DETECTOR = "mask_rcnn"
# Its trace holds operators of ours.
LATTICE = "crfrnn"
# Whose program in PyTorch's operators is compiled as well.
DECOMPOSED = ("dilated_vgg16",)


def build(name: str) -> nn.Module:
    """The network, with weights that leave no layer without effect."""
    if name in models.list("weights"):
        return models.load(name)
    if name == DETECTOR:
        return models.build(name, num_classes=3, backbone="resnet18").eval()
    arguments = (SMALL | OTHERS).get(name, {})
    return matrix.prepared(Network(partial(models.build, name, num_classes=3, **arguments), lambda: (images(TRACED),)))


def images(shape: tuple[int, ...]) -> Tensor:
    """The same for every network and process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1]))


Wanted = dict[tuple[int, ...], Tensor]


def held(run: Callable[[Tensor], Any], wanted: Wanted, bound: float = TOLERANCE) -> str:
    """How far what `run` says of images is from the network's scores, relative to the largest."""
    found = []
    for shape, scores in wanted.items():
        with torch.no_grad():
            got = run(images(shape))
        if got.shape != scores.shape:
            return f"wrong: scores {tuple(got.shape)} for images {shape}"
        found.append(float((got - scores).abs().max() / scores.abs().max()))
    return _said(found, bound)


def _said(found: Sequence[float], bound: float) -> str:
    # NaN is not within any bound.
    wrong = [difference for difference in found if not difference <= bound]
    return f"wrong: {wrong[0]:.0e}" if wrong else f"ok {max(found):.0e}"


def _leave(name: str, note: tables.Note, folder: Path) -> None:
    """Everything that is done in the first process; what others load stays in the folder."""
    network = build(name)
    scores = Scores(network).eval()
    if name == DETECTOR:
        for column in filter(note.wants, CELLS):
            note(column, "not run")

    def cell(column: str, compute: Callable[[], str]) -> None:
        def or_refused() -> str:
            try:
                return compute()
            except ArgumentError as error:
                return f"refused: {error}"

        tables.cell(note, column, or_refused)

    if name == DETECTOR:
        return cell("onnxruntime", lambda: _onnx(network, folder))
    # First, as it is to be the network's first call.
    cell("jit", lambda: _trace(scores, folder))
    with torch.no_grad():
        wanted = {shape: scores(images(shape)) for shape in WITHOUT_TIES.get(name, SHAPES)}
        exact = copy.deepcopy(scores).double()
        own = [float((t - exact(images(s).double())).abs().max() / t.abs().max()) for s, t in wanted.items()]
    bound = max(TOLERANCE, *(2 * error for error in own))
    torch.save((wanted, bound), folder / "wanted")
    cell("onnxruntime", lambda: _onnx(network, folder, bound))
    if (folder / "network.onnx").exists():
        cell("OpenVINO", lambda: held(_openvino(folder / "network.onnx"), wanted, bound))
    elif note.wants("OpenVINO"):
        note("OpenVINO", "no file")
    cell("optimised", lambda: _optimise(network, folder))
    cell("torch.export", lambda: _program(scores, folder))


def _packages(name: str, note: tables.Note, folder: Path) -> None:
    """What a compiler does, in a process of its own: its time and memory are no other column's."""
    if not (folder / "program.pt2").exists():
        return
    for column in PACKAGES:
        run = column == "AOTInductor" or name in DECOMPOSED
        tables.cell(note, column, partial(_compile, column, folder) if run else lambda: "not run")


def _trace(scores: nn.Module, folder: Path) -> str:
    with torch.no_grad():
        torch.jit.freeze(torch.jit.trace(scores, images(TRACED))).save(folder / "traced")
    return "left"


def _onnx(network: nn.Module, folder: Path, bound: float = TOLERANCE) -> str:
    path = folder / "network.onnx"
    export(network, path, TRACED[-2:], info=getattr(network, "info", None))
    return _said([found.largest for found in differences(network, path, SHAPES)], bound)


def _openvino(path: Path) -> Callable[[Tensor], Tensor]:
    import openvino

    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: torch.from_numpy(compiled({INPUT: image.numpy()})[0])


def _program(scores: nn.Module, folder: Path) -> str:
    # A named Dim wants proofs that sizes agree which are rounded by strides in two ways; this checks them as it runs.
    side = torch.export.Dim.DYNAMIC(min=33, max=2048)
    sizes = ({0: torch.export.Dim.DYNAMIC(min=1, max=16), 2: side, 3: side},)
    with torch.no_grad():
        program = torch.export.export(scores, (images(TRACED),), dynamic_shapes=sizes, strict=False)
    # Under its name only once it is whole: what is there is loaded, and its cell is then about that.
    torch.export.save(program, folder / "part.pt2")
    (folder / "part.pt2").rename(folder / "program.pt2")
    return "left"


def _compile(column: str, folder: Path) -> str:
    program = torch.export.load(folder / "program.pt2")
    if column != "AOTInductor":
        program = decompose(program)
    # Nothing here is timed, and compilers are in less of a hurry with the code between kernels. Scalar loops take a
    # third less of the processor's time (ENet: 39 seconds for 56); of what is left most is PyTorch's lowering.
    settings = {"aot_inductor.compile_wrapper_opt_level": "O0", "cpp.simdlen": 1}
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / f"{column}.pt2"), inductor_configs=settings
        )
    return "left"


def _optimise(network: nn.Module, folder: Path) -> str:
    fast = ao.optimize(network, images(TRACED))
    torch.save(fast, folder / "optimised")
    with torch.no_grad():
        pickled = pickle.dumps((fast, {shape: Scores(fast)(images(shape)) for shape in SHAPES}))
    (folder / "optimised.pickle").write_bytes(pickled)
    return "left"


def _load(name: str, note: tables.Note, folder: Path) -> None:
    """Everything that is done in the second process, with this package."""
    if not (folder / "wanted").exists():
        return
    wanted = torch.load(folder / "wanted")
    left = {
        "torch.export": ("program.pt2", lambda path: held(torch.export.load(path).module(), *wanted)),
        "AOTInductor": ("AOTInductor.pt2", lambda path: held(torch._inductor.aoti_load_package(str(path)), *wanted)),
        "optimised": ("optimised.pickle", lambda path: _reloaded(path, *wanted)),
    }
    if name == LATTICE:
        left["jit"] = ("traced", lambda path: held(torch.jit.load(str(path)), *wanted))
    for column, (file, run) in left.items():
        if (folder / file).exists():
            tables.cell(note, column, partial(run, folder / file))


def _reloaded(path: Path, wanted: Wanted, bound: float) -> str:
    pickled, expected = pickle.loads(path.read_bytes())
    for way, model in (("torch.save", torch.load(path.with_suffix(""), weights_only=False)), ("pickle", pickled)):
        with torch.no_grad():
            if not all(torch.equal(Scores(model)(images(shape)), t) for shape, t in expected.items()):
                return f"wrong: another answer after {way}"
    return held(Scores(pickled), wanted, bound)


def _without(name: str, note: tables.Note, folder: Path) -> None:
    """Everything that is done without this package, in a third process of its own."""
    decomposed = "AOTInductor, decomposed"
    loaders = {
        "jit": ("traced", "torch.jit.load"),
        decomposed: (f"{decomposed}.pt2", "torch._inductor.aoti_load_package"),
    }
    for column, (file, loader) in loaders.items():
        if (folder / file).exists() and (column, name) != ("jit", LATTICE):
            tables.cell(note, column, partial(_elsewhere, folder, file, loader))


def _elsewhere(folder: Path, file: str, loader: str) -> str:
    code = (
        "import sys, torch\n"
        f"run, wanted = {loader}({str(folder / file)!r}), torch.load('wanted')[0]\n"
        "draw = lambda shape: torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1]))\n"
        "with torch.no_grad():\n"
        "    torch.save({shape: run(draw(shape)) for shape in wanted}, 'got')\n"
        "assert 'atrousops' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return f"error: {(done.stderr.strip().splitlines() or ['killed'])[-1][:200]}"
    got = {tuple(shape): scores for shape, scores in torch.load(folder / "got").items()}
    return held(lambda image: got[tuple(image.shape)], *torch.load(folder / "wanted"))


def examine(name: str, limit: float, memory: int, wanted: tables.Columns, before: tables.Row) -> tables.Row:
    """The row of one network."""
    # A package is made of the program.
    cells = (*wanted, "torch.export") if wanted else ()
    tasks = (_leave, _packages, _load, _without)
    found = tables.examine(name, tasks, limit, memory, ["torch", "torchvision"], cells)
    for column in PACKAGES:
        # Slow, not wrong: the compiler would end some time.
        if found.get(column, "").startswith("timeout"):
            found[column] = f"not done after {limit / 60:.0f} minutes"
            found.pop("build", None)
    if wanted:
        found = before | {column: found.get(column, "missing") for column in wanted}
    return found | {"verdict": verdict(found)}


def verdict(row: tables.Row) -> str:
    """ok, or the first thing that went wrong: neither right nor refused nor left out."""
    for column in ("build", *CELLS):
        value = row.get(column, "ok" if column == "build" else "missing")
        if value.partition(" ")[0] not in ("ok", "refused:", "not", "no"):
            return f"{column}: {value}"
    return "ok"


def table(found: dict[str, tables.Row], versions: dict[str, str]) -> str:
    """The page: what was run, a row for each network, and each reason once."""
    reasons = dict.fromkeys(
        value for row in found.values() for column in CELLS if (value := row.get(column, "")).startswith("refused: ")
    )
    numbers = {reason: f"refused [{number}]" for number, reason in enumerate(reasons, start=1)}
    lines = [
        "# Networks and export formats",
        "",
        "Written by `python tests/roads.py`, which says what the columns mean; nothing in it is written by hand.",
        "Run on " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        f"| network | {' | '.join(CELLS)} |",
        "|---" * (len(CELLS) + 1) + "|",
    ]
    for name, row in found.items():
        cells = [str(row.get(column, "")) for column in CELLS]
        lines.append(f"| {name} | {' | '.join(numbers.get(cell, cell).replace('|', '/') for cell in cells)} |")
    missing = [name for name in NAMES if name not in found]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    lines += ["", *(f"{number}. {reason.removeprefix('refused: ')}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    VERSIONS = tables.versions(("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "openvino"))
    tables.main(__doc__ or "", OUT, NAMES, examine, table, VERSIONS, limit=900.0, columns=PACKAGES)
