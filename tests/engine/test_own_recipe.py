"""`atrousops recipe`: what it finds, guesses and measures; and that training, evaluation and `segment` see the same."""

import re
import shutil

import numpy as np
import own
import pytest
import torch
from PIL import Image

from atrousops import cli
from atrousops.common.checks import ArgumentError
from atrousops.data import bands, transforms
from atrousops.engine import config, evaluate, outputs, predict, recipe, train
from atrousops.metrics import ConfusionMatrix


@pytest.mark.parametrize(
    ("files", "images", "masks"),
    [
        (("images/{}.png", "masks/{}.png"), "images", "masks"),
        (("Images/{}.JPG", "Labels/{}.PNG"), "Images", "Labels"),
        (("JPEGImages/{}.jpg", "SegmentationClass/{}.png"), "JPEGImages", "SegmentationClass"),
        (("set 1/images/{}.png", "set 1/annotations/{}.png"), "set 1/images", "set 1/annotations"),
        (("{}.jpg", "{}_mask.png"), "*.*", "*_mask.*"),
        (("all/{}.jpg", "all/{}.png"), "all/**/*.jpg", "all/**/*.png"),
        (("images/{}.png", "masks/{}_label.png"), "images", "masks/**/*_label.*"),
        (("images/{}_rgb.png", "gt/{}_gt.png"), "images/**/*_rgb.*", "gt/**/*_gt.*"),
        (("train/{}.jpg", "train_masks/{}_mask.gif"), "train", "train_masks/**/*_mask.*"),
        (("train/images/{}.png", "train/masks/{}.png"), "train/images", "train/masks"),
    ],
)
def test_usual_layouts(tmp_path, files, images, masks):
    own.write(tmp_path, *files)
    entries, _, told = own.recipe(tmp_path)
    assert (entries["data"]["images"], entries["data"]["masks"]) == (images, masks)
    assert entries["data"]["fractions"] == {"val": 0.2}
    assert f"images are {images}, masks are {masks} (guessed)" in told
    assert "no splits found" in told


@pytest.mark.parametrize(
    ("files", "splits", "images", "masks"),
    [
        (("{}/images/{{}}.png", "{}/masks/{{}}.png"), ("train", "val"), "{split}/images", "{split}/masks"),
        (("images/{}/{{}}.png", "labels/{}/{{}}.png"), ("training", "validation"), "images/{split}", "labels/{split}"),
        (("{}2017/{{}}.jpg", "masks/{}2017/{{}}.png"), ("train", "val"), "{split}2017", "masks/{split}2017"),
        (("{}/{{}}.png", "{}annot/{{}}.png"), ("train", "val", "test"), "{split}", "{split}annot"),
        (("{}/{{}}.jpg", "{}/{{}}_mask.png"), ("Train", "Test"), "{split}/**/*.*", "{split}/**/*_mask.*"),
    ],
)
def test_layouts_with_splits(tmp_path, files, splits, images, masks):
    for split in splits:
        own.write(tmp_path, *(text.format(split) for text in files), names=("a", "b"))
    data = own.recipe(tmp_path)[0]["data"]
    assert (data["images"].removesuffix("/**/*.*"), data["masks"]) == (images.removesuffix("/**/*.*"), masks)
    assert (data["train"], data["val"], data.get("test")) == (*splits, None)[:3]
    assert "fractions" not in data


def test_lists_and_names_of_classes(tmp_path):
    own.write(tmp_path)
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    (tmp_path / "val.txt").write_text("d.png\n")
    (tmp_path / "classes.txt").write_text("ground\ndisc\nhole\n")
    entries, _, told = own.recipe(tmp_path)
    assert entries["data"]["lists"] == "{split}.txt"
    assert entries["data"]["classes"] == "classes.txt"
    assert entries["model"]["arguments"]["num_classes"] == 3
    assert "names by the file of class names" in told
    # A line that says void, in front: ids move, and what no mask shows keeps its place.
    (tmp_path / "classes.txt").write_text("Void\ndisc\nhole\n")
    data = own.recipe(tmp_path)[0]["data"]
    assert (data["classes"], data["ids"]) == (["disc", "hole"], {0: "void", 1: "disc", 2: "hole"})


