"""Published checkpoints: files of each release's names and shapes, loaded, against the release in plain PyTorch."""

from functools import partial

import numpy as np
import pytest
import releases
import releases_caffe
import releases_others
import releases_tensorflow
import torch
import torchvision
from published_files import assert_same, keep_only, loaded, seen

from atrousops import functional, models
from atrousops.models.published import loading

RESNET50, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)
EIGHT, TEN, SEVEN = (1, 1, 2, 4, 8, 16, 1), (1, 1, 2, 4, 8, 16, 32, 64, 1), (1, 1, 2, 4, 8, 1)
# Of VGG-16, in the place of 64.
WIDTH = 4


def espnet_shapes(q):
    """The release's names are those of the network here, and one class more is void."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in models.espnet(20, 2, q, 20).state_dict().items()}


def crfrnn_shapes(width):
    labels = {f"crfrnn.{name}": (21, 21) for name in ("spatial_ker_weights", "bilateral_ker_weights")}
    shapes = releases_caffe.fcn_shapes(8, width) | {"upscore2.bias": (21,)}
    return shapes | labels | {"crfrnn.compatibility_matrix": (21, 21)}


def torchvisions(make, **arguments):
    with torch.device("meta"):
        network = make(weights=None, weights_backbone=None, **arguments)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def smps(classes):
    """segmentation_models_pytorch's default, a ResNet-34 of torchvision."""
    with torch.device("meta"):
        trunk = torchvision.models.resnet34().state_dict()
    found = {f"encoder.{name}": tuple(v.shape) for name, v in trunk.items() if not name.startswith("fc.")}
    return found | releases_others.smp_head_shapes(512, 64, classes)


_SEMANTIC, _OBJECTS = torchvision.models.segmentation, torchvision.models.detection
SHAPES = {
    "deeplabv3_resnet50_voc": lambda: torchvisions(_SEMANTIC.deeplabv3_resnet50, aux_loss=True),
    "deeplabv3_resnet101_voc": lambda: torchvisions(_SEMANTIC.deeplabv3_resnet101, aux_loss=True),
    "deeplabv3_mobilenet_v3_large_voc": lambda: torchvisions(_SEMANTIC.deeplabv3_mobilenet_v3_large, aux_loss=True),
    "fcn_resnet50_voc": lambda: torchvisions(_SEMANTIC.fcn_resnet50, aux_loss=True),
    "fcn_resnet101_voc": lambda: torchvisions(_SEMANTIC.fcn_resnet101, aux_loss=True),
    "lraspp_mobilenet_v3_large_voc": lambda: torchvisions(_SEMANTIC.lraspp_mobilenet_v3_large),
    "maskrcnn_resnet50_fpn_coco": lambda: torchvisions(_OBJECTS.maskrcnn_resnet50_fpn),
    "maskrcnn_resnet50_fpn_v2_coco": lambda: torchvisions(_OBJECTS.maskrcnn_resnet50_fpn_v2),
    "deeplabv2_resnet101_cocostuff10k": lambda: releases.deeplabv2_shapes(RESNET101, 182),
    "deeplabv2_resnet101_cocostuff164k": lambda: releases.deeplabv2_shapes(RESNET101, 182),
    "deeplabv2_resnet101_voc": lambda: releases.deeplabv2_shapes(RESNET101, 21),
    "deeplabv3plus_resnet101_voc": lambda: releases.deeplabv3plus_shapes(RESNET101, 21),
    "fcn32s_voc": lambda: releases_caffe.fcn_shapes(32, 64),
    "fcn16s_voc": lambda: releases_caffe.fcn_shapes(16, 64),
    "fcn8s_voc": lambda: releases_caffe.fcn_shapes(8, 64),
    "deeplabv1_largefov_voc": lambda: releases_caffe.largefov_shapes(64),
    "dilation8_voc": lambda: releases_caffe.dilation_shapes(64, 21, EIGHT, large=True),
    "dilation8_camvid": lambda: releases_caffe.dilation_shapes(64, 11, EIGHT, large=False),
    "dilation7_kitti": lambda: releases_caffe.dilation_shapes(64, 11, SEVEN, large=False),
    "dilation10_cityscapes": lambda: releases_caffe.dilation_shapes(64, 19, TEN, large=False),
    "crfrnn_voc": lambda: crfrnn_shapes(64),
    "segnet_camvid": lambda: releases_caffe.unpooling_shapes(True, 64, 11),
    "segnet_basic_camvid": releases_caffe.segnet_basic_shapes,
    "deconvnet_voc": lambda: releases_caffe.unpooling_shapes(False, 64, 21),
    "enet_cityscapes": releases_others.enet_shapes,
    "deeplabv3plus_smp": lambda: smps(21),
    **{
        f"deeplabv3plus_xception65_{data}": (lambda n=n: releases_tensorflow.xception_shapes(32, n))
        for data, n in (("voc_trainaug", 21), ("voc_trainval", 21), ("cityscapes", 19), ("ade20k", 151))
    },
    **{
        f"auto_deeplab_{name}_cityscapes": (lambda width=width: releases_tensorflow.hnasnet_shapes(width, 19))
        for name, width in (("s", 20), ("m", 32), ("l", 48))
    },
    **{f"espnet_q{q}_cityscapes": (lambda q=q: espnet_shapes(q)) for q in (3, 5, 8)},
    **{
        f"pspnet{depth}_{data}": (lambda counts=counts, n=n: releases.pspnet_shapes(counts, n))
        for depth, counts in ((50, RESNET50), (101, RESNET101))
        for data, n in (("ade20k", 150), ("cityscapes", 19), ("voc2012", 21))
    },
    **{
        f"pspnet{depth}_{data}_mmseg": (lambda counts=counts, n=n: releases_others.mmseg_shapes(counts, n))
        for depth, counts in ((50, RESNET50), (101, RESNET101))
        for data, n in (("ade20k", 150), ("cityscapes", 19), ("voc2012", 21))
    },
}


