"""Families of torchvision beyond classifiers: traced, cut for real, and run."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.network.vision import build_torchvision, load_torchvision
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified

load_torchvision()

from torchvision.models import detection, optical_flow, segmentation, video  # noqa: E402 - after
from torchvision.models.detection.anchor_utils import (  # noqa: E402 - torchvision is loadable
    AnchorGenerator,
    DefaultBoxGenerator,
)
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402 - only now


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression by the definition."""
    kept: list[int] = []
    lower, upper = boxes[:, None, :2], boxes[:, None, 2:]
    sides = torch.minimum(upper, upper.transpose(0, 1)) - torch.maximum(
        lower, lower.transpose(0, 1)
    )
    overlap = sides.clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = area[:, None] + area - overlap
    for index in scores.argsort(descending=True).tolist():
        if all(overlap[index, other] <= threshold * union[index, other] for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide the operators of torchvision's compiled part where that does not load."""
    extension = importlib.import_module("torchvision.extension")
    if extension._has_ops():
        yield
        return
    boxes = importlib.import_module("torchvision.ops.boxes")
    roi_align = importlib.import_module("torchvision.ops.roi_align")
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
        "int pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("roi_align", roi_align._roi_align, "CPU")
    library.impl("nms", _nms, "CPU")
    for module in (boxes, roi_align):
        monkeypatch.setattr(module, "_assert_has_ops", lambda: None)
    monkeypatch.setattr(roi_align, "_has_ops", lambda: True)
    yield
    library._destroy()


def _everything_holds(network: Network, traced: Network) -> None:
    assert not network.unsupported
    assert network.frozen == traced.frozen, "a trial cut found what a rule got wrong"


def _half(network: Network) -> nn.Module:
    kept = {g.name: tuple(range(0, g.size, 2)) for g in network.groups if g.size // 2 >= g.least}
    return Surgeon(network).cut(PruningPlan(kept)).eval()


class _Backbone(nn.Sequential):
    """Three convolutions, stride 8."""

    def __init__(self, out_channels: int = 16) -> None:
        layers: list[nn.Module] = []
        for wide, wider in ((3, 8), (8, 12), (12, out_channels)):
            layers += [nn.Conv2d(wide, wider, 3, 2, 1), nn.BatchNorm2d(wider), nn.ReLU()]
        super().__init__(*layers)
        self.out_channels = out_channels


class _Named(_Backbone):
    """Returns its features by name, as the segmentation models want them."""

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=super().forward(x))


def _boxes(**heads: object) -> dict[str, object]:
    return {
        "rpn_anchor_generator": AnchorGenerator(((16, 32),), ((0.5, 1.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 3, 2),
        "box_head": detection.faster_rcnn.TwoMLPHead(16 * 9, 24),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(24, 3),
        "rpn_pre_nms_top_n_test": 20,
        "rpn_post_nms_top_n_test": 6,
        "box_detections_per_img": 4,
        "min_size": 48,
        "max_size": 64,
        **heads,
    }


def _masks() -> nn.Module:
    return detection.MaskRCNN(
        _Backbone(),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(16, (12, 12), 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(12, 10, 3),
        **_boxes(),
    )


def _keypoints() -> nn.Module:
    return detection.KeypointRCNN(
        _Backbone(),
        keypoint_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(16, (12, 12)),
        keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(12, 3),
        **_boxes(),
    )


def _single(detector: Callable[..., nn.Module]) -> nn.Module:
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return detector(
        _Backbone(32), 3, min_size=48, max_size=64, anchor_generator=anchors, topk_candidates=20
    )


def _ssd() -> nn.Module:
    return detection.ssd.SSD(
        _Named(),
        DefaultBoxGenerator([[2]]),
        (48, 64),
        3,
        head=detection.ssd.SSDHead([16], [4], 3),
        topk_candidates=10,
    )


#: Detectors around a tiny backbone, and what each returns of an image.
DETECTORS = {
    "faster_rcnn": (lambda: detection.FasterRCNN(_Backbone(), **_boxes()), set()),
    "mask_rcnn": (_masks, {"masks"}),
    "keypoint_rcnn": (_keypoints, {"keypoints", "keypoints_scores"}),
    "retinanet": (lambda: _single(detection.RetinaNet), set()),
    "fcos": (lambda: _single(detection.FCOS), set()),
    "ssd": (_ssd, set()),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_cut_up_to_the_layers_that_make_boxes(name: str) -> None:
    build, more = DETECTORS[name]
    torch.manual_seed(0)
    model = build().eval()
    images = [torch.rand(3, 40, 56), torch.rand(3, 48, 48)]
    traced = trace(model, (images,))
    network = verified(traced)

    _everything_holds(network, traced)
    paths = {member.path for group in network.groups for member in group.members}
    convolutions = {f"backbone.{index}.weight" for index in (0, 3, 6)}
    assert convolutions <= paths
    heads = {
        "faster_rcnn": {"roi_heads.box_head.fc6.weight", "roi_heads.box_head.fc7.weight"},
        "mask_rcnn": {
            "roi_heads.mask_head.0.0.weight",
            "roi_heads.mask_predictor.conv5_mask.weight",
        },
        "keypoint_rcnn": {"roi_heads.keypoint_head.0.weight", "roi_heads.keypoint_head.2.weight"},
        "retinanet": {"head.classification_head.conv.3.0.weight"},
        "fcos": {"head.regression_head.conv.0.weight"},
        "ssd": set(),
    }
    assert heads[name] <= paths
    with torch.no_grad():
        found = _half(network)(images)
    assert len(found) == 2
    assert all({"boxes", "scores", "labels"} | more == set(one) for one in found)


class _FaultyBoxHead(nn.Module):
    """Multiplies by the number of channels it finds: cutting differs from zeroing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16 * 9, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.flatten(1))
        return torch.relu(y) * y.shape[1]


def test_a_fault_behind_the_choice_of_boxes_is_found() -> None:
    torch.manual_seed(0)
    model = detection.FasterRCNN(_Backbone(), **_boxes(box_head=_FaultyBoxHead())).eval()
    network = verified(trace(model, ([torch.rand(3, 48, 48), torch.rand(3, 48, 48)],)))
    assert "cutting differs from zeroing" in network.frozen["roi_heads.box_head.fc"]
    assert "backbone.3" in {group.name for group in network.groups}


def _small_mvit() -> nn.Module:
    block = video.mvit.MSBlockConfig
    return video.MViT(
        (32, 32),
        4,
        [
            block(2, 16, 32, [3, 3, 3], [], [1, 2, 2], []),
            block(4, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        ],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=4,
    )


def _small_swin() -> nn.Module:
    return video.SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 4, 4], num_classes=4)


#: Small configurations of the other families, with their inputs.
OTHERS: dict[str, tuple[Callable[[], nn.Module], object]] = {
    "swin3d": (_small_swin, torch.randn(1, 3, 4, 32, 32)),
    "mvit": (_small_mvit, torch.randn(1, 3, 4, 32, 32)),
    "lraspp": (
        lambda: build_torchvision("lraspp_mobilenet_v3_large", num_classes=4),
        torch.randn(1, 3, 64, 64),
    ),
    "deeplabv3": (
        lambda: segmentation.DeepLabV3(_Named(), segmentation.deeplabv3.DeepLabHead(16, 4, (2, 4))),
        torch.randn(1, 3, 64, 64),
    ),
    "fcn": (
        lambda: segmentation.FCN(_Named(), segmentation.fcn.FCNHead(16, 4)),
        torch.randn(1, 3, 64, 64),
    ),
    "raft": (
        lambda: optical_flow.raft_small(weights=None),
        {
            "image1": torch.randn(1, 3, 128, 128),
            "image2": torch.randn(1, 3, 128, 128),
            "num_flow_updates": 2,
        },
    ),
}


# An InstanceNorm without parameters reads its width only for this warning.
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize("name", OTHERS)
def test_segmentation_video_and_optical_flow(name: str) -> None:
    build, inputs = OTHERS[name]
    torch.manual_seed(0)
    traced = trace(build().eval(), inputs)
    network = verified(traced)
    # RAFT divides by the square root of the number of channels that it compares, and insists on
    # more channels of context than its state has.
    counted = {"raft": {"feature_encoder.conv", "context_encoder.conv#2"}}.get(name, set())
    assert not network.unsupported
    found = {key: why for key, why in network.frozen.items() if key not in traced.frozen}
    assert set(found) <= counted, found
    assert network.ops.prunable_shares()[0] > 0.85
    widths = np.array([[(group.size + 1) // 2 for group in network.groups]])
    assert network.ops.macs(widths)[0] < 0.6 * network.ops.macs()[0]


SLOW = {
    "fcn_resnet50": torch.randn(1, 3, 64, 64),
    "deeplabv3_mobilenet_v3_large": torch.randn(1, 3, 64, 64),
    "r3d_18": torch.randn(1, 3, 8, 32, 32),
    "r2plus1d_18": torch.randn(1, 3, 8, 32, 32),
    "mc3_18": torch.randn(1, 3, 8, 32, 32),
    "s3d": torch.randn(1, 3, 16, 224, 224),
    "swin3d_t": torch.randn(1, 3, 4, 64, 64),
    "mvit_v1_b": torch.randn(1, 3, 16, 224, 224),
    **dict.fromkeys(
        (
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            "retinanet_resnet50_fpn_v2",
            "fcos_resnet50_fpn",
            "ssd300_vgg16",
            "ssdlite320_mobilenet_v3_large",
        ),
        ([torch.rand(3, 96, 96), torch.rand(3, 80, 96)],),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_published_sizes(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 96} if "_fpn" in name else {}
    traced = trace(build_torchvision(name, num_classes=3, **sizes).eval(), SLOW[name])
    network = verified(traced)
    _everything_holds(network, traced)
    assert network.ops.prunable_shares()[0] > 0.85