def test_lists_and_names_in_an_archive_of_a_folder(tmp_path):
    """They stand beside the images, below the one folder that the archive holds."""
    own.write(tmp_path / "cells")
    (tmp_path / "cells" / "train.txt").write_text("a\nb\nc\n")
    (tmp_path / "cells" / "val.txt").write_text("d\n")
    (tmp_path / "cells" / "classes.txt").write_text("ground\ndisc\n")
    archive = shutil.make_archive(str(tmp_path / "cells"), "zip", tmp_path, "cells")
    data = own.recipe(archive)[0]["data"]
    assert (data["lists"], data["classes"]) == ("cells/{split}.txt", "cells/classes.txt")


@pytest.mark.parametrize(
    ("mask", "entries"),
    [
        (
            lambda d: np.uint8(255) * d,
            {"classes": ["background", "foreground"], "ids": {0: "background", 255: "foreground"}},
        ),
        (lambda d: d.astype(np.uint8), {"classes": ["background", "foreground"]}),
        (lambda d: d, {"classes": ["background", "foreground"]}),  # one bit a pixel
        (
            lambda d: np.where(np.arange(64) < 5, 255, np.where(d, 2, 1)).astype(np.uint8),
            {"classes": ["class_1", "class_2"], "ids": {1: "class_1", 2: "class_2", 255: "void"}},
        ),
        (lambda d: np.where(np.arange(64) < 5, 255, d).astype(np.uint8), {"classes": ["background", "class_1"]}),
        (  # Three classes, drawn in shades of grey.
            lambda d: np.where(np.arange(64) < 5, 255, 128 * d).astype(np.uint8),
            {
                "classes": ["background", "class_128", "class_255"],
                "ids": {0: "background", 128: "class_128", 255: "class_255"},
            },
        ),
        (
            lambda d: np.array([[0, 0, 0], [9, 8, 7]], np.uint8)[d.astype(int)],
            {"colours": {"background": [0, 0, 0], "foreground": [9, 8, 7]}},
        ),
        (
            lambda d: np.array([[255, 255, 255], [9, 8, 7]], np.uint8)[d.astype(int)],
            {"colours": {"colour_090807": [9, 8, 7], "colour_ffffff": [255, 255, 255]}},
        ),
    ],
)
def test_what_masks_mean(tmp_path, mask, entries):
    own.write(tmp_path, mask=mask)
    found, text, _ = own.recipe(tmp_path)
    assert {key: found["data"][key] for key in ("classes", "ids", "colours") if key in found["data"]} == entries
    discs = sum(int(own.scene(number)[1].sum()) for number in range(8))
    assert re.search(
        rf"# .*: \w+, {discs} pixels .*, in 8 images" if mask(np.zeros((1, 64), bool)).ndim == 3 else "#", text
    )


@pytest.mark.parametrize(
    ("name", "save", "channels", "most", "scale"),
    [
        ("images/{}.png", own.save_bytes, 3, 255, None),
        ("images/{}.png", own.save_bytes, 1, 255, None),
        ("images/{}.tif", own.save_12_bits, 1, 4095, 4095),
        ("images/{}.tif", own.save_floats, 5, 3000, 3000),
    ],
)
def test_what_is_measured_is_what_all_see(tmp_path, name, save, channels, most, scale):
    """Mean and deviation of each channel over all pixels; images of training, evaluation and `segment` are equal."""
    own.write(tmp_path, name, save=save, channels=channels)
    entries, text, _ = own.recipe(tmp_path)
    stored = np.stack([own.scene(number, channels=channels)[0] for number in range(8)]).reshape(-1, channels)
    stored = stored if save is own.save_floats else np.rint(most * stored) / most
    np.testing.assert_allclose(entries["data"]["mean"], stored.mean(0), rtol=1e-4)
    np.testing.assert_allclose(entries["data"]["std"], stored.std(0), rtol=1e-4)
    assert entries["data"].get("scale") == scale
    assert entries["model"]["arguments"].get("in_channels", 3) == channels

    path = tmp_path / "my.yaml"
    path.write_text(text)
    shared = ["schedule.steps=2", "batch=2", "augmentation.crop=32", "model.arguments.depth=4", "pictures_every=2"]
    weights = train.main(path, output=tmp_path / "run", overrides=shared, progress=False)
    assert list((tmp_path / "run" / "pictures").iterdir())
    loaded = config.load(path)
    norm = (loaded.data.mean, loaded.data.std)
    seen = outputs.open_set(loaded, str(tmp_path), "val", transforms.evaluation(*norm))
    judged = evaluate.opened(path, weights, split=None, data_root=None, overrides=(), published=None).data
    predictor = predict.load_predictor(weights)
    assert predictor.pixels == bands.Pixels(channels, scale)
    for number, key in enumerate(seen.names):
        picture = bands.read_picture(tmp_path / seen._paths(key)[0], predictor.pixels)
        assert torch.equal(seen[number][0], judged[number][0])
        # The same numbers, divided in another order.
        torch.testing.assert_close(predictor.normalise(picture)[0], seen[number][0], rtol=1e-6, atol=1e-6)


