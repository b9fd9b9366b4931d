"""Images and masks of one's own: which files belong together, what masks mean, which split an image is in."""

import hashlib
import os
import shutil
import zipfile

import numpy as np
import own
import pytest
import torch
from PIL import Image

from atrousops.common.checks import ArgumentError
from atrousops.data import VOID, Folder, Layout, Pixels
from atrousops.data.decode import PictureError
from atrousops.data.files import find
from atrousops.data.patterns import Pattern


def layout(**changes):
    entries = {"images": "images", "masks": "masks", "classes": ("ground", "disc")}
    return Layout(**{**entries, **changes})


def names(root, split="all", **changes):
    return Folder(root, split, layout=layout(**changes)).names


@pytest.mark.parametrize(
    ("pattern", "name", "key"),
    [
        ("images", "a.PNG", "a"),
        ("images", "street 1/a b.jpg", "street 1/a b"),  # below it, with spaces
        ("images", "a.txt", None),
        ("masks/*_mask.png", "a_Mask.PNG", "a"),  # case counts in the key alone
        ("masks/*_mask.*", "a_mask.tiff", "a"),
        ("masks/*_mask.*", "a.png", None),
        ("masks/*.png", "street/a.png", None),  # one star stays in its folder
        ("masks/**/*.png", "street/a.png", "street/a"),
        ("masks/**/*.png", "a.png", "a"),
        ("*/x_?.png", "b/x_1.png", "b/1"),
        ("a [1]/*.png", "b[2].png", "b[2]"),  # brackets are letters
    ],
)
def test_keys(pattern, name, key):
    assert Pattern(pattern).key(name) == key
    assert Pattern("a [1]/b/*.png").folder == "a [1]/b"


def test_pairs_by_what_the_stars_stand_for(tmp_path):
    """Suffixes, upper-case endings, spaces, brackets and letters with accents, all in one folder."""
    every = ("a b", "c (1)", "d[2]", "é")
    own.write(tmp_path, "{}.JPG", "{}_mask.PNG", every)
    data = Folder(tmp_path, "all", layout=layout(images="*.*", masks="*_mask.*"))
    assert data.names == sorted(every)
    for name in every:
        image, labels = data.read(name)
        assert torch.equal(labels, torch.from_numpy(own.scene(every.index(name))[1]).long())
        assert image.shape == (3, 48, 64)


def test_folders_below_links_and_archives(tmp_path):
    """A link to a folder is followed, one back up is not; an archive holds the same."""
    own.write(tmp_path / "there", "images/street/{}.png", "masks/street/{}.png", ("a", "b"))
    (tmp_path / "here").mkdir()
    for folder in ("images", "masks"):
        (tmp_path / "here" / folder).symlink_to(tmp_path / "there" / folder)
    (tmp_path / "there" / "images" / "again").symlink_to(tmp_path / "there" / "images")
    (tmp_path / "there" / "images" / ".hidden.png").write_bytes(b"")
    assert names(tmp_path / "here") == ["street/a", "street/b"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "there").glob("*/street/*.png")):
            archive.write(path, path.relative_to(tmp_path / "there"))
    packed, unpacked = (Folder(tmp_path / root, "all", layout=layout()) for root in ("all.zip", "here"))
    assert packed.names == unpacked.names
    assert all(torch.equal(a, b) for one, two in zip(packed, unpacked, strict=True) for a, b in zip(one, two))


def ids(discs):
    """0 around, 7 in discs, 9 in a corner and 255 in another."""
    values = np.where(discs, 7, 0).astype(np.uint8)
    values[:3, :3], values[-3:, -3:] = 9, 255
    return values


def wanted(seven, nine, high):
    discs = own.scene(0)[1]
    values = np.where(discs, seven, 0)
    values[:3, :3], values[-3:, -3:] = nine, high
    return torch.from_numpy(values)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": {0: "ground", 7: "disc", 9: "void"}}, wanted(1, VOID, VOID)),
        ({"ids": {0: 0, 7: 1, 9: 1, 255: 0}}, wanted(1, 1, 0)),
        ({"ids": {0: "ground", 7: "disc", 255: "disc"}, "void": 9}, wanted(1, VOID, 1)),
        # Ids that are void alone leave the others as they are.
        ({"ids": {9: "void"}, "classes": tuple("abcdefgh")}, wanted(7, VOID, VOID)),
    ],
)
def test_ids(tmp_path, changes, expected):
    own.write(tmp_path, names=("a",), mask=ids)
    assert torch.equal(Folder(tmp_path, "all", layout=layout(**changes)).read("a")[1], expected)