def test_every_checkpoint_is_here():
    # The two others have files, in test_published.py.
    assert {*SHAPES, "enet_camvid", "espnet_camvid"} == {*models.PUBLISHED}


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes(name):
    """Every entry of the release has a place, of its shape, and every place an entry."""
    entry = models.PUBLISHED[name]
    with torch.device("meta"):
        network = models.build(entry.network, **entry.arguments)
        changed = loading.adjusted(entry, network, releases.random_state(SHAPES[name](), "meta"))
        assert {k: v.shape for k, v in changed.items()} == {k: v.shape for k, v in network.state_dict().items()}


def blue_first(rgb, mean):
    """Caffe's image: blue, green, red in 0..255, less the mean, which is given in that order."""
    return (255 * rgb).flip(1) - torch.tensor(mean).view(3, 1, 1)


# Sides that three quarters do not divide; and the authors' 321, 241 and 161 pixels in small, maps of 5, 4 and 3.
@pytest.mark.parametrize(("size", "align_corners"), [((35, 45), False), ((33, 65), True)])
@torch.inference_mode()
def test_deeplabv2(monkeypatch, tmp_path, size, align_corners):
    state = releases.random_state(releases.deeplabv2_shapes(RESNET50, 21))
    arguments = {"backbone": "resnet50", "align_corners": align_corners}
    ours = loaded(monkeypatch, tmp_path, "deeplabv2_resnet101_voc", state, **arguments)
    image = torch.rand(1, 3, *size)
    theirs = releases.deeplabv2(state, blue_first(image, (104.008, 116.669, 122.675)), RESNET50, align_corners)
    assert_same(ours(seen(ours, image))["out"], theirs)


@torch.inference_mode()
def test_pspnet(monkeypatch, tmp_path):
    """From a training's checkpoint, under DataParallel, with numbers of NumPy beside it."""
    state = releases.random_state(releases.pspnet_shapes(RESNET50, 21))
    file = {"epoch": 3, "best": np.float64(0.5), "state_dict": {f"module.{k}": v for k, v in state.items()}}
    ours = loaded(monkeypatch, tmp_path, "pspnet50_voc2012", file)
    image = seen(ours, torch.rand(1, 3, 33, 49))
    for name, theirs in releases.pspnet(state, image, RESNET50).items():
        assert_same(ours(image)[name], theirs)


