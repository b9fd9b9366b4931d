"""Training from a recipe: interruptible, resumable with the same bits, with atomic writes."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from atrousops import models
from atrousops.common.checks import bad_value
from atrousops.common.files import alone, write_atomically, writing
from atrousops.data import SegmentationSet, transforms
from atrousops.engine import config as configs
from atrousops.engine import figures, optimise, outputs, start
from atrousops.engine.batches import Batches
from atrousops.engine.config import Config
from atrousops.engine.distributed import Processes, join, pick_device
from atrousops.engine.evaluate import Scores, scaled, score
from atrousops.engine.log import Board, Log, write_pictures
from atrousops.engine.losses import Criterion, WithLoss, class_weights
from atrousops.engine.progress import Progress
from atrousops.models.crf import normalise_crfs

CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.safetensors"


def main(
    config_path: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    data_root: str | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Trains a network by a recipe; under torchrun, on all of its processes.

    Args:
        config_path: the recipe, YAML.
        output: folder for log, checkpoint and weights; runs/<name of the recipe> if None.
        data_root: folder of the data, instead of the recipe's.
        resume: continue from the checkpoint in `output`.
        overrides: "part.key=value" entries that replace the recipe's.
        progress: show progress: a bar on a terminal, else a line from time to time.

    Returns:
        The path of the weights (safetensors). After Ctrl-C, that of the checkpoint. Beside it are log.csv, val.csv,
        confusion.csv of the last validation, and their figures curves.png and confusion.png if matplotlib is installed.

    Raises:
        FileNotFoundError: no recipe, or resume without a checkpoint.
        ArgumentError: an invalid recipe, `output` holds a checkpoint and resume is False, or the loss is not finite.
        OutputError: writing failed, for example because the disk is full. The last checkpoint is complete and can be
            resumed.
    """
    recipe = configs.load(config_path, overrides)
    folder = Path(output) if output is not None else Path("runs") / Path(config_path).stem
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists() and not resume:
        remedy = f"Go on with that run by --resume (resume=True), give another --output, or remove {folder}."
        bad_value("train", "output", "hold no checkpoint unless resume is set", str(checkpoint), remedy)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    # In a separate thread, because the flag is per thread and torch cannot read it back.
    flushed_before = not torch.tensor(torch.finfo(torch.float32).smallest_normal).mul(0.5).item()
    torch.set_flush_denormal(True)
    root = data_root if data_root is not None else recipe.data.root
    device = pick_device(recipe.device)
    try:
        with join(device) as processes:
            trainer = Trainer(recipe, root, initialise=not resume, device=device, processes=processes)
            with _only(folder, processes, recipe):
                if resume:
                    trainer.load(checkpoint)
                    trainer.tell(f"resume: {trainer.step} of {recipe.schedule.steps} steps are done")
                return trainer.run(folder, progress=progress and processes.first)
    finally:
        torch.set_flush_denormal(flushed_before)


def _only(folder: Path, processes: Processes, recipe: Config) -> contextlib.AbstractContextManager[None]:
    """Locks the output folder: two runs would mix their tables and overwrite each other's checkpoint."""
    if not processes.first:
        return contextlib.nullcontext()
    names = (CHECKPOINT, WEIGHTS, "log.csv", "val.csv", *figures.NAMES)
    every = recipe.pictures_every
    drawn = [_picture(folder, step) for step in range(every, recipe.schedule.last + 1, every)] if every else []
    return alone(folder, "train", "into which another one trains", [*(folder / name for name in names), *drawn])


def _picture(folder: Path, step: int) -> Path:
    return folder / "pictures" / f"{step:07}.png"


