"""Readers of the public sets, on tiny folders in the layout in which each set is handed out."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from atrousops.common.checks import ArgumentError
from atrousops.data import SETS, VOC, VOID, CamVid, Cityscapes, COCOPanoptic, COCOStuff, Nuclei, transforms

HEIGHT, WIDTH = 6, 8


def write(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def picture():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def grey(**pixels):
    """Zeros, with rows named r0, r1 ... at their values."""
    found = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for row, value in pixels.items():
        found[int(row[1:])] = value
    return found


def rows(labels):
    """The one value of each row."""
    assert bool((labels == labels[:, :1]).all())
    return labels[:, 0].tolist()


def test_voc(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    write(folder / "JPEGImages" / "2007_000032.jpg", picture())
    write(folder / "SegmentationClass" / "2007_000032.png", grey(r1=1, r2=20, r3=255), "P")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000032\n")
    data = VOC(tmp_path, "val")
    image, labels = data[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert rows(labels) == [0, 1, 20, VOID, 0, 0]
    assert len(data.classes) == 21
    assert data.classes[20] == "tvmonitor"
    with pytest.raises(FileNotFoundError, match=r"ImageSets/Segmentation/train\.txt"):
        VOC(tmp_path, "train")


def test_cityscapes(tmp_path):
    folder = tmp_path / "cityscapes"
    for city in ("ulm", "bonn"):
        write(folder / "leftImg8bit" / "val" / city / f"{city}_000000_000019_leftImg8bit.png", picture())
        labels = folder / "gtFine" / "val" / city / f"{city}_000000_000019_gtFine_labelIds.png"
        # 7 road, 33 bicycle; 0 unlabelled, 9 parking and 29 caravan are not judged.
        write(labels, grey(r1=7, r2=33, r3=9, r4=29))
        # Its neighbour, which is not for training.
        write(labels.with_name(f"{city}_000000_000019_gtFine_color.png"), picture())
    data = Cityscapes(tmp_path, "val")
    assert [name.split("/")[0] for name in data.names] == ["bonn", "ulm"]
    assert rows(data[0][1]) == [VOID, 0, 18, VOID, VOID, VOID]
    assert len(data.classes) == 19
    with pytest.raises(ArgumentError, match=r"leftImg8bit/train/CITY"):
        Cityscapes(tmp_path, "train")
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="gtFine_labelIds"):
        data[0]


def test_coco_stuff(tmp_path):
    write(tmp_path / "coco" / "val2017" / "000000000139.jpg", picture())
    # Greys are ids less one: 0 person, 91 banner, 181 wood; 11 was taken out of COCO.
    stuff = grey(r1=91, r2=181, r3=255, r4=11)
    write(tmp_path / "coco" / "stuffthingmaps" / "val2017" / "000000000139.png", stuff)
    data = COCOStuff(tmp_path, "val")
    assert len(data.classes) == 171
    _, labels = data[0]
    assert rows(labels) == [0, 80, 170, VOID, VOID, 0]
    assert [data.classes[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]


def test_coco_things_are_those_of_torchvision():
    from torchvision.models._meta import _COCO_CATEGORIES

    assert list(COCOStuff.classes[:80]) == [name for name in _COCO_CATEGORIES[1:] if name != "N/A"]


def test_coco_panoptic_files_that_disagree(panoptic):
    path = panoptic / "coco" / "annotations" / "panoptic_val2017.json"
    whole = path.read_text()
    for old, new, said in (
        (
            '"id": 5,',
            '"id": 6,',
            r"panoptic_val2017/000000000139\.png must hold ids of the segments.*got 5, and 8 such",
        ),
        ('"image_id": 139', '"image_id": 140', r"panoptic_val2017\.json must list the image .*id 140"),
        ('"categories"', '"kinds"', r"panoptic_val2017\.json must have the entry 'categories'"),
        ('"categories"', "", r"panoptic_val2017\.json must be JSON"),
    ):
        path.write_text(whole.replace(old, new))
        with pytest.raises(ArgumentError, match=said):
            COCOPanoptic(panoptic, "val")[0]


@pytest.fixture
def panoptic(tmp_path):
    folder = tmp_path / "coco"
    write(folder / "val2017" / "000000000139.jpg", picture())
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    ids[1], ids[2], ids[3], ids[4] = 5, 256 * 7 + 5, 65536 * 3, 9
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    write(folder / "annotations" / "panoptic_val2017" / "000000000139.png", colours)
    segments = [
        {"id": 5, "category_id": 1, "iscrowd": 0},
        {"id": 256 * 7 + 5, "category_id": 1, "iscrowd": 0},
        {"id": 65536 * 3, "category_id": 92, "iscrowd": 0},
        {"id": 9, "category_id": 44, "iscrowd": 1},
    ]
    listing = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}],
        "annotations": [{"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}],
        "categories": [
            {"id": 92, "name": "banner", "isthing": 0},
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 44, "name": "bottle", "isthing": 1},
        ],
    }
    (folder / "annotations" / "panoptic_val2017.json").write_text(json.dumps(listing))
    return tmp_path


def test_coco_panoptic(panoptic):
    data = COCOPanoptic(panoptic, "val")
    assert data.classes == ("person", "bottle", "banner")
    assert data.things == 2
    labels, numbers = data[0][1]
    # Row 0 is unlabelled and row 4 a crowd. Two people; stuff has no number.
    assert rows(labels) == [VOID, 0, 0, 2, VOID, VOID]
    assert rows(numbers) == [0, 1, 2, 0, 0, 0]


def test_coco_panoptic_unknown_category(panoptic):
    path = panoptic / "coco" / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"category_id": 44', '"category_id": 45'))
    with pytest.raises(ArgumentError, match="categories"):
        COCOPanoptic(panoptic, "val")[0]


def test_nuclei_in_both_layouts(tmp_path):
    numbers = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    numbers[1], numbers[3] = 1, 2
    for name in "abcdef":
        write(tmp_path / "flat" / "nuclei_dsb2018.zip" / "image" / f"{name}.png", picture())
        write(tmp_path / "flat" / "nuclei_dsb2018.zip" / "label" / f"{name}.png", numbers)
        folder = tmp_path / "stage1" / "nuclei_dsb2018.zip" / name
        write(folder / "images" / f"{name}.png", picture())
        for number in (1, 2):
            write(folder / "masks" / f"{number}.png", (numbers == number).astype(np.uint8) * 255)
    for layout in ("flat", "stage1"):
        data = {split: Nuclei(tmp_path / layout, split) for split in ("train", "val", "all")}
        assert {split: "".join(found.names) for split, found in data.items()} == {
            "train": "bcde", "val": "af", "all": "abcdef",
        }  # fmt: skip
        labels = data["val"][0][1]
        assert rows(labels[0]) == [0, 1, 0, 1, 0, 0]
        assert rows(labels[1]) == [0, 1, 0, 2, 0, 0]
    archive = tmp_path / "packed" / "nuclei_dsb2018.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((tmp_path / "stage1").rglob("*.png")):
            file.write(path, path.relative_to(tmp_path / "stage1" / "nuclei_dsb2018.zip"))
    assert torch.equal(Nuclei(archive.parent, "val")[0][1], labels)


def test_many_nuclei_are_not_void(tmp_path):
    """Number 255 is a nucleus like any other, also where a crop's outside is void."""
    numbers = np.full((HEIGHT, WIDTH), 255, dtype=np.uint16)
    numbers[0] = 300
    write(tmp_path / "nuclei_dsb2018.zip" / "image" / "a.png", picture())
    write(tmp_path / "nuclei_dsb2018.zip" / "label" / "a.png", numbers)
    crop = transforms.Augmentation(crop=(12, 16), size=WIDTH, scale=(1.0, 1.0), colour=0.0, flip=False)
    _, (labels, numbers) = Nuclei(tmp_path, "all", transforms.training(crop))[0]
    assert labels.shape == (12, 16)
    assert int((labels == 1).sum()) == HEIGHT * WIDTH
    assert int((labels == VOID).sum()) == 12 * 16 - HEIGHT * WIDTH
    assert numbers[labels == 1].unique().tolist() == [255, 300]


