"""The networks of tests/matrix.py: other people's, with random weights, as small as they come, on small inputs."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """How it is built, its inputs, and the targets of a training step where a forward takes them.

    `exact`: results are chosen from among candidates, so all is compared in float64. `single`: it cannot run in
    float64, and is compared with itself in float32. `pickles`: the model itself can be saved whole.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    targets: Callable[[], list] | None = None
    exact: bool = False
    single: bool = False
    pickles: bool = True
    trains: bool = True


def images(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """An image, or what stands for one, for each shape; labels where a shape begins with -1."""
    draw = torch.Generator().manual_seed(7)
    return tuple(
        torch.randint(0, 10, shape[1:], generator=draw) if shape[0] == -1 else torch.rand(shape, generator=draw)
        for shape in shapes
    )


def call(path: str, *args: Any, **options: Any) -> Any:
    """The result of a function or class that is only imported now."""
    module, _, name = path.rpartition(".")
    # Copies, for there are networks that change what they are given.
    return getattr(importlib.import_module(module), name)(*copy.deepcopy(args), **copy.deepcopy(options))


def _made(path: str, *shapes: tuple[int, ...], trains: bool = True, **options: Any) -> Network:
    return Network(partial(call, path, **options), partial(images, *shapes), trains=trains)


# Four images: BatchNorm in training over a map of one pixel takes its statistics from them.
def _image(size: int, channels: int = 3, batch: int = 4) -> tuple[int, ...]:
    return (batch, channels, size, size)


# By the side of the image; the larger ones are what their windows, strides or fixed tables ask for.
_CLASSIFIERS = {
    64: "resnet18 resnet34 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 squeezenet1_0 squeezenet1_1 googlenet"
    " shufflenet_v2_x0_5 shufflenet_v2_x1_0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0"
    " efficientnet_b0 efficientnet_v2_s regnet_x_400mf regnet_x_800mf regnet_y_400mf regnet_y_800mf convnext_tiny"
    " vgg11 vgg11_bn alexnet swin_t swin_v2_t",
    75: "inception_v3",
}


def _torchvision() -> dict[str, Network]:
    models = "torchvision.models"
    found = {
        name: _made(f"{models}.{name}", _image(size), weights=None, num_classes=10, **_no_aux(name))
        for size, names in _CLASSIFIERS.items()
        for name in names.split()
    }
    found["vit_b_16"] = _made(f"{models}.vit_b_16", _image(32), image_size=32, num_classes=10)
    maxvit = {"input_size": (64, 64), "stem_channels": 16, "partition_size": 2, "block_channels": [16, 32]}
    maxvit |= {"block_layers": [1, 1], "head_dim": 16, "stochastic_depth_prob": 0.1, "num_classes": 10}
    found["maxvit"] = _made(f"{models}.maxvit.MaxVit", _image(64), **maxvit)
    for name in ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"):
        path = f"{models}.quantization.{name}"
        found[f"quantization.{name}"] = _made(path, _image(64), weights=None, quantize=False, num_classes=10)
    bare = {"weights": None, "weights_backbone": None}
    heads = "fcn_resnet50 fcn_resnet101 deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large"
    for name in [*heads.split(), "lraspp_mobilenet_v3_large"]:
        found[name] = _made(f"{models}.segmentation.{name}", (2, 3, 65, 49), num_classes=5, **bare)
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        found[name] = _made(f"{models}.video.{name}", (2, 3, 4, 32, 32), weights=None, num_classes=10)
    found["s3d"] = _made(f"{models}.video.s3d", (1, 3, 14, 224, 224), num_classes=10, trains=False)
    frames = _image(128, batch=1), _image(128, batch=1)
    found["raft_small"] = replace(_made(f"{models}.optical_flow.raft_small", *frames), single=True)
    return found | _detection()


def _no_aux(name: str) -> dict[str, Any]:
    return {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}


def _detection() -> dict[str, Network]:
    small = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.0, "box_detections_per_img": 5}
    two = small | {"rpn_post_nms_top_n_test": 50, "rpn_post_nms_top_n_train": 50}
    one = {"min_size": 96, "max_size": 128, "score_thresh": 0.0, "detections_per_img": 5}
    ssd = {"score_thresh": 0.0, "detections_per_img": 5}
    options = {
        "fasterrcnn_resnet50_fpn": two,
        "fasterrcnn_resnet50_fpn_v2": two,
        "fasterrcnn_mobilenet_v3_large_fpn": two,
        "fasterrcnn_mobilenet_v3_large_320_fpn": two,
        "maskrcnn_resnet50_fpn": two,
        "maskrcnn_resnet50_fpn_v2": two,
        "keypointrcnn_resnet50_fpn": two,
        "retinanet_resnet50_fpn": one,
        "retinanet_resnet50_fpn_v2": one,
        "fcos_resnet50_fpn": one,
        "ssd300_vgg16": ssd,
        "ssdlite320_mobilenet_v3_large": ssd,
    }
    bare, path = {"weights": None, "weights_backbone": None}, "torchvision.models.detection"
    classes = {name: {} if name.startswith("keypoint") else {"num_classes": 5} for name in options}
    return {
        name: Network(
            partial(call, f"{path}.{name}", **bare, **classes[name], **given),
            _photographs,
            partial(_boxes, name.partition("_")[0]),
            exact=True,
            # It takes key points in float32 alone.
            trains=name != "keypointrcnn_resnet50_fpn",
        )
        for name, given in options.items()
    }


