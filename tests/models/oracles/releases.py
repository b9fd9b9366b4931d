"""The layers of the authors' releases, as tables for `table.run`; each function names the file that it follows."""

from __future__ import annotations

_VGG = ((2, 1), (2, 2), (3, 3), (3, 4), (3, 5))


def _vgg(pools: dict[int, str], rate5: int = 1, first: str = "data") -> list[str]:
    rows, last = [], first
    for count, stage in _VGG:
        rate = rate5 if stage == 5 else 1
        for number in range(1, count + 1):
            name = f"conv{stage}_{number}"
            rows += [f"{name} = conv {last} k=3 p={rate} d={rate}", f"{name} = relu {name}"]
            last = name
        if stage in pools:
            rows.append(f"pool{stage} = max {last} {pools[stage]}")
            last = f"pool{stage}"
    return rows


def deeplab_largefov() -> str:
    """DeepLab-LargeFOV, test.prototxt."""
    strided, kept = "k=3 s=2 p=1", "k=3 s=1 p=1"
    return "\n".join([
        *_vgg({1: strided, 2: strided, 3: strided, 4: kept, 5: kept}, rate5=2),
        "pool5a = ave pool5 k=3 s=1 p=1",
        "fc6 = conv pool5a k=3 p=12 d=12", "fc6 = relu fc6",
        "fc7 = conv fc6", "fc7 = relu fc7",
        "fc8 = conv fc7", "out = interp fc8 zoom=8",
    ])  # fmt: skip


def _bottleneck(name: str, bottom: str, stride: int, rate: int, first: bool, stride_in_1x1: bool) -> list[str]:
    one, three = (stride, 1) if stride_in_1x1 else (1, stride)
    rows = [
        f"a = conv {bottom} s={one} bias=0", "a = bn a", "a = relu a",
        f"b = conv a k=3 s={three} p={rate} d={rate} bias=0", "b = bn b", "b = relu b",
        "c = conv b bias=0", "c = bn c",
    ]  # fmt: skip
    shortcut = bottom
    if first:
        rows += [f"short = conv {bottom} s={stride} bias=0", "short = bn short"]
        shortcut = "short"
    return [*rows, f"{name} = sum c {shortcut}", f"{name} = relu {name}"]


def _stages(bottom: str, counts: tuple[int, ...], stride_in_1x1: bool, tag: str = "") -> list[str]:
    rows, last = [], bottom
    for stage, count, stride, rate in zip((2, 3, 4, 5), counts, (1, 2, 1, 1), (1, 1, 2, 4), strict=True):
        for number in range(count):
            name = f"res{stage}{tag}" if number == count - 1 else f"x{tag}"
            first = number == 0
            rows += _bottleneck(name, last, stride if first else 1, rate, first, stride_in_1x1)
            last = name
    return rows


def deeplab_v2_resnet(counts: tuple[int, ...] = (3, 4, 6, 3)) -> str:
    """DeepLab v2 on ResNet, test.prototxt, one scale up to the map of scores (fc1_voc12)."""
    return "\n".join([
        "conv1 = conv data k=7 s=2 p=3 bias=0", "conv1 = bn conv1", "conv1 = relu conv1",
        "pool1 = max conv1 k=3 s=2 p=1",
        *_stages("pool1", counts, stride_in_1x1=True),
        *(f"c{rate} = conv res5 k=3 p={rate} d={rate}" for rate in (6, 12, 18, 24)),
        "fc1 = sum c6 c12 c18 c24",
    ])  # fmt: skip


# What becomes of the maps of the image at 1, 3/4 and 1/2.
DEEPLAB_V2_FUSION = """
    big = interp c075 zoom=4 shrink=3
    bigger = interp c05 zoom=2
    fusion = top data big bigger
    out = interp fusion zoom=8
"""


def pspnet(counts: tuple[int, ...] = (3, 4, 6, 3)) -> str:
    """PSPNet, pspnet101_VOC2012_473.prototxt, for a last map of 6 x 6 (there 60 x 60), and the head for training."""
    rows = []
    last = "data"
    for number, stride in enumerate((2, 1, 1), start=1):
        name = f"conv1_{number}"
        rows += [f"{name} = conv {last} k=3 s={stride} p=1 bias=0", f"{name} = bn {name}", f"{name} = relu {name}"]
        last = name
    rows += [f"pool1 = max {last} k=3 s=2 p=1", *_stages("pool1", counts, stride_in_1x1=False)]
    for bins in (1, 2, 3, 6):
        side = 6 // bins
        rows += [
            f"pool = ave res5 k={side} s={side}", "pool = conv pool bias=0", "pool = bn pool", "pool = relu pool",
            f"bins{bins} = interp pool res5",
        ]  # fmt: skip
    rows += [
        "cat = cat res5 bins1 bins2 bins3 bins6",
        "conv5_4 = conv cat k=3 p=1 bias=0", "conv5_4 = bn conv5_4", "conv5_4 = relu conv5_4",
        "conv6 = conv conv5_4", "out = interp conv6 data",
        "aux = conv res4 k=3 p=1 bias=0", "aux = bn aux", "aux = relu aux", "aux = conv aux", "aux = interp aux data",
    ]  # fmt: skip
    return "\n".join(rows)


