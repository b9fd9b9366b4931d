"""A run as a whole: table, file, interruption, comparison, plots, command line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rows import broken_row, row, wrong_row

from atrousops import cli
from atrousops.bench import machine, measure, plots, report, run
from atrousops.bench.floors import Floor
from atrousops.bench.machine import Ceilings
from atrousops.bench.measure import Options
from atrousops.bench.results import Report, Result, geometric_mean
from atrousops.common.checks import ArgumentError
from atrousops.testing import Timing

CPU = torch.device("cpu")
FAST = Options(repeats=1, budget=0)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(
        machine, "ceilings", lambda device, dtypes: Ceilings(1e10, dict.fromkeys(["fp32", *dtypes], 1e11))
    )
    monkeypatch.setattr(run, "suite_title", lambda suite: "Small rows.")


def timing(seconds):
    return Timing(seconds, seconds * 0.9, seconds * 1.1, 5)


def result(case="case", ours=1.0, theirs=2.0, suite="roi"):
    timings = {"dispatched": timing(ours), "own kernel": timing(ours * 2), "aten": timing(theirs), "slow": timing(9.0)}
    ratios = {"dispatched": timing(theirs / ours), "own kernel": timing(theirs / ours / 2)}
    floor = Floor(100.0, 300.0, 0.5)
    return Result(suite, case, "reason", "fp32", "nchw", "forward", "regions", "why", timings, ratios, floor=floor,
                  floor_seconds=0.25, gemm=(1, 2, 3), missing={"monai": "not here"})  # fmt: skip


def stored(*results):
    return Report(machine.environment(CPU), Ceilings(10.0, {"fp32": 1000.0}), list(results), {"roi/x": "for a reason"})


def test_table_and_file(tmp_path):
    lines = []
    rows = [row(), wrong_row(), broken_row(), row("tf32", dtype="tf32"), row("absent", needs=("skimage_",))]
    run.HOW["skimage_"] = "skimage_ is missing"
    done = run.run(rows, CPU, FAST, path=tmp_path / "new" / "a.json", show=lines.append)
    text = "\n".join(lines)
    for expected in ("small: Small rows.", "1/3 right ", "2/3 wrong ", "WRONG: dispatched", "FAILED: MemoryError",
                     "Left out, for TF32 is a GPU's: 1 rows", "Left out, skimage_ is missing: 1 rows"):  # fmt: skip
        assert expected in text
    assert Report.load(tmp_path / "new" / "a.json") == done
    content = json.loads((tmp_path / "new" / "a.json").read_text())
    assert content["schema"] == 2
    assert [r["ratio"] is None for r in content["rows"]] == [False, True, True]


def test_interruption_keeps_rows(tmp_path, monkeypatch):
    lines, path = [], tmp_path / "a.json"

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    rows = [row("one"), row("two"), row("three", functions=(interrupted, interrupted))]
    with pytest.raises(KeyboardInterrupt):
        run.run(rows, CPU, FAST, path=path, show=lines.append)
    assert [r.case for r in Report.load(path).results] == ["one", "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert "Geometric means" in lines[-1]


def test_time_that_is_over(tmp_path):
    done = run.run([row(), row("another")], CPU, FAST, path=tmp_path / "a.json", seconds=-1, show=lambda line: None)
    assert not done.results
    assert len(Report.load(tmp_path / "a.json").left_out) == 2


def test_round_trip(tmp_path):
    before = stored(result(), result("other", suite="crf"))
    before.save(tmp_path / "a.json")
    assert Report.load(tmp_path / "a.json") == before


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', '{"schema": 1, "rows": []}', '{"rows": 3}'])
def test_other_files(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ArgumentError, match=r"a\.json"):
        Report.load(tmp_path / "a.json")


def test_line_and_summary():
    line = report.line(result(ours=4.0))
    # 2 s over 4 s, and over the own kernel's 8 s; the floor is 0.25 s of 4 s.
    for expected in ("aten 2 s", "  0.50 8 s", "  0.25 ", " 6% ", "also slow 9 s", "without monai: not here"):
        assert expected in line
    # Boxes of a fifth of the ratio at five repeats: 1.08 may be off by 0.15, 1.5 by 0.21.
    assert "~1.08 " in report.line(result(ours=1.0, theirs=1.08))
    assert "~" not in report.line(result(ours=1.0, theirs=1.5))
    assert report.summary(stored(result(ours=1.0, theirs=0.95))).splitlines()[1].split()[-2:] == ["0", "0"]
    text = report.summary(stored(result("a", ours=1.0), result("b", ours=4.0), result("c", ours=1.0, suite="crf")))
    (roi,) = [row.split() for row in text.splitlines() if row.startswith("roi")]
    assert roi == ["roi", "2", "1.00", "0.50", "-", "2.00", "0.50", "1", "0"]
    assert "for a reason" in text
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([]) is None


def test_triton_has_a_column_where_it_runs(tmp_path, monkeypatch):
    """Its kernels are pretended: on a CPU they would need its interpreter."""
    monkeypatch.setattr(measure, "runs_triton", lambda device: True)
    monkeypatch.setattr(run, "runs_triton", lambda device: True)
    monkeypatch.setattr(measure, "under", lambda backend, ready: ready)
    lines = []
    done = run.run([row(), row("another")], CPU, FAST, path=tmp_path / "a.json", show=lines.append)
    (title,) = [line for line in "\n".join(lines).splitlines() if line.strip().startswith("case")]
    assert title.split()[-9:] == ["x", "own", "kernel", "x", "triton", "x", "floor", "gemm", "kernel"]
    (cells,) = [line for line in lines if "1/2 right" in line]
    at = title.index("triton")
    time, ratio = cells[at : at + 21].rsplit(maxsplit=1)
    assert time.strip()
    assert ratio.lstrip("~") == f"{done.results[0].ratio('triton'):.2f}"
    assert "triton" in next(line for line in lines[-1].splitlines() if line.startswith("suite"))
    stored_rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert all(r["timings"]["triton"]["median"] > 0 and r["ratio_triton"] == done.results[i].ratio("triton")
               for i, r in enumerate(stored_rows))  # fmt: skip
    pytest.importorskip("matplotlib")
    figure = plots._ratios(done)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(report.columns(True))


def test_comparison():
    wrong = result("broken")
    wrong.timings, wrong.wrong = {}, {"dispatched": "error"}
    old = stored(result("a", ours=1.0), result("b", ours=1.0), result("broken"), result("gone"))
    new = stored(result("a", ours=0.5), result("b", ours=1.05), wrong, result("come"))
    lines = report.changes(old, new).splitlines()
    rows = {line[:100].strip(): line[100:].split() for line in lines}
    assert rows["roi/a/fp32/nchw/forward"][-3:] == ["2.00*", "2.00", "4.00"]
    assert rows["roi/b/fp32/nchw/forward"][-3:] == ["0.95", "2.00", "1.90"]
    assert rows["roi/broken/fp32/nchw/forward"] == ["measured", "->", "WRONG"]
    assert "geometric mean of old over new: 1.380" in "\n".join(lines)
    assert "Only in old: 1 rows, such as roi/gone/fp32/nchw/forward" in lines
    assert "machines differ" not in "\n".join(lines)
    new.environment = {**new.environment, "device": "another"}
    assert "machines differ" in report.changes(old, new)


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    written = plots.draw(stored(result(), result("loss", ours=4.0)), tmp_path / "a")
    assert sorted(path.name for path in written) == [
        "a_ratios.png", "a_ratios.svg", "a_roofline.png", "a_roofline.svg",
    ]  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in written)
    assert not plots.draw(stored(), tmp_path / "nothing")


def test_plots_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    stored(result()).save(tmp_path / "a.json")
    assert command("--plot", tmp_path / "a.json") == 1
    assert "pip install 'atrousops[bench]'" in capsys.readouterr().err


def command(*args):
    return cli.main(["bench", *map(str, args)])


def test_command_measures(tmp_path, monkeypatch, capsys):
    code = command("--suite", "overhead", "--match", "roi_pool.*forward", "--repeats", 1, "--budget", 0,
                   "-o", tmp_path, "--name", "a", "--device", "cpu")  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    path = tmp_path / machine.device_name(CPU) / "a.json"
    assert f"-> {path}" in out
    assert "roi_pool, 1 box" in out
    assert command("--compare", path, path) == 0
    assert "1 rows in both; geometric mean of old over new: 1.000" in capsys.readouterr().out


def test_command_lists(capsys):
    assert command("--list", "--quick", "--suite", "roi") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("(quick): " in line for line in lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--suite", "rio"), "bench: suite must be one of deeplab"),
        (("--compare", "absent.json", "absent.json"), "absent.json: No such file"),
        (("--plot", "absent.json"), "absent.json: No such file"),
    ],
)
def test_bad_command(args, message, capsys):
    assert command(*args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert command("--device", "cuda", "--suite", "roi") == 1
    assert "PyTorch sees no GPU" in capsys.readouterr().err


def test_quick_is_what_make_runs():
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    assert "bench --quick --device cpu" in makefile