def _photographs() -> tuple[list[Tensor]]:
    return (list(images((3, 97, 121), (3, 97, 121))),)


def _boxes(kind: str) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[8.0, 8.0, 60.0, 70.0], [40.0, 20.0, 110.0, 90.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if kind == "maskrcnn":
        target["masks"] = torch.ones(2, 97, 121, dtype=torch.uint8)
    if kind == "keypointrcnn":
        target["keypoints"] = torch.tensor([30.0, 30.0, 1.0]).repeat(2, 17, 1)
    return [target, target]


_TIMM = {
    64: "resnet10t resnet18 resnet26d resnet14t resnet50 resnetblur18 seresnet18 skresnet18 resnest14d res2net50_14w_8s"
    " resnetv2_18 resnetv2_50x1_bit ecaresnet26t seresnext26d_32x4d regnetx_002 regnety_002 regnetz_005 nf_regnet_b0"
    " nfnet_l0 efficientnet_lite0 efficientnet_b0 tf_efficientnet_b0 tf_efficientnetv2_b0 efficientnet_es mixnet_s"
    " tf_mixnet_s mobilenetv2_050 mobilenetv3_small_050 tf_mobilenetv3_small_minimal_100 mobilenetv4_conv_small_035"
    " mnasnet_small semnasnet_075 spnasnet_100 fbnetc_100 fbnetv3_b lcnet_050 tinynet_e hardcorenas_a ghostnet_050"
    " ghostnetv2_100 repghostnet_050 densenet121 dla34 dla46_c dla60_res2net hrnet_w18_small legacy_xception xception41"
    " vgg11_bn ese_vovnet19b_slim cspresnet50 cspdarknet53 cs3darknet_s selecsls42b dpn48b convnext_atto"
    " convnextv2_atto inception_next_atto repvgg_a0 repvit_m0_9 mobileone_s0 fastvit_t8 efficientvit_b0"
    " edgenext_xx_small mobilevit_xxs mobilevitv2_050 poolformer_s12 caformer_s18 gernet_s rexnet_100 hgnetv2_b0"
    " starnet_s1 lambda_resnet26t gcresnext26ts mambaout_femto rdnet_tiny pvt_v2_b0 focalnet_tiny_srf convmixer_768_32"
    " visformer_tiny",
    96: "inception_v3 inception_resnet_v2 nasnetalarge",
    128: "test_byobnet test_efficientnet test_resnet",
    224: "vit_tiny_patch16_224 levit_128s coat_lite_tiny efficientvit_m0",
}


def _timm() -> dict[str, Network]:
    create = "timm.create_model"
    options: dict[str, dict[str, Any]] = {"visformer_tiny": {"img_size": 64}, "lambda_resnet26t": {"img_size": 64}}
    return {
        name: _made(
            create, _image(size, batch=4 if size < 200 else 2), model_name=name, num_classes=10, **options.get(name, {})
        )
        for size, names in _TIMM.items()
        for name in names.split()
    }


def _smp() -> dict[str, Network]:
    found = {}
    plain = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer"
    pairs = [(name, encoder) for name in plain.split() for encoder in ("resnet18", "timm-efficientnet-b0")]
    pairs += [("DPT", "tu-vit_tiny_patch16_224"), ("DPT", "tu-vit_tiny_r_s16_p8_224")]
    for name, encoder in pairs:
        path, size = f"segmentation_models_pytorch.{name}", {"DPT": 224, "PAN": 128}.get(name, 64)
        found[f"{name}-{encoder}"] = _made(
            path, _image(size, batch=2), encoder_name=encoder, encoder_weights=None, classes=3
        )
    return found


_TWO, _STEPS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, {"channels": (8, 16, 32), "strides": (2, 2)}
_ONE = {"spatial_dims": 2, "in_channels": 1}
_CLASSES = {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 5}
_GREY, _GREY32, _LABELS = _image(64, 1, 2), _image(32, 1, 2), _image(32, 3, 2)
_NORM = {"channels": (32, 32), "attention_levels": (False, True), "num_res_blocks": 1}
_HALVES = {"channels": (8, 16, 32), "strides": (2, 2, 2)}
_FEATURES = {"features": (8, 8, 16, 32, 64, 8)}
_WINDOW = {"in_shape": (1, 32, 32)}
_DYN = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (8, 16, 32)}
_VIT = {"in_channels": 1, "img_size": (32, 32), "patch_size": 8, "spatial_dims": 2, "hidden_size": 48, "mlp_dim": 64}
_VIT |= {"num_layers": 2, "num_heads": 4}
_MONAI: dict[str, tuple[Any, ...]] = {
    "AHNet": ({**_TWO, "psp_block_num": 2}, (1, 1, 128, 128)),
    "AttentionUnet": (_TWO | _STEPS, _GREY),
    "AutoEncoder": (_TWO | _HALVES, _GREY),
    "AutoencoderKL": (_TWO | _NORM, _GREY32),
    "BasicUNet": (_TWO | _FEATURES, _GREY),
    "BasicUNetPlusPlus": (_TWO | _FEATURES, _GREY),
    "Classifier": (_WINDOW | _STEPS | {"classes": 5}, _GREY32),
    "ControlNet": (_ONE | _NORM | {"num_head_channels": 8, "conditioning_embedding_in_channels": 1,
                                 "conditioning_embedding_num_channels": (16,)}, _GREY32, (-1, 2), _GREY32),
    "Critic": (_WINDOW | _STEPS, _GREY32),
    "DenseNet121": (_TWO, _GREY),
    "DenseNet169": (_TWO, _GREY),
    "DiffusionModelUNet": (_TWO | _NORM | {"num_head_channels": 8}, _GREY32, (-1, 2)),
    "Discriminator": (_WINDOW | _STEPS, _GREY32),
    "DynUNet": (_TWO | _DYN, _GREY),
    "EfficientNetBN": (_ONE | {"model_name": "efficientnet-b0", "pretrained": False, "num_classes": 5}, _GREY),
    "EfficientNetBNFeatures": (_ONE | {"model_name": "efficientnet-b0", "pretrained": False}, _GREY),
    "FlexibleUNet": ({"in_channels": 1, "out_channels": 2, "backbone": "resnet18"}, _GREY),
    "FlexibleUNet-efficientnet": ({"in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0"}, _GREY),
    "Generator": ({"latent_shape": (6,), "start_shape": (16, 4, 4), "channels": (16, 8, 1), "strides": (2, 2, 1)},
                  (2, 6)),
    "GlobalNet": (_ONE | {"image_size": [32, 32], "num_channel_initial": 4, "depth": 2}, _GREY32),
    "HighResNet": (_TWO, _GREY32),
    "HoVerNet": ({"in_channels": 3, "out_classes": 5, "mode": "fast"}, (1, 3, 256, 256)),
    "LocalNet": (_ONE | {"num_channel_initial": 4, "extract_levels": (0, 1, 2), "out_channels": 2}, _GREY32),
    "MaskedAutoEncoderViT": (_VIT | {"decoder_hidden_size": 48, "decoder_mlp_dim": 64, "decoder_num_layers": 1,
                                    "decoder_num_heads": 4}, _GREY32),
    "MedNeXtS": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, _GREY32),
    "MultiScalePatchDiscriminator": (_ONE | {"num_d": 2, "num_layers_d": 2, "channels": 8}, _GREY),
    "PatchDiscriminator": (_ONE | {"num_layers_d": 3, "channels": 8}, _GREY),
    "Quicknat": ({"num_classes": 3, "num_channels": 1, "num_filters": 8}, _GREY),
    "RegUNet": (_ONE | {"num_channel_initial": 4, "depth": 2, "out_channels": 2}, _GREY32),
    "Regressor": (_WINDOW | _STEPS | {"out_shape": (3,)}, _GREY32),
    "ResNetFeatures": ({"model_name": "resnet18", "spatial_dims": 2, "in_channels": 1, "pretrained": False}, _GREY),
    "SEResNet50": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 5}, _GREY),
    "SEResNext50": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 5}, _GREY),
    "SENet": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 5, "block": "se_bottleneck", "layers": (1, 1, 1, 1),
               "groups": 64, "reduction": 16}, _GREY),
    "SPADEAutoencoderKL": (_TWO | _NORM | {"label_nc": 3}, _GREY32, _LABELS),
    "SPADEDiffusionModelUNet": (_TWO | _NORM | {"label_nc": 3, "num_head_channels": 8}, _GREY32, (-1, 2), _LABELS),
    "SPADENet": (_TWO | {"label_nc": 3, "input_shape": (32, 32), "channels": [32, 16], "is_vae": False}, _LABELS),
    "SegResNet": (_TWO, _GREY),
    "SegResNetDS": (_TWO | {"init_filters": 8}, _GREY),
    "SegResNetDS2": (_TWO | {"init_filters": 8}, _GREY),
    "SegResNetVAE": (_TWO | {"input_image_size": (64, 64)}, _GREY),
    "SwinUNETR": (_TWO | {"feature_size": 12}, _GREY),
    "TorchVisionFCModel": ({"model_name": "resnet18", "num_classes": 5, "dim": 2, "use_conv": True, "pool": None},
                           _image(64)),
    "UNETR": (_TWO | {"img_size": (32, 32), "hidden_size": 48, "mlp_dim": 64, "num_heads": 4, "feature_size": 4},
              _GREY32),
    "UNet": (_TWO | _STEPS | {"num_res_units": 2}, _GREY),
    "VNet": (_TWO | {"dropout_dim": 2}, _GREY),
    "VQVAE": (_TWO | {"channels": (8, 8), "num_res_channels": (8, 8), "downsample_parameters": ((2, 4, 1, 1),) * 2,
                     "upsample_parameters": ((2, 4, 1, 1, 0),) * 2, "num_embeddings": 8, "embedding_dim": 8},
              _GREY32),
    "VarAutoEncoder": ({"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1, "latent_size": 4} | _HALVES,
                       _GREY32),
    "ViT": (_VIT | {"classification": True, "num_classes": 5}, _GREY32),
    "ViTAutoEnc": (_VIT | {"patch_size": 16}, _GREY32),
    "VoxelMorphUNet": ({"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 8, "channels": (8, 8, 8, 8),
                        "final_conv_channels": (8,)}, _image(32, 2, 2)),
}  # fmt: skip