@torch.inference_mode()
def test_deeplabv3plus(monkeypatch, tmp_path):
    state = releases.random_state(releases.deeplabv3plus_shapes(RESNET50, 21))
    ours = loaded(monkeypatch, tmp_path, "deeplabv3plus_resnet101_voc", {"state_dict": state}, backbone="resnet50")
    image = seen(ours, torch.rand(1, 3, 33, 47))
    assert_same(ours(image)["out"], releases.deeplabv3plus(state, image, RESNET50))


@pytest.mark.parametrize(("stride", "ending"), [(32, ".npz"), (16, ".safetensors"), (8, ".npz")])
@torch.inference_mode()
def test_fcn(monkeypatch, tmp_path, stride, ending):
    state = releases.random_state(releases_caffe.fcn_shapes(stride, WIDTH))
    # Exports write blobs after a dot or a slash.
    file = {key.replace(".", "/"): value for key, value in state.items()} if stride == 8 else state
    ours = loaded(monkeypatch, tmp_path, f"fcn{stride}s_voc", file, ending, width=WIDTH)
    image = torch.rand(1, 3, 61, 83)
    given = blue_first(image, (104.00698793, 116.66876762, 122.67891434))
    assert_same(ours(seen(ours, image))["out"], releases_caffe.fcn(state, given, stride))


@torch.inference_mode()
def test_largefov(monkeypatch, tmp_path):
    """321 pixels of the release in small: 41; and 38 columns, of which six positions see the last one."""
    state = releases.random_state(releases_caffe.largefov_shapes(WIDTH))
    ours = loaded(monkeypatch, tmp_path, "deeplabv1_largefov_voc", state, ".npz", width=WIDTH)
    image = torch.rand(1, 3, 41, 38)
    theirs = releases_caffe.largefov(state, blue_first(image, (104.008, 116.669, 122.675)))
    assert theirs.shape[2:] == (41, 41)
    assert_same(ours(seen(ours, image))["out"], theirs[..., :38])


@torch.inference_mode()
def test_other_channels(tmp_path):
    """A grey image is answered as the same grey in three channels, and normalised by what is common to them."""
    state = releases.random_state(releases_caffe.largefov_shapes(WIDTH))
    np.savez(tmp_path / "file.npz", **{key: value.numpy() for key, value in state.items()})
    load = partial(models.load_published, "deeplabv1_largefov_voc", tmp_path / "file.npz", width=WIDTH)
    rgb, grey = load(), load(in_channels=1)
    image = torch.randn(1, 1, 25, 33)
    assert_same(grey(image)["out"], rgb(image.expand(-1, 3, -1, -1))["out"])
    assert grey.info.mean == (sum(rgb.info.mean) / 3,)
    assert grey.info.std == pytest.approx((1 / 255,))


@pytest.mark.parametrize(
    ("name", "dilations", "mean"),
    [
        ("dilation8_voc", EIGHT, (102.93, 111.36, 116.52)),
        ("dilation8_voc", (), (102.93, 111.36, 116.52)),  # the front end alone
        ("dilation8_camvid", EIGHT, (110.70313206, 108.77808759, 105.41212523)),
        ("dilation7_kitti", SEVEN, (96.19429688, 95.55136972, 91.34692262)),
        ("dilation10_cityscapes", TEN, (72.39, 82.91, 73.16)),
    ],
)
@torch.inference_mode()
def test_dilation(monkeypatch, tmp_path, name, dilations, mean):
    """The map of scores, enlarged."""
    large, classes = name == "dilation8_voc", len(models.PUBLISHED[name].classes)
    state = releases.random_state(releases_caffe.dilation_shapes(WIDTH, classes, dilations, large))
    if "ctx_upsample.weight" in state:
        state["ctx_upsample.weight"] = releases_caffe.bilinear(classes)
    arguments = {} if dilations else {"context": None, "context_arguments": None}
    ours = loaded(monkeypatch, tmp_path, name, state, ".npz", width=WIDTH, **arguments)
    corner = models.PUBLISHED[name].arguments.get("placement") == "corner"
    image = torch.rand(1, 3, 48, 45)
    # The release mirrors its image by 186 pixels; positions are eight apart, and where they are corners there is one
    # more behind the last pixel.
    ends = [(186, 186 + -side % 8 + 8 * corner) for side in (48, 45)]
    padded = torch.from_numpy(np.pad(blue_first(image, mean).numpy(), [(0, 0), (0, 0), *ends], "reflect"))
    theirs = releases_caffe.dilation(state, padded, dilations, large)
    found = ours(seen(ours, image))["out"]
    if corner:
        # util.py: between position h // 8 and the next, by h % 8.
        sides = [8 * side - 7 for side in theirs.shape[2:]]
        assert_same(found, releases.enlarge(theirs, sides, True)[..., :48, :45])
        return
    upsampled = torch.nn.functional.conv_transpose2d(
        theirs, state["ctx_upsample.weight"], stride=8, padding=4, groups=classes
    )
    # Caffe's deconvolution sees zeros beyond the border, four pixels deep.
    assert_same(found[..., 4:-4, 4:-4], upsampled[..., 4:44, 4:41])