def test_ids_beyond_a_byte(tmp_path):
    own.write(tmp_path, names=("a",), mask=lambda discs: np.where(discs, 7000, 26).astype(np.uint16))
    data = Folder(tmp_path, "all", layout=layout(ids={26: 0, 7000: 1}))
    assert torch.equal(data.read("a")[1], wanted(1, 0, 0) * 0 + torch.from_numpy(own.scene(0)[1]).long())
    with pytest.raises(ArgumentError, match=r"a\.png must hold ids of 26, 255; got 7000 at row"):
        Folder(tmp_path, "all", layout=layout(ids={26: 0})).read("a")


def test_an_unknown_id_names_file_place_and_remedy(tmp_path):
    own.write(tmp_path, names=("a",), mask=ids)
    said = (
        r"Folder: .*masks/a\.png must hold ids of 0-1, 255; got 9 at row 0, column 0.*Add to data\.ids .* \{9: void\}"
    )
    with pytest.raises(ArgumentError, match=said):
        Folder(tmp_path, "all", layout=layout()).read("a")


COLOURS = np.array([[0, 0, 0], [200, 30, 40]], np.uint8)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P"])
def test_colours(tmp_path, kind):
    """A table reads RGB, opaque RGBA and palettes; classes have its order, and several colours may be one class."""
    own.write(tmp_path, names=("a",), mask=lambda discs: COLOURS[discs.astype(int)])
    path = tmp_path / "masks" / "a.png"
    mask = Image.open(path)
    mask.putpixel((2, 1), (1, 2, 3))
    (mask.convert("P", palette=Image.Palette.ADAPTIVE, colors=8) if kind == "P" else mask.convert(kind)).save(path)
    table = {"ground": (0, 0, 0), "disc": ((9, 9, 9), (200, 30, 40)), "void": (1, 2, 3)}
    data = Folder(tmp_path, "all", layout=layout(classes=None, colours=table))
    assert data.classes == ("ground", "disc")
    expected = torch.from_numpy(own.scene(0)[1]).long()
    expected[1, 2] = VOID
    assert torch.equal(data.read("a")[1], expected)
    del table["void"]
    with pytest.raises(ArgumentError, match=r"a\.png must hold the colours .*got \[1, 2, 3\] at row 1, column 2.*void"):
        Folder(tmp_path, "all", layout=layout(classes=None, colours=table)).read("a")
    if kind == "RGB":
        with pytest.raises(PictureError, match=r"a\.png: .* mode is RGB; .*state in data\.colours which class"):
            Folder(tmp_path, "all", layout=layout()).read("a")


def test_what_has_no_partner(tmp_path):
    """Masks of other images do no harm; an image without a mask is named, or skipped where that is asked for."""
    own.write(tmp_path)
    (tmp_path / "images" / "c.png").unlink()
    assert names(tmp_path) == list("abdefgh")
    (tmp_path / "masks" / "e.png").unlink()
    with pytest.raises(ArgumentError, match=r"images must each have a mask like masks.*; got images/e\.png\. .*skip"):
        names(tmp_path)
    assert names(tmp_path, unpaired="skip") == list("abdfgh")
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "a.jpg")
    with pytest.raises(ArgumentError, match=r"one file for 'a'; got images/a\.jpg and images/a\.png"):
        names(tmp_path, unpaired="skip")