def _monai() -> dict[str, Network]:
    nets, found = "monai.networks.nets", {}
    for name, (options, *shapes) in _MONAI.items():
        found[name] = _made(f"{nets}.{name.partition('-')[0]}", *shapes, **options)
    for name in ("resnet10", "resnet18", "resnet50"):
        found[name] = _made(f"{nets}.{name}", _GREY, **_CLASSES)
    found["VoxelMorph"] = _made(f"{nets}.VoxelMorph", _GREY32, _GREY32, spatial_dims=2)
    found["DiNTS"] = Network(_dints, partial(images, _GREY), pickles=False)
    for name in ("GlobalNet", "VQVAE"):
        found[name] = replace(found[name], single=True)
    return found


def _dints() -> nn.Module:
    space = call("monai.networks.nets.TopologyInstance", spatial_dims=2, num_blocks=3, num_depths=3, device="cpu")
    return call("monai.networks.nets.DiNTS", space, in_channels=1, num_classes=2, spatial_dims=2, use_downsample=True)


def networks() -> dict[str, Network]:
    """All of them, by library/name; nothing is imported or built yet."""
    libraries = {"smp": _smp, "monai": _monai, "timm": _timm, "torchvision": _torchvision}
    return {f"{library}/{name}": made for library, found in libraries.items() for name, made in found().items()}