def test_segment_gives_what_evaluate_scores(tmp_path, capsys):
    """As typed: recipe, train, evaluate, segment; the masks that are written have the IoU that is printed."""
    # `segment` repeats borders up to multiples of 32 pixels, evaluation does not.
    own.write(tmp_path, "images/{}.tif", save=own.save_12_bits, height=64)
    assert cli.main(["recipe", "--data", str(tmp_path), "--model", "msd"]) == 0
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    common = ["--set=model.arguments.depth=6", "--set=data.seed=2"]
    steps = ["--set=schedule.steps=30", "--set=batch=2", "--set=augmentation.crop=32", "--set=optimiser.lr=0.02"]
    run = tmp_path / "run"
    assert cli.main(["train", str(tmp_path / "my.yaml"), "--output", str(run), *common, *steps]) == 0
    weights = str(run / "weights.safetensors")
    scores = evaluate.main(tmp_path / "my.yaml", weights, overrides=("data.seed=2",), progress=False)
    loaded = config.load(tmp_path / "my.yaml", ["data.seed=2"])
    held = outputs.open_set(loaded, str(tmp_path), "val")
    files = [str(tmp_path / held._paths(name)[0]) for name in held.names]
    assert cli.main(["segment", *files, "--weights", weights, "-o", str(tmp_path / "out")]) == 0
    matrix = ConfusionMatrix(2)
    for name in held.names:
        mask = np.array(Image.open(tmp_path / "out" / f"{name}_mask.png"))
        matrix.update(torch.from_numpy(mask).long(), held.read(name)[1])
    # But for a pixel whose scores are equal in all but their last bits.
    assert int((matrix.counts - scores.matrix.counts).abs().sum()) <= 2
    assert int(matrix.counts[:, 1].sum()) > 50  # discs are found, so that there is something to compare


def test_what_cannot_be_used_is_told_at_once(tmp_path):
    own.write(tmp_path)
    Image.fromarray(np.zeros((4, 64), np.uint8)).save(tmp_path / "masks" / "a.png")
    (tmp_path / "images" / "b.png").write_bytes(b"nothing")
    with pytest.raises(
        ArgumentError, match=r"a\.png: 4 x 64, its image 48 x 64; .*b\.png: not an image .*Repair or remove"
    ):
        own.recipe(tmp_path)


def test_pictures_of_several_kinds(tmp_path):
    """Greys among colours are read as RGB; other depths among them are not."""
    own.write(tmp_path)
    Image.open(tmp_path / "images" / "b.png").convert("RGBA").save(tmp_path / "images" / "b.png")
    Image.open(tmp_path / "images" / "a.png").convert("L").save(tmp_path / "images" / "a.png")
    entries, _, _ = own.recipe(tmp_path)
    assert len(entries["data"]["mean"]) == 3
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(tmp_path / "images" / "a.png")
    with pytest.raises(
        ArgumentError,
        match=r"be of one kind; got 1 of uint16 of 1 channel, such as .*a\.png; 7 of 8 bits, such as ",
    ):
        own.recipe(tmp_path)


def test_what_has_no_partner_is_named_and_skipped(tmp_path):
    own.write(tmp_path)
    (tmp_path / "masks" / "c.png").unlink()
    shutil.copy(tmp_path / "masks" / "d.png", tmp_path / "masks" / "z.png")
    entries, text, told = own.recipe(tmp_path)
    for where in (text, told):
        assert "images without a mask, skipped: 1: images/c.png" in where
        assert "masks without an image: 1: masks/z.png" in where
    assert entries["data"]["unpaired"] == "skip"