class Trainer:
    """The state of a training run: model, averaged model, optimiser, and the number of steps done.

    Args:
        recipe: the recipe.
        root: folder of the data.
        initialise: load the recipe's initial weights (False if a checkpoint is loaded next).
        device: the device of the network.
        processes: those that train together.

    Raises:
        ArgumentError: an invalid recipe, or the number of outputs differs from the number of classes of its data.
    """

    def __init__(
        self,
        recipe: Config,
        root: str | None,
        *,
        initialise: bool = True,
        device: torch.device | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cpu")
        self.processes = processes or Processes()
        _check(recipe, self.device, self.processes)
        data, colours = recipe.data, (recipe.data.mean, recipe.data.std)
        augmented = transforms.training(recipe.augmentation, *colours, data.scale)
        self.train_set = outputs.open_set(recipe, root, data.train, augmented)
        self.val_set = outputs.open_set(recipe, root, data.val, transforms.evaluation(*colours))
        outputs.check_recipe(recipe, self.train_set.classes)
        for held in (self.train_set, self.val_set):
            held.look(held.names[self.processes.rank :: self.processes.world])
        torch.manual_seed(recipe.seed)
        self.model = normalise_crfs(models.build(recipe.model.name, **recipe.model.arguments), *colours)
        if initialise and recipe.init.trunk:
            self.tell(start.from_trunk(self.model, recipe, root))
        if initialise and recipe.init.weights:
            self.tell(start.from_weights(self.model, recipe.init.weights, self.train_set.classes))
        for norm in self.model.modules():
            if recipe.norm_momentum is not None and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = recipe.norm_momentum
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last).train()
        if recipe.sync_norm and self.processes.world > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        optimise.freeze(self.model, recipe.optimiser)
        self.optimiser = optimise.build(self.model, recipe.optimiser)
        criterion = Criterion(recipe.loss, class_weights(recipe.loss.weights, self.train_set)).to(self.device)
        self.judged: nn.Module = WithLoss(self.model, criterion)
        self.criterion = criterion
        if self.processes.world > 1:
            # Mask R-CNN does not use its mask head if there are no objects.
            unused = hasattr(self.model, "loss")
            self.judged = DistributedDataParallel(self.judged, find_unused_parameters=unused)
        self.step = 0
        self.seconds = 0.0
        self._batches: Batches | None = None

    def run(self, folder: Path, *, progress: bool = True) -> Path:
        """Trains to the last step, or until Ctrl-C; see `main`."""
        recipe, first = self.recipe, self.processes.first
        record = _Record(folder, self.val_set, self.step) if first else None
        judge = scaled(self.average, recipe.scales, odd_sides=recipe.odd_sides)
        stop = _StopRequest()
        show = Progress(recipe.schedule.last, self.step, progress)
        with stop, contextlib.closing(show), contextlib.closing(record) if record else contextlib.nullcontext():
            unreadable: Exception | None = None
            self._look(folder, judge, show, record, progress, only_missing=True)
            while self.step < recipe.schedule.last:
                unreadable = None if stop.requested else self._unreadable()
                if self.processes.any(stop.requested or unreadable is not None, self.device):
                    break
                loss, lr = self.train_step(), self.optimiser.param_groups[0]["lr"]
                show.step(loss, lr)
                if record:
                    record.step(self.step, self.seconds, lr, loss)
                self._look(folder, judge, show, record, progress)
                if first and self.step % recipe.checkpoint_every == 0:
                    self.save(folder / CHECKPOINT)
        if unreadable is not None:
            with self._kept(folder):
                raise unreadable
        if first:
            self.save(folder / CHECKPOINT)
        weights = folder / WEIGHTS if self.step >= recipe.schedule.last else None
        if first and weights:
            models.save(self.average, weights, self.info())
        if record:
            self._draw(folder)
        if weights:
            self.processes.wait()
        return weights or folder / CHECKPOINT

    def _look(
        self, folder: Path, judge: nn.Module, show: Progress, record: _Record | None, progress: bool, only_missing=False
    ) -> None:
        """Validation and pictures, if due; of a resumed run, those that an error kept it from."""
        recipe, path = self.recipe, _picture(folder, self.step)
        missing = not only_missing or (record is not None and record.val.last < self.step)
        if self._due(recipe.validate_every) and self.processes.any(missing, self.device):
            with self._kept(folder):
                scores = score(judge, self.val_set, progress=progress, processes=self.processes)
            show.scored(scores.matrix.mean_iou)
            if record:
                record.scores(self.step, self.seconds, scores)
        if self.processes.first and self._due(recipe.pictures_every) and not (only_missing and path.exists()):
            with self._kept(folder):
                write_pictures(path, judge, self.val_set, recipe.data.mean, recipe.data.std)

    def _due(self, every: int | None) -> bool:
        return bool(every and self.step and self.step % every == 0)

    @contextlib.contextmanager
    def _kept(self, folder: Path) -> Iterator[None]:
        """Saves a checkpoint of the finished steps if an error, such as a damaged file, ends this part of the run."""
        with contextlib.ExitStack() as failed:
            failed.callback(self._keep, folder / CHECKPOINT)
            yield
            failed.pop_all()

    def _keep(self, path: Path) -> None:
        if self.processes.first and self.step:
            self.save(path)
            self.tell(f"{self.step} steps are kept in {path}: correct the error below, then continue with --resume")

    def _draw(self, folder: Path) -> None:
        try:
            figures.draw(folder)
        except figures.NoFigures as error:
            self.tell(error)

    def train_step(self) -> float:
        """One batch; returns its loss. Raises ArgumentError, before weights change, if the loss is not finite."""
        begin = time.perf_counter()
        recipe, processes = self.recipe, self.processes
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_lr"] * recipe.schedule.factor(self.step)
        images, labels = self.batch()
        # Dropout and other random numbers depend only on seed, step and process, so a resumed run draws the same.
        torch.manual_seed((recipe.seed * 1_000_003 + self.step) * 1009 + processes.rank)
        count = processes.sum(self.criterion.denominator(self.model, labels)).clamp_min(torch.finfo(torch.float32).tiny)
        self.optimiser.zero_grad(set_to_none=True)
        pieces = list(zip(images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True))
        total = torch.zeros((), device=self.device)
        for number, (x, y) in enumerate(pieces, start=1):
            # Gradients are exchanged once, with the last part.
            alone = isinstance(self.judged, DistributedDataParallel) and number < len(pieces)
            with self.judged.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.autocast is not None):
                    loss = self.judged(x.contiguous(memory_format=torch.channels_last), y) / count
                (loss * processes.world).backward()
            total += loss.detach()
        value = processes.sum(total).item()
        if not math.isfinite(value):
            remedy = "Lower optimiser.lr, or set autocast to null. Weights and checkpoint are from before that step."
            bad_value("train", "the loss", "be finite", f"{value} in step {self.step + 1}", remedy)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        self.seconds += time.perf_counter() - begin
        return value

    def batch(self) -> tuple[Tensor, Tensor]:
        """This process's images and labels of the next step, determined only by seed and step, for resuming."""
        images, labels = self._coming().next()
        return images.to(self.device), labels.to(self.device)

    def _coming(self) -> Batches:
        if self._batches is None:
            self._batches = Batches(self.train_set, self.recipe, self.processes, self.step)
        return self._batches

    def _unreadable(self) -> Exception | None:
        """Raises before a step begins, so that no process waits in it for one that cannot continue."""
        begin = time.perf_counter()
        error = self._coming().error()
        self.seconds += time.perf_counter() - begin
        return error

    def info(self) -> models.Info:
        """The info for the header of the weights."""
        model, data = self.recipe.model, self.recipe.data
        return models.Info(
            network=model.name,
            arguments=model.arguments,
            classes=self.train_set.classes,
            odd_sides=self.recipe.odd_sides,
            mean=data.mean,
            std=data.std,
            size=self.recipe.augmentation.size,
            scale=data.scale,
        )

    def tell(self, account: object) -> None:
        """Prints it, in the first process."""
        if self.processes.first:
            tqdm.write(str(account), file=sys.stderr)

    @torch.no_grad()
    def _update_average(self) -> None:
        # A smaller decay in early steps, so that initial weights have little influence on the average.
        keep = min(self.recipe.average, self.step / (self.step + 10))
        theirs = self.model.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(theirs[name], 1 - keep)
            else:
                value.copy_(theirs[name])

    def save(self, path: Path) -> None:
        """Writes a checkpoint with everything that the next step depends on."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "classes": list(self.train_set.classes),
        }

        def write(name: str) -> None:
            with writing(name) as stream:
                torch.save(state, stream)

        write_atomically(path, write)

    def load(self, path: Path) -> None:
        """Restores a saved state.

        Raises:
            FileNotFoundError: no such file.
            WeightsError: it is damaged, another format, or of a recipe with other classes, network or optimiser.
        """
        state = start.checkpoint(path, self.device)
        start.check_classes(path, state.get("classes"), self.train_set.classes)
        for name, network in (("model", self.model), ("average", self.average)):
            models.registry.load_state(network, state[name], path, start.RESUME)
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except (ValueError, KeyError) as error:
            text = f"resume: {path} must be of the recipe's optimiser; got {error}."
            raise models.WeightsError(f"{text} {start.RESUME}") from error
        self.step = state["step"]
        self.seconds = state["seconds"]
        self._batches = None


class _Record:
    """The logs: log.csv, val.csv, the same for TensorBoard, and confusion.csv."""

    def __init__(self, folder: Path, data: SegmentationSet, step: int) -> None:
        self.log = Log(folder / "log.csv", ("step", "seconds", "lr", "loss"), step)
        quality = ("pq", "sq", "rq") if data.instances else ()
        self.val = Log(folder / "val.csv", ("step", "seconds", "miou", *data.classes, *quality), step)
        self.board = Board(folder / "tensorboard", step)

    def step(self, step: int, seconds: float, lr: float, loss: float) -> None:
        self.log.write(step, f"{seconds:.1f}", f"{lr:.3e}", f"{loss:.4f}")
        self.board.write(step, {"train/loss": loss, "train/lr": lr})

    def scores(self, step: int, seconds: float, scores: Scores) -> None:
        values = scores.summary()
        figures.keep_confusion(self.log.path.parent, step, scores.classes, scores.matrix.counts.tolist())
        self.val.write(step, f"{seconds:.1f}", *(f"{value:.4f}" for value in values.values()))
        self.board.write(step, {f"val/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self.board.close()


class _StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag, so that the current step is completed."""

    requested = False

    def __enter__(self) -> None:
        self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True


def _check(recipe: Config, device: torch.device, processes: Processes) -> None:
    if recipe.autocast not in (None, "bfloat16"):
        bad_value("config", "autocast", "be bfloat16, or null for none", repr(recipe.autocast))
    if recipe.batch % processes.world:
        bad_value("config", "batch", f"be a multiple of the {processes.world} processes", recipe.batch)
    if recipe.sync_norm and processes.world > 1 and device.type != "cuda":
        bad_value("config", "sync_norm", "be false without GPUs: PyTorch shares batch statistics only there", "true")
