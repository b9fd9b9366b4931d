"""docs/prediction.md: its commands as typed, without the launchers of several processes."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import own
import pytest
import torch
import yaml
from PIL import Image

from atrousops import cli, models

PAGE = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text()
LINES = [
    line
    for block in re.findall(r"(?<!-->\n)^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images without masks, a slide that is wider than a tile, labelled images and their recipe, and a network."""
    own.write(tmp_path, "new/{}.png", "unused/{}.png", ("one", "two", "three"))
    own.write(tmp_path / "cells")
    Image.effect_noise((300, 200), 80).convert("RGB").save(tmp_path / "slide.tif")
    torch.manual_seed(0)
    arguments = {"num_classes": 2, "depth": 2}
    info = models.Info("msd", arguments, ("background", "cell"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("msd", **arguments), tmp_path / "cells.safetensors", info)
    data = {"name": "folder", "root": "cells", "images": "images", "masks": "masks", "classes": ["background", "cell"]}
    data |= {"ids": {0: "background", 1: "cell"}, "fractions": {"val": 0.5}, "mean": [0.5] * 3, "std": [0.2] * 3}
    recipe = {"model": {"name": "msd", "arguments": arguments}, "data": data, "schedule": {"steps": 1}}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({**recipe, "device": "cpu", "threads": 1}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(line):
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    assert words.pop(0) == "atrousops"
    if "--ray" in words:
        there = words.index("--ray")
        assert words[there:] == ["--ray", "local", "--workers", "2"]
        del words[there:]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(words) == 0, line
    return printed.getvalue()


def test_the_commands(folder):
    threads = torch.get_num_threads()
    printed = [typed(line) for line in LINES]
    torch.set_num_threads(threads)
    assert len(printed) == 11
    assert all(re.search(r"^(3|1) images, ", each, re.MULTILINE) for each in (printed[0], printed[1], printed[3]))
    assert "3 done before, 0 to do" in printed[2]
    masks = [np.asarray(Image.open(folder / "found" / f"slide_mask.{kind}")) for kind in ("png", "tif")]
    assert masks[0].shape == (200, 300)
    assert np.mean(masks[0] == masks[1]) > 0.999
    assert printed[7] == printed[10]
    assert all("mean IoU" in printed[number] for number in (5, 7))


def test_the_options_are_those_of_the_commands(capsys):
    """Every option that the page names is one of `segment` or `evaluate`, or of the launcher."""
    told = ""
    for command in ("segment", "evaluate"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        told += capsys.readouterr().out
    named = {*re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", PAGE)}
    launcher = {"--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
    assert {name for name in named if name not in told} == launcher