def enet() -> str:
    """e-lab's ENet-training, train/models/encoder.lua and decoder.lua."""
    rows = [
        "left = conv data k=3 s=2 p=1", "right = max data k=2 s=2",
        "x = cat left right", "x = bn x eps=1e-3", "start = prelu x",
    ]  # fmt: skip

    def middle(kind: str) -> list[str]:
        if kind == "asymmetric":
            return ["a = conv a kh=1 kw=5 pw=2 bias=0", "a = conv a kh=5 kw=1 ph=2"]
        rate = int(kind)
        return [f"a = conv a k=3 p={rate} d={rate}"]

    def block(name: str, bottom: str, kind: str = "1", act: str = "prelu") -> list[str]:
        return [
            f"a = conv {bottom} bias=0", "a = bn a eps=1e-3", f"a = {act} a",
            *middle(kind), "a = bn a eps=1e-3", f"a = {act} a",
            "a = conv a bias=0", "a = bn a eps=1e-3",
            f"{name} = sum a {bottom}", f"{name} = {act} {name}",
        ]  # fmt: skip

    def down(name: str, bottom: str) -> list[str]:
        return [
            f"a = conv {bottom} k=2 s=2 bias=0", "a = bn a eps=1e-3", "a = prelu a",
            *middle("1"), "a = bn a eps=1e-3", "a = prelu a",
            "a = conv a bias=0", "a = bn a eps=1e-3",
            f"{name}_pool = max {bottom} k=2 s=2", f"pad = widen {name}_pool a",
            f"{name} = sum a pad", f"{name} = prelu {name}",
        ]  # fmt: skip

    def up(name: str, bottom: str, pooled: str, before: str) -> list[str]:
        return [
            f"a = conv {bottom} bias=0", "a = bn a eps=1e-3", "a = relu a",
            "a = deconv a k=3 s=2 p=1 extra=1", "a = bn a eps=1e-3", "a = relu a",
            "a = conv a bias=0", "a = bn a eps=1e-3",
            f"b = conv {bottom} bias=0", "b = bn b eps=1e-3", f"b = unpool b {pooled} {before}",
            f"{name} = sum a b", f"{name} = relu {name}",
        ]  # fmt: skip

    rows += down("down1", "start")
    last = "down1"
    for number in range(4):
        rows += block(f"one{number}", last)
        last = f"one{number}"
    one = last
    rows += down("down2", one)
    last = "down2"
    for number, kind in enumerate(("1", "2", "asymmetric", "4", "1", "8", "asymmetric", "16") * 2):
        rows += block(f"two{number}", last, kind)
        last = f"two{number}"
    rows += [
        *up("up1", last, "down2_pool", one), *block("up2", "up1", act="relu"), *block("up3", "up2", act="relu"),
        *up("up4", "up3", "down1_pool", "start"), *block("up5", "up4", act="relu"),
        "out = deconv up5 k=2 s=2",
    ]  # fmt: skip
    return "\n".join(rows)


def segnet() -> str:
    """SegNet-Tutorial, Models/segnet_inference.prototxt."""
    rows, last = _coding_vgg()
    for stage, count in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2)):
        rows.append(f"up = unpool {last} pool{stage} conv{stage}")
        last = "up"
        for number in range(count):
            rows.append("x = conv " + last + " k=3 p=1")
            last = "x"
            if stage > 1 or number == 0:
                rows += ["x = bn x", "x = relu x"]
    return "\n".join([*rows, "out = sum x"])


def deconvnet() -> str:
    """DeconvNet, DeconvNet_inference_deploy.prototxt."""
    rows, last = _coding_vgg()
    for kind in ("conv", "conv", "deconv"):
        size = "k=1" if last == "fc" and kind == "conv" else "k=7"
        rows += [f"fc = {kind} {last} {size}", "fc = bn fc", "fc = relu fc"]
        last = "fc"
    for stage, count in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2)):
        rows.append(f"x = unpool {last} pool{stage} conv{stage}")
        rows += ["x = deconv x k=3 p=1", "x = bn x", "x = relu x"] * count
        last = "x"
    return "\n".join([*rows, "out = conv x"])