def test_nothing_to_train_on(tmp_path):
    """What was looked for, and what is there."""
    with pytest.raises(ArgumentError, match=r"--data must hold images; got .*, which holds nothing"):
        own.recipe(tmp_path)
    own.write(tmp_path, "foto/{}.png", "wahr/{}_id.png")
    said = r"--data must hold images and masks of the same names: in folders called images, .* and masks, .*_mask, .*"
    with pytest.raises(ArgumentError, match=rf"{said}; got .*, which holds foto/a\.png, .*--images 'photos/\*\.jpg'"):
        own.recipe(tmp_path)
    entries, _, told = own.recipe(tmp_path, images="foto", masks="wahr/*_id.png")
    assert entries["data"]["masks"] == "wahr/*_id.png"
    assert "guessed)" not in told.splitlines()[0]
    with pytest.raises(ArgumentError, match="must be given together"):
        own.recipe(tmp_path, images="foto")
    with pytest.raises(ArgumentError, match=r"--model must be one of .*; got 'resnet9'"):
        recipe.main(str(tmp_path), "resnet9")
    with pytest.raises(ArgumentError, match=r"be a folder or a zip archive; got .*none, which does not exist"):
        own.recipe(tmp_path / "none")
    with pytest.raises(ArgumentError, match=r"--model must be trained on classes of pixels; got mask_rcnn"):
        recipe.main(str(tmp_path), "mask_rcnn", images="foto", masks="wahr/*_id.png", progress=False)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "focal", "dice", "lovasz"])
def test_losses_by_recipe(tmp_path, name):
    """Each trains two classes; dice and binary cross entropy of the first batch by hand, in fp64."""
    own.write(tmp_path)
    _, text, _ = own.recipe(tmp_path)
    (tmp_path / "my.yaml").write_text(text)
    small = [f"loss.name={name}", "batch=2", "augmentation.crop=32", "model.arguments.depth=4", "schedule.steps=9"]
    trainer = train.Trainer(config.load(tmp_path / "my.yaml", small), str(tmp_path))
    images, labels = trainer.batch()
    with torch.no_grad():
        scores = trainer.model(images)["out"].double()
    trainer._batches = None
    loss = trainer.train_step()
    counted = labels != 255
    ones = torch.stack([labels == 0, labels == 1], 1).double()
    if name == "dice":
        p = scores.softmax(1) * counted[:, None]
        overlap = 2 * (p * ones).sum((2, 3)) / (p + ones).sum((2, 3))
        shown = ones.amax((2, 3))
        assert loss == pytest.approx(float((((1 - overlap) * shown).sum(1) / shown.sum(1)).mean()), rel=1e-5)
    if name == "binary_cross_entropy":
        q = scores.sigmoid()
        losses = -(ones * q.log() + (1 - ones) * (1 - q).log()).mean(1)
        assert loss == pytest.approx(float(losses[counted].mean()), rel=1e-5)
    assert 0 < loss < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.images=3", r"config\.data\.images must be a valid string; got 3"),
        ("data.fractions={val: much}", r"config\.data\.fractions\.val must be a valid number; got 'much'"),
        (
            "data.colours={a: [1, 2]}",
            r"config: data\.colours\.a must be \[red, green, blue\] in 0\.\.255, .*got \(1, 2\)",
        ),
        ("data.scale=-1", r"data: scale must be positive"),
        ("data.std=[0.0, 1.0, 1.0]", r"config: data\.std must be positive"),
        ("data.classe=[a]", r"config\.data must have only the keys .*Did you mean classes\?"),
        ("data.name=camvid", r"config: data\.images must be of data\.name: folder alone; got it for camvid"),
        ("data.mean=[0.5]", r"config: data\.mean and data\.std must have a number for each channel"),
        ("model.arguments.in_channels=1", r"model msd must have in_channels = 3, as data\.mean .*; got 1\. Set model"),
    ],
)
def test_wrong_entries(tmp_path, change, message):
    own.write(tmp_path, names=("a", "b"))
    _, text, _ = own.recipe(tmp_path)
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        train.Trainer(config.load(tmp_path / "my.yaml", [change]), str(tmp_path))
