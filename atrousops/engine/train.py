"""Training from a recipe: resumable bit for bit, interruptible, and never half-written."""

from __future__ import annotations

import copy
import csv
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from atrousops import models
from atrousops._checks import bad_value
from atrousops._files import write_atomically
from atrousops.data import SETS, VOID, SegmentationSet, transforms
from atrousops.data.files import find
from atrousops.engine import config as configs
from atrousops.engine.config import Config
from atrousops.engine.evaluate import score
from atrousops.models.factorise import factorise_vgg16

CHECKPOINT = "checkpoint.pt"


def main(
    config_path: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    data_root: str | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Trains a network by a recipe.

    Args:
        config_path: the recipe, YAML.
        output: folder for log, checkpoint and weights; runs/<name of the recipe> if None.
        data_root: folder of the data, instead of the recipe's.
        resume: go on from the checkpoint in `output`.
        overrides: "part.key=value" entries that replace the recipe's.
        progress: draw a progress bar.

    Returns:
        The path of the weights (safetensors). After Ctrl-C, that of the checkpoint.

    Raises:
        FileNotFoundError: no recipe, or resume without a checkpoint.
        ArgumentError: a wrong recipe, or `output` holds a checkpoint and resume is False.
    """
    recipe = configs.load(config_path, overrides)
    folder = Path(output) if output is not None else Path("runs") / Path(config_path).stem
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists() and not resume:
        bad_value("train", "output", "hold no checkpoint unless resume is set", str(checkpoint))
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    # For this run only: the flag is the calling thread's, and torch has no way to read it.
    flushed_before = not torch.tensor(torch.finfo(torch.float32).smallest_normal).mul(0.5).item()
    torch.set_flush_denormal(True)
    root = data_root if data_root is not None else recipe.data.root
    try:
        trainer = Trainer(recipe, root, initialise=not resume)
        if resume:
            trainer.load(checkpoint)
        return trainer.run(folder, progress=progress)
    finally:
        torch.set_flush_denormal(flushed_before)


class Trainer:
    """A recipe in motion: model, averaged model, optimiser, and the number of steps done.

    Args:
        recipe: what to do.
        root: folder of the data.
        initialise: start from the recipe's trunk (False when a checkpoint is loaded next).
    """

    def __init__(self, recipe: Config, root: str | None, *, initialise: bool = True) -> None:
        self.recipe = recipe
        reader = SETS[recipe.data.name]
        self.train_set = reader(root, recipe.data.train, transforms.training(recipe.augmentation))
        self.val_set = reader(root, recipe.data.val, transforms.evaluation())
        torch.manual_seed(recipe.seed)
        self.model = models.build(recipe.model.name, **recipe.model.arguments)
        if initialise and recipe.init.trunk:
            _start_from_trunk(self.model, recipe, root)
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(recipe.optimiser.frozen)))
        self.optimiser = _optimiser(self.model, recipe)
        self.step = 0
        self.seconds = 0.0

    def run(self, folder: Path, *, progress: bool = True) -> Path:
        """Trains to the last step, or until Ctrl-C; see `main`."""
        recipe = self.recipe
        log = Log(folder / "log.csv", ("step", "seconds", "lr", "loss"), self.step)
        scores = Log(folder / "val.csv", ("step", "seconds", "miou", *self.val_set.classes), self.step)
        stop = _StopRequest()
        bar = tqdm(total=recipe.schedule.last, initial=self.step, desc="train", disable=not progress)
        with stop, bar:
            while self.step < recipe.schedule.last and not stop.requested:
                loss = self.train_step()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
                log.write(
                    self.step, f"{self.seconds:.1f}", f"{self.optimiser.param_groups[0]['lr']:.3e}", f"{loss:.4f}"
                )
                if recipe.validate_every and self.step % recipe.validate_every == 0:
                    matrix = score(self.average, self.val_set, progress=progress)
                    values = [matrix.mean_iou, *matrix.iou.tolist()]
                    scores.write(self.step, f"{self.seconds:.1f}", *(f"{value:.4f}" for value in values))
                if self.step % recipe.checkpoint_every == 0:
                    self.save(folder / CHECKPOINT)
        self.save(folder / CHECKPOINT)
        if self.step < recipe.schedule.last:
            return folder / CHECKPOINT
        weights = folder / "weights.safetensors"
        models.save(self.average, weights, self.info())
        return weights

    def train_step(self) -> float:
        """One batch; returns its loss."""
        start = time.perf_counter()
        recipe = self.recipe
        factor = recipe.schedule.factor(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_lr"] * factor
        images, labels = self.batch(self.step)
        scores = self.model(images)
        loss = F.cross_entropy(scores["out"], labels, ignore_index=VOID)
        if "aux" in scores:
            loss = loss + 0.4 * F.cross_entropy(scores["aux"], labels, ignore_index=VOID)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        self._update_average()
        self.seconds += time.perf_counter() - start
        return loss.item()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step, a function of seed and step alone: a resumed run sees the same."""
        count = len(self.train_set)
        samples = []
        for number in range(step * self.recipe.batch, (step + 1) * self.recipe.batch):
            epoch, position = divmod(number, count)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.recipe.seed + epoch))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.seed * 1_000_003 + number)
                samples.append(self.train_set[int(order[position])])
        images = torch.stack([image for image, _ in samples]).contiguous(memory_format=torch.channels_last)
        return images, torch.stack([labels for _, labels in samples])

    def info(self) -> models.Info:
        """What goes into the header of the weights."""
        model = self.recipe.model
        return models.Info(
            network=model.name,
            arguments=model.arguments,
            classes=self.train_set.classes,
            mean=transforms.MEAN,
            std=transforms.STD,
            size=self.recipe.augmentation.size,
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on a shorter memory, so that the average is not still the beginning.
        keep = min(self.recipe.average, self.step / (self.step + 10))
        theirs = self.model.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(theirs[name], 1 - keep)
            else:
                value.copy_(theirs[name])

    def save(self, path: Path) -> None:
        """Writes everything that the next step depends on."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        write_atomically(path, lambda name: torch.save(state, name))

    def load(self, path: Path) -> None:
        """Goes back to a saved state. Raises FileNotFoundError."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        self.step = state["step"]
        self.seconds = state["seconds"]


class Log:
    """A CSV file, appended to row by row; rows after `step` are dropped when a run is resumed."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int) -> None:
        self.path = path
        kept = []
        if step and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *kept])

    def write(self, *values: object) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(values)


class _StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag, so that no step is left half done."""

    requested = False

    def __enter__(self) -> None:
        self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True


def _optimiser(model: nn.Module, recipe: Config) -> torch.optim.Optimizer:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = recipe.optimiser.backbone_lr if name.startswith("backbone.") else recipe.optimiser.lr
            decay = recipe.optimiser.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "full_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]
    )


def _start_from_trunk(model: nn.Module, recipe: Config, root: str | None) -> None:
    trunk = torch.load(find(str(recipe.init.trunk), root), map_location="cpu", weights_only=True)
    images: SegmentationSet = SETS[recipe.data.name](root, recipe.data.train, transforms.calibration(recipe.init.side))
    picked = [images[i][0] for i in range(min(recipe.init.images, len(images)))]
    batches = [torch.stack(picked[i : i + 8]) for i in range(0, len(picked), 8)]
    backbone, errors = factorise_vgg16(trunk, batches)
    model.get_submodule("backbone").load_state_dict(backbone.state_dict())
    print("error of each factorised layer:", " ".join(f"{error:.1e}" for error in errors))