def test_letters_with_accents(tmp_path):
    """A Mac writes them as two characters, others as one: they are the same name, in lists and patterns too."""
    one, two = "\u00e9t\u00e9", "e\u0301te\u0301"
    own.write(tmp_path, "images/{}.png", f"masks/{{}}_{two}.png", names=("a", two))
    (tmp_path / "images" / f"{two}.png").rename(tmp_path / "images" / f"{one}.png")
    (tmp_path / "train.txt").write_text(f"{two}.png\n")
    where = {"masks": f"masks/*_{one}.png"}
    assert names(tmp_path, **where) == ["a", one]
    assert names(tmp_path, "train", lists="{split}.txt", **where) == [one]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda mask: mask.write_bytes(mask.read_bytes()[:60]), "cannot be read: image file is truncated"),
        (lambda mask: mask.write_bytes(b""), "not an image that Pillow can read"),
        (lambda mask: Image.new("L", (64, 47)).save(mask), "must have the size of its image .*got 47 x 64"),
        (lambda mask: Image.new("L", (64, 48)).save(mask, format="JPEG"), "it is JPEG"),
        (lambda mask: Image.new("RGB", (64, 48)).save(mask), "its mode is RGB; convert it to ids first"),
        (lambda mask: (mask.unlink(), os.mkfifo(mask)), r"holds no masks/c\.png"),  # not waited for
    ],
)
def test_a_look_finds_what_is_damaged(tmp_path, spoil, said):
    """Without decoding the others; a zip archive holds the same, but for the pipe."""
    own.write(tmp_path / "cells", names=("a", "b", "c"))
    spoil(tmp_path / "cells" / "masks" / "c.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "cells").glob("*/*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "cells"))
    for root in ("cells", "all.zip") if "holds no" not in said else ("cells",):
        data = Folder(tmp_path / root, "all", layout=layout())
        with pytest.raises(ArgumentError, match=rf"images and masks must be files .*c\.png.*{said}|{said}"):
            data.look(data.names)
        data.look(["a", "b"])


@pytest.mark.parametrize("kind", ["turned", "bands", "array", "channels first", "behind the end", "png turned"])
def test_a_look_decodes_nothing_that_is_whole(tmp_path, kind, monkeypatch):
    own.write(tmp_path, names=("a",))
    image = Image.open(tmp_path / "images" / "a.png")
    picture = np.asarray(image)
    (tmp_path / "images" / "a.png").unlink()
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[274] = 6
    channels = 5 if kind == "bands" else 3
    path = tmp_path / "images" / f"a{ {'bands': '.tif', 'array': '.npy', 'channels first': '.npy'}.get(kind, '.jpg') }"
    match kind:
        case "turned":
            turned.save(path, exif=exif)
        case "behind the end":
            image.save(path)
            path.write_bytes(path.read_bytes() + bytes(500))
        case "bands":
            own.save_floats(path, own.scene(0, channels=5)[0])
        case "array" | "channels first":
            np.save(path, picture if kind == "array" else picture.transpose(2, 0, 1))
        case "png turned":
            turned.save(path.with_suffix(".png"), exif=exif)
    data = Folder(tmp_path, "all", layout=layout())
    data.pixels = Pixels(channels, 3000.0 if kind in ("bands", "array", "channels first") else None)
    read, decoded = Folder.read, []
    monkeypatch.setattr(Folder, "read", lambda self, name: decoded.append(name) or read(self, name))
    data.look(data.names)
    # The turn of a PNG may be behind its pixels.
    assert decoded == (["a"] if kind == "png turned" else [])


def test_splits_by_folders(tmp_path):
    for split, some in (("train", ("a", "b")), ("held back", ("c",))):
        own.write(tmp_path, f"{split}/images/{{}}.png", f"{split}/masks/{{}}.png", some)
    where = {"images": "{split}/images", "masks": "{split}/masks"}
    assert names(tmp_path, "train", **where) == ["a", "b"]
    assert names(tmp_path, "held back", **where) == ["c"]
    with pytest.raises(ArgumentError, match=r"masks must be files like test/masks/.* got none: .* holds"):
        names(tmp_path, "test", **where)


def test_splits_by_lists(tmp_path):
    """By name, file name or path, with a byte order mark and Windows' line ends; spaces belong to names."""
    own.write(tmp_path, names=("a", "b 1", "c", "d"))
    text = "\ufeffa\r\nb 1.png\r\nimages/c.png\r\n\r\na\r\n"
    (tmp_path / "train.txt").write_bytes(text.encode())
    (tmp_path / "val.txt").write_text("d\ne\n")
    assert names(tmp_path, "train", lists="{split}.txt") == ["a", "b 1", "c"]
    with pytest.raises(ArgumentError, match=r"line 2 of .*val\.txt must name an image like .*; got 'e'"):
        names(tmp_path, "val", lists="{split}.txt")
    with pytest.raises(FileNotFoundError, match=r"holds no test\.txt"):
        names(tmp_path, "test", lists="{split}.txt")


def test_splits_by_fractions(tmp_path):
    """By SHA-256 of seed and name, so that another image moves none."""
    own.write(tmp_path, names=tuple(f"{n:02}" for n in range(30)))
    parts = {"fractions": {"val": 0.3, "test": 0.2}, "seed": 5}
    splits = {split: names(tmp_path, split, **parts) for split in ("train", "val", "test")}
    for split, found in splits.items():
        for name in found:
            place = int(hashlib.sha256(f"5:{name}".encode()).hexdigest()[:16], 16) / 2**64
            assert split == ("val" if place < 0.3 else "test" if place < 0.5 else "train")
    assert sorted(name for found in splits.values() for name in found) == names(tmp_path, **parts)
    own.write(tmp_path, names=("00a", "zz"))
    for split, found in splits.items():
        assert {*found} <= {*names(tmp_path, split, **parts)}
    own.write(tmp_path / "few", names=("a",))
    with pytest.raises(ArgumentError, match=r"the split 'test' must hold images; got none of 1 by seed 0\. .*seed"):
        names(tmp_path / "few", "test", fractions={"test": 0.001})


def test_classes_of_a_file(tmp_path):
    own.write(tmp_path)
    (tmp_path / "classes.txt").write_text("the ground\n\na disc\n")
    assert Folder(tmp_path, "all", layout=layout(classes="classes.txt")).classes == ("the ground", "a disc")
    with pytest.raises(FileNotFoundError, match=r"holds no names\.txt"):
        Folder(tmp_path, "all", layout=layout(classes="names.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"config: data\.images must be a folder or a pattern .*`atrousops recipe"),
        ({"classes": None}, r"config: data\.classes must be the names"),
        ({"classes": ("a", "a")}, r"data: classes must be names, each once"),
        ({"ids": {0: "ground", 1: "disk"}}, r"data: ids\.1 must be void, or one of the 2 classes ground, disc.*'disk'"),
        ({"ids": {0: 2}}, r"data: ids\.0 must be void, or one of the 2 classes"),
        ({"ids": {0: 0}, "colours": {"disc": (1, 2, 3)}}, r"data\.ids and data\.colours must not both"),
        ({"colours": {"disk": (1, 2, 3)}}, r"data: colours must be void, or one of"),
        ({"colours": {"disc": (1, 2, 3), "ground": (1, 2, 3)}}, r"colours must be of one class each; got \[1, 2, 3\]"),
        ({"fractions": {"val": 1.0}}, r"data\.fractions must be parts above 0, below 1"),
        ({"fractions": {"val": 0.1}, "lists": "{split}.txt"}, r"data\.fractions must not be given with lists"),
        ({"unpaired": "drop"}, r"data\.unpaired must be refuse or skip; got 'drop'"),
        ({"images": "pictures"}, r"images must be files like pictures/.*; got none: .* holds images/a\.png"),
        ({"masks": "images"}, r"images must be other files than the masks; got images/\*\*/\*\.\* for both"),
    ],
)
def test_layouts_that_will_not_do(tmp_path, changes, message):
    own.write(tmp_path, names=("a", "b"))
    with pytest.raises(ArgumentError, match=message):
        names(tmp_path, **changes)


