import numpy as np
import pytest
from PIL import Image, ImageFilter

from atrousops.common.checks import ArgumentError
from atrousops.engine import pictures


def test_files_of_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "old_mask.png", "old_overlay.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "deep.png").touch()

    def names(*inputs, **options):
        files, errors = pictures.picture_files(inputs, **options)
        return [f.name for f in files], [str(e) for e in errors]

    assert names(tmp_path) == (["a.JPG", "b.png", "old_mask.png", "old_overlay.png"], [])
    assert names(tmp_path, skip=tmp_path) == (["a.JPG", "b.png"], [])
    # A file named outright is taken as it is, and once.
    assert names(tmp_path / "c.txt", tmp_path / "b.png", tmp_path, skip=tmp_path) == (["c.txt", "b.png", "a.JPG"], [])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert names(empty) == ([], [f"{empty}: no pictures directly in this folder"])


def test_links_of_a_folder(tmp_path):
    """One that leads nowhere is a file that cannot be read, not one that is passed over."""
    (tmp_path / "a.png").touch()
    (tmp_path / "sub").mkdir()
    for name, target in (("b.png", "a.png"), ("c.png", "gone.png"), ("d.png", "d.png"), ("e.png", "sub")):
        (tmp_path / name).symlink_to(target)
    files, errors = pictures.picture_files([tmp_path, tmp_path / "d.png"])
    assert ([file.name for file in files], errors) == (["a.png", "c.png", "d.png"], [])
    assert pictures.result_names(files, tmp_path / "out") == ["a", "c", "d"]


def test_result_names_never_meet(tmp_path):
    def names(*files, folder="out"):
        return pictures.result_names([tmp_path / f for f in files], tmp_path / folder)

    assert names("a.jpg", "b.png") == ["a", "b"]
    assert names("a.jpg", "a.png") == ["a_jpg", "a_png"]
    assert names("x/a.jpg", "y/a.jpg", "A.JPG") == ["a_jpg", "a_jpg_2", "A_JPG_3"]
    assert names("a.jpg", "a.png", "a_jpg.png") == ["a_jpg", "a_png", "a_jpg_2"]
    assert names("a.tar.png", ".png") == ["a.tar", ".png"]
    assert [len(name) for name in names("n" * 250 + ".jpg", "n" * 251 + ".jpg")] == [204, 206]
    # Results beside the inputs never replace one of them.
    assert names("a.jpg", "a_mask.png", folder=".") == ["a_2", "a_mask"]


def test_colors():
    colors = pictures.class_colors(["background", *map(str, range(255))])
    assert colors[0].tolist() == [0, 0, 0]
    assert colors[1:].any(axis=1).all(), "black means background alone"
    # VOC has 21 classes; the nearest two of their colours stay apart by more than a shade.
    near = colors[:21].astype(int)
    distance = np.abs(near[:, None] - near[None]).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert distance.min() >= 60
    assert pictures.class_colors(["sky", "background"])[1].tolist() == [0, 0, 0]


def test_mask_keeps_ids(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    colors = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    for count in (256, 2):
        ids = labels % count if count < 256 else labels
        path = tmp_path / "mask.png"
        pictures.write_png(path, pictures.mask_image(ids, colors[:count]))
        with Image.open(path) as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), ids)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[ids])


def test_ids_that_no_byte_or_colour_holds():
    """256 would come back as 0."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    for labels, found in ((np.array([[256]]), "int64 256..256"), (np.array([[-1, 3]]), "int64 -1..3")):
        for make in (pictures.mask_image, lambda ids, colors: pictures.overlay_image(colors[None], ids, colors)):
            with pytest.raises(ArgumentError, match=rf"labels must be class ids in 0\.\.255.*got {found}"):
                make(labels, colors)
    with pytest.raises(ArgumentError, match=r"0\.\.1, as there are colours; got uint8 2\.\.2"):
        pictures.mask_image(np.array([[2]], dtype=np.uint8), colors[:2])


def test_overlay_tints_classes_but_not_black():
    picture = np.full((12, 20, 3), 100, dtype=np.uint8)
    labels = np.zeros((12, 20), dtype=np.uint8)
    labels[:, 10:] = 1
    colors = np.array([[0, 0, 0], [0, 50, 200]], dtype=np.uint8)
    overlay = np.asarray(pictures.overlay_image(picture, labels, colors, alpha=0.5))
    assert (overlay[:, :9] == 100).all()
    assert (overlay[:, 9] == 255).all(), "the contour, one pixel to each side"
    assert (overlay[:, 10] == (0, 50, 200)).all()
    assert (overlay[:, 11:] == (50, 75, 150)).all()
    assert (picture == 100).all()
    assert pictures.overlay_image(picture[:1, :1], labels[:1, :1], colors).size == (1, 1)


# Radii 1, 2, 3 and 7 (windows that are and are not powers of two and one), sides shorter than the window, one row.
@pytest.mark.parametrize(
    ("height", "width", "radius"), [(40, 60, 1), (9, 70, 2), (33, 31, 3), (50, 50, 7), (3, 40, 7), (1, 20, 2)]
)
def test_contours_are_those_of_square_windows(height, width, radius):
    """Pillow's filters take the largest and least of each square window by itself."""
    random = np.random.default_rng(radius)
    labels = np.kron(random.integers(0, 4, (height // 5 + 1, width // 5 + 1)), np.ones((5, 5)))[:height, :width]
    image = Image.fromarray(labels.astype(np.uint8))
    most, least = (image.filter(kind(2 * radius + 1)) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    np.testing.assert_array_equal(pictures.contours(labels, radius), np.asarray(most) != np.asarray(least))


def test_the_lines_of_large_pictures_are_thicker():
    labels = np.zeros((1000, 1500), dtype=np.uint8)
    labels[:, 700:] = 1
    assert np.flatnonzero(pictures.contours(labels)[500]).tolist() == [698, 699, 700, 701]


def test_contours_take_few_passes(monkeypatch):
    """A window of 21 x 21 in four doublings and a last step for each axis and extreme, where 441 pixels lie in it."""
    passes = []
    for name in ("minimum", "maximum"):
        extreme = getattr(np, name)
        monkeypatch.setattr(np, name, lambda a, b, extreme=extreme: passes.append(a.size) or extreme(a, b))
    pictures.contours(np.zeros((100, 100), dtype=np.uint8), 10)
    assert len(passes) == 2 * 2 * 5
