"""CRF-RNN in sadeepj's PyTorch."""

from __future__ import annotations

from atrousops.common.class_names import VOC
from atrousops.models.published import caffe
from atrousops.models.published.entry import Published, State, of_bytes, renamed

_RULES = [
    (r"score_fr\.(.+)", r"network.score.\1"),
    (r"score_pool([34])\.(.+)", r"network.skips.pool\1.\2"),
    (r"upscore2\.(.+)", r"network.doublings.pool4.\1"),
    (r"upscore_pool4\.(.+)", r"network.doublings.pool3.\1"),
    (r"upscore8\.(.+)", r"network.upscore.\1"),
]
_CRF = [
    (r"crfrnn\.spatial_ker_weights", "crf.gaussian_weight"),
    (r"crfrnn\.bilateral_ker_weights", "crf.bilateral_weight"),
    (r"crfrnn\.compatibility_matrix", "crf.compatibility"),
]


def change(state: State) -> State:
    found = renamed(caffe.vgg16(state, _RULES, prefix="network."), _CRF)
    if "crf.compatibility" in found:
        # The sign is opposite: the release rewards, ours penalises.
        found["crf.compatibility"] = -found["crf.compatibility"]
    # The bias of one deconvolution is added to the bias of pool4's scores.
    bias, other = found.pop("network.doublings.pool4.bias", None), "network.skips.pool4.bias"
    if bias is not None and other in found:
        found[other] = found[other] + bias
    return found


ENTRIES = {
    "crfrnn_voc": Published(
        "crfrnn",
        {},
        VOC,
        "https://github.com/sadeepj/crfasrnn_pytorch (crfasrnn_weights.pth)",
        "",
        size=500,
        change=change,
        **of_bytes(123.68, 116.779, 103.939),
    )
}