def test_roots_and_splits_that_will_not_do(tmp_path):
    own.write(tmp_path, names=("a", "b"))
    with pytest.raises(ArgumentError, match=r"split must be all, .*; got 'train'\. .*fractions"):
        names(tmp_path, "train")
    with pytest.raises(ArgumentError, match=r"root must be a folder or a zip archive; got .*which does not exist"):
        names(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"root must be the folder that holds the images; got none"):
        names(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"masks must be files like masks/.*; got none: .*empty holds nothing"):
        names(tmp_path / "empty")
    own.write(tmp_path / "other", masks="masks/{}_id.png")
    with pytest.raises(ArgumentError, match=r"masks must have the names of the images, such as a, b.*; got a_id"):
        names(tmp_path / "other")


def test_data_is_looked_for_where_it_was_said_and_nowhere_else(tmp_path, monkeypatch):
    """In the folder that is given, or else in $ATROUSOPS_DATA; not beside the working directory."""
    for folder in ("shared/data", "mine"):
        (tmp_path / folder / "set").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("ATROUSOPS_DATA", raising=False)
    with pytest.raises(ArgumentError, match=r"holds set; got neither\. Or set \$ATROUSOPS_DATA"):
        find("set")
    monkeypatch.setenv("ATROUSOPS_DATA", str(tmp_path / "mine"))
    assert find("set") == tmp_path / "mine" / "set"
    with pytest.raises(ArgumentError, match=r"--data or data\.root must be a folder that holds set; got .*work"):
        find("set", tmp_path / "work")