def _coding_vgg() -> tuple[list[str], str]:
    """VGG-16, normalised, whose stages end in conv1 to conv5 and pool1 to pool5."""
    rows, last = [], "data"
    for count, stage in _VGG:
        for _ in range(count):
            rows += [f"conv{stage} = conv {last} k=3 p=1", f"conv{stage} = bn conv{stage}"]
            rows.append(f"conv{stage} = relu conv{stage}")
            last = f"conv{stage}"
        rows.append(f"pool{stage} = max {last} k=2 s=2")
        last = f"pool{stage}"
    return rows, last


def dilation8(context: str | None = None) -> str:
    """fyu/dilation, models/dilation8_pascal_voc_deploy.prototxt, or dilation{7, 8, 10} of another set by its layers.

    `data` is the image, mirrored by 186 pixels; `out` the map of scores before it is enlarged.
    """
    rows, last = [], "data"
    for count, stage in _VGG:
        for _ in range(count):
            rows += [f"x = conv {last} k=3 d={2 if stage == 5 else 1}", "x = relu x"]
            last = "x"
        if stage <= 3:
            rows.append("x = max x k=2 s=2")
    rows += ["x = conv x k=7 d=4", "x = relu x", "x = conv x", "x = relu x", "out = conv x"]
    if context == "voc":
        rates = (1, 1, 2, 4, 8, 16, 1)
        # The first layer's pad of 33 is all there is.
        rows += [
            row
            for i, d in enumerate(rates)
            for row in (f"out = conv out k=3 d={d} p={0 if i else 33}", "out = relu out")
        ]
        rows.append("out = conv out")
    elif context is not None:
        rates = {"kitti": (1, 1, 2, 4, 8, 1), "camvid": (1, 1, 2, 4, 8, 16, 1)}
        rates["cityscapes"] = (1, 1, 2, 4, 8, 16, 32, 64, 1)
        rows += [row for d in rates[context] for row in (f"out = conv out k=3 d={d} p={d}", "out = relu out")]
        rows.append("out = conv out")
    return "\n".join(rows)


def deeplab_v3plus_xception(middle: int = 16) -> str:
    """DeepLab v3+ on xception_65 at output stride 16: TensorFlow's deeplab/core/xception.py and deeplab/model.py."""

    def separable(stride: int, rate: int, eps: str, act: bool) -> list[str]:
        relu = ["x = relu x"] if act else []
        return [
            f"x = conv x k=3 s={stride} p={rate} d={rate} dw=1 bias=0", f"x = bn x {eps}", *relu,
            "x = conv x bias=0", f"x = bn x {eps}", *relu,
        ]  # fmt: skip

    def block(stride: int, rate: int = 1, skip: str = "sum", keep: str | None = None) -> list[str]:
        rows = ["last = sum x"]
        if skip == "conv":
            rows += [f"last = conv x s={stride} bias=0", "last = bn last eps=1e-3"]
        for number in (1, 2, 3):
            rows += [] if skip == "none" else ["x = relu x"]
            rows += separable(stride if number == 3 else 1, rate, "eps=1e-3", act=skip == "none")
            if number == 2 and keep:
                rows.append(f"{keep} = sum x")
        return rows if skip == "none" else [*rows, "x = sum x last"]

    rows = [
        "x = conv data k=3 s=2 p=1 bias=0", "x = bn x eps=1e-3", "x = relu x",
        "x = conv x k=3 p=1 bias=0", "x = bn x eps=1e-3", "x = relu x",
        # entry_flow/block1 to block3; entry_flow/block2/unit_1/xception_module/separable_conv2_pointwise is "low".
        *block(2, skip="conv"), *block(2, skip="conv", keep="low"), *block(2, skip="conv"),
        *block(1) * middle,
        *block(1, skip="conv"), *block(1, rate=2, skip="none"),
        "out = sum x",
        "a0 = conv out bias=0", "a0 = bn a0", "a0 = relu a0",
    ]  # fmt: skip
    for rate in (6, 12, 18):
        rows += ["x = sum out", *separable(1, rate, "", act=True), f"a{rate} = sum x"]
    rows += [
        "pool = mean out", "pool = conv pool bias=0", "pool = bn pool", "pool = relu pool", "pool = interp pool out",
        "x = cat a0 a6 a12 a18 pool", "x = conv x bias=0", "x = bn x", "x = relu x",
        "low = conv low bias=0", "low = bn low", "low = relu low", "x = interp x low", "x = cat x low",
        *separable(1, 1, "", act=True), *separable(1, 1, "", act=True),
        "x = conv x", "out = interp x data",
    ]  # fmt: skip
    return "\n".join(rows)