@pytest.mark.parametrize("name", [name for name in SETS if name != "coco_panoptic"])
def test_empty_folder(tmp_path, name):
    """Says which files were looked for."""
    data = SETS[name]
    (tmp_path / data.file).mkdir(parents=True)
    with pytest.raises((ArgumentError, FileNotFoundError), match=r"\*\.|\*_|\.txt"):
        data(tmp_path, "val")


def test_no_folder(tmp_path):
    with pytest.raises(ArgumentError, match="holds cityscapes"):
        Cityscapes(tmp_path, "val")


def test_sizes_differ(tmp_path):
    write(tmp_path / "nuclei_dsb2018.zip" / "image" / "a.png", picture())
    write(tmp_path / "nuclei_dsb2018.zip" / "label" / "a.png", grey()[:4])
    both = r"nuclei_dsb2018.zip/label/a.png must have the size of its image .*nuclei_dsb2018.zip/image/a.png, 6 x 8 "
    with pytest.raises(ArgumentError, match=both + r".*got 4 x 8"):
        Nuclei(tmp_path, "all")[0]


def camvid(folder, mask, mode=None):
    """CamVid with one image, whose labels are `mask`."""
    write(folder / "camvid11.zip" / "val" / "a.jpg", picture())
    write(folder / "camvid11.zip" / "valannot" / "a.png", mask, mode)
    return CamVid(folder, "val")