@torch.inference_mode()
def test_crfrnn(monkeypatch, tmp_path):
    """FCN-8s with the bias that the release alone has, and mean field, whose filters are tested elsewhere."""
    state = releases.random_state(crfrnn_shapes(WIDTH))
    state |= {name: state[name] / 10 for name in state if name.startswith("crfrnn.")}
    ours = loaded(monkeypatch, tmp_path, "crfrnn_voc", state, width=WIDTH)
    image = torch.rand(1, 3, 33, 41)
    scores = releases_caffe.fcn(state, blue_first(image, (103.939, 116.779, 123.68)), 8)
    assert_same(ours.network(seen(ours, image))["out"], scores)
    # To the last bit what the layer sees: a lattice may change with it.
    given = seen(ours, image)
    lattices = ours.crf.lattices((255 * (given * ours.std + ours.mean)).clamp(0, 255))
    kernels = [state[f"crfrnn.{name}_ker_weights"] for name in ("spatial", "bilateral")]
    current = scores
    for _ in range(10):
        q = current.softmax(1)
        message = torch.zeros_like(scores)
        for lattice, kernel in zip(lattices, kernels, strict=True):
            filtered = functional.permutohedral_filter(q, lattice, "after")
            message += (kernel @ filtered.flatten(2)).view_as(q)
        current = scores + (state["crfrnn.compatibility_matrix"] @ message.flatten(2)).view_as(q)
    found = ours(given)["out"].exp()
    torch.testing.assert_close(found, current.softmax(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "size"), [("segnet_camvid", (45, 61)), ("deconvnet_voc", (226, 224))])
@torch.inference_mode()
def test_unpooling(monkeypatch, tmp_path, name, size):
    """In fp64 with the same poolings, as a maximum that moves by a rounding moves what is unpooled.

    The authors' 360x480 in small for SegNet: 45 rows are pooled to 23, 12, 6, 3 and 2. For DeconvNet an image that
    rounding up and down pool to 8 and 7 positions.
    """
    # PyTorch's own unpooling refuses to run otherwise.
    torch.use_deterministic_algorithms(False)
    segnet = name == "segnet_camvid"
    state = releases.random_state(releases_caffe.unpooling_shapes(segnet, WIDTH, 11 if segnet else 21))
    state |= {key: 0.5 + value.abs() / 4 for key, value in state.items() if value.shape[0] == 1 and "weight" in key}
    ours = loaded(monkeypatch, tmp_path, name, state, ".npz", width=WIDTH).double()
    image = torch.rand(1, 3, *size).double()
    mean = (0, 0, 0) if segnet else (104.00698793, 116.66876762, 122.67891434)
    double = {key: value.double() for key, value in state.items()}
    theirs = releases_caffe.unpooled(double, blue_first(image, mean), segnet)
    assert_same(ours(seen(ours, image))["out"], theirs)