def test_camvid_trainval(tmp_path):
    """The images of train, then those of val, each with its own labels, although both hold an a.jpg."""
    folder = tmp_path / "camvid11.zip"
    for split, name, label in (("train", "b", 1), ("val", "a", 2), ("val", "b", 3), ("test", "c", 4)):
        write(folder / split / f"{name}.jpg", picture())
        write(folder / f"{split}annot" / f"{name}.png", grey(r0=label))
    data = CamVid(tmp_path, "trainval")
    assert data.names == ["train/b", "val/a", "val/b"]
    assert [rows(labels)[0] for _, labels in data] == [1, 2, 3]
    assert CamVid(tmp_path, "test").names == ["c"]


def test_palettes_are_not_looked_at(tmp_path):
    """CamVid's labels as a palette file: its indices, where a conversion to grey gives luminances."""
    data = camvid(tmp_path, grey(r1=1, r2=10, r3=11, r4=255), "P")
    assert rows(data[0][1]) == [0, 1, 10, VOID, VOID, 0]


def test_colours_are_no_labels(tmp_path):
    data = camvid(tmp_path, picture())
    with pytest.raises(ArgumentError, match=r"camvid11\.zip/valannot/a\.png: .* mode is RGB; convert it to ids first"):
        data[0]


def test_unknown_ids_are_told(tmp_path):
    """With file, id, place and count; beyond 8 bits as well."""
    for array in (grey(r2=12, r5=12), grey(r2=12, r5=12).astype(np.uint16) * 100):
        data = camvid(tmp_path, array)
        said = (
            rf"CamVid: .*/valannot/a\.png must hold ids of 0-11, 255; got {array[2, 0]} at row 2, column 0, and 16 such"
        )
        with pytest.raises(ArgumentError, match=said):
            data[0]
    write(tmp_path / "cityscapes" / "leftImg8bit" / "val" / "ulm" / "a_leftImg8bit.png", picture())
    write(tmp_path / "cityscapes" / "gtFine" / "val" / "ulm" / "a_gtFine_labelIds.png", grey(r1=34))
    with pytest.raises(ArgumentError, match=r"hold ids of 0-33, 255; got 34 at row 1"):
        Cityscapes(tmp_path, "val")[0]


def test_training_reads_pictures_as_segment_does(tmp_path):
    """Upright, 16 bits scaled, transparency on white; once the readers turned neither and clipped 16 bits."""
    folder = tmp_path / "nuclei_dsb2018.zip"
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = np.rot90(picture(), -1)
    write(folder / "label" / "a.png", grey()[:, :HEIGHT].repeat(2, 0)[:WIDTH])
    (folder / "image").mkdir()
    Image.fromarray(picture()).save(folder / "image" / "a.png", exif=turned)
    image, _ = Nuclei(tmp_path, "all")[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0), upright)
    write(folder / "image" / "a.png", np.full((WIDTH, HEIGHT), 257 * 200, dtype=np.uint16))
    assert (Nuclei(tmp_path, "all")[0][0] == 200).all()
    write(folder / "image" / "a.png", np.zeros((WIDTH, HEIGHT, 4), dtype=np.uint8))
    assert (Nuclei(tmp_path, "all")[0][0] == 255).all()


def test_nuclei_in_masks_of_ones(tmp_path):
    """A mask of 0 and 1 holds a nucleus as one of 0 and 255 does; so does one of a single bit."""
    folder = tmp_path / "nuclei_dsb2018.zip" / "a"
    write(folder / "images" / "a.png", picture())
    for number, mask in enumerate((grey(r1=1), grey(r2=255), grey(r3=1).astype(bool)), start=1):
        write(folder / "masks" / f"{number}.png", mask)
    assert rows(Nuclei(tmp_path, "all")[0][1][1]) == [0, 1, 2, 3, 0, 0]


def test_more_classes_than_labels(tmp_path):
    """Class 255 would be void."""

    class Many(CamVid):
        classes = tuple(map(str, range(256)))

    camvid(tmp_path, grey())
    with pytest.raises(ArgumentError, match="Many: classes must be at most 255"):
        Many(tmp_path, "val")


def test_real_nuclei(real_data):
    """538 images; the numbers of one are those of 16-bit greys."""
    data = Nuclei(real_data, "all")
    assert len(data) == 538
    labels, numbers = data[0][1]
    assert torch.equal(labels > 0, numbers > 0)
    assert int(numbers.max()) >= len(numbers.unique()) - 1