@torch.inference_mode()
def test_segnet_basic(monkeypatch, tmp_path):
    """In fp64, as `test_unpooling`; its image is normalised over channels."""
    torch.use_deterministic_algorithms(False)
    state = releases.random_state(releases_caffe.segnet_basic_shapes())
    state |= {key: 0.5 + value.abs() / 4 for key, value in state.items() if key.endswith("_bn.weight")}
    ours = loaded(monkeypatch, tmp_path, "segnet_basic_camvid", state, ".npz").double()
    image = torch.rand(1, 3, 21, 27).double()
    double = {key: value.double() for key, value in state.items()}
    theirs = releases_caffe.segnet_basic(double, blue_first(image, (0, 0, 0)))
    assert_same(ours(seen(ours, image))["out"], theirs)


@torch.inference_mode()
def test_espnet(monkeypatch, tmp_path):
    """The release reads blue first, divides by 255 twice and has a twentieth class; the network is espnet_camvid's."""
    theirs = models.espnet(20, 2, 3, 20).eval()
    theirs.load_state_dict(releases.random_state(espnet_shapes(3)))
    ours = loaded(monkeypatch, tmp_path, "espnet_q3_cityscapes", theirs.state_dict())
    image = torch.rand(1, 3, 40, 48)
    mean, std = (
        torch.tensor([72.3923111, 82.90895355, 73.15840149]),
        torch.tensor([45.3192215, 46.15289307, 44.91483307]),
    )
    given = ((255 * image).flip(1) - mean.view(3, 1, 1)) / std.view(3, 1, 1) / 255
    assert_same(ours(seen(ours, image))["out"], theirs(given)["out"][:, :19])


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50"]
)
@torch.inference_mode()
def test_torchvision(monkeypatch, tmp_path, name):
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = getattr(_SEMANTIC, name)(weights=None, weights_backbone=None, **aux).eval()
    ours = loaded(monkeypatch, tmp_path, f"{name}_voc", theirs.state_dict())
    assert not ours.training
    assert len(ours.info.classes) == 21
    image = torch.rand(1, 3, 65, 81)
    for key, wanted in theirs(image).items():
        assert_same(ours(image)[key], wanted)


@pytest.mark.parametrize("version", ["", "_v2"])
@torch.inference_mode()
def test_mask_rcnn(monkeypatch, tmp_path, version):
    small = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 4}
    make = getattr(_OBJECTS, f"maskrcnn_resnet50_fpn{version}")
    theirs = make(weights=None, weights_backbone=None, **small).eval()
    ours = loaded(monkeypatch, tmp_path, f"maskrcnn_resnet50_fpn{version}_coco", theirs.state_dict(), **small)
    image = torch.rand(3, 61, 83)
    wanted, found = theirs([image])[0], ours([image])[0]
    assert len(wanted["scores"]) == 4
    assert torch.equal(found["labels"], wanted["labels"])
    for key in ("boxes", "scores", "masks"):
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-3, atol=1e-3)


def test_what_does_not_fit(monkeypatch, tmp_path):
    """One entry is missing and one of another shape; and a whole file of another release is recognised."""
    keep_only(monkeypatch, "fcn16s_voc", "fcn32s_voc", "enet_camvid", "dilation7_kitti")
    state = releases.random_state(releases_caffe.fcn_shapes(16, WIDTH))
    broken = {key: value for key, value in state.items() if key != "fc7.bias"}
    broken["score_fr.bias"] = torch.zeros(5)
    text = r"1 missing, such as fc\.3\.bias \(256,\); 1 of another shape, such as score\.bias \(5,\) for \(21,\)"
    with pytest.raises(models.WeightsError, match=text):
        loaded(monkeypatch, tmp_path, "fcn16s_voc", broken, width=WIDTH)
    with pytest.raises(models.WeightsError, match=r"3 unknown, such as skips.*it would be: fcn16s_voc\."):
        loaded(monkeypatch, tmp_path, "fcn32s_voc", state, width=WIDTH)


def test_other_files(monkeypatch, tmp_path):
    (tmp_path / "file.npz").write_bytes(b"nothing")
    with pytest.raises(models.WeightsError, match="must be a state dict"):
        models.load_published("fcn8s_voc", tmp_path / "file.npz")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(models.WeightsError, match="got list"):
        models.load_published("fcn8s_voc", tmp_path / "list.pth")
