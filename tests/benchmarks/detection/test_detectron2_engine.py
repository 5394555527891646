"""Both engines are one detector: with the same weights they give the same numbers."""

import copy

import numpy as np
import pytest
import torch
from tiny_detection import ONE_MAP, batch, detector, head
from torch import nn
from torchvision.models.detection.image_list import ImageList

from benchmarks.backbones import load_backbone
from benchmarks.detection import engines
from benchmarks.detection.pyramid import padded
from benchmarks.errors import UserError
from benchmarks.optim import make_optimizer
from benchmarks.tasks import load_protocol

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("one_thread")]
WIDE = {
    "pyramid": {"scales": [4.0, 2.0, 1.0, 0.5], "extra": True},
    "rpn": {
        "anchors": [[3, 4], [6, 8], [12, 16], [24, 32], [48, 64]],
        "ratios": [0.4, 1.5],
        "convs": 2,
        "nms": 0.61,
        "matching": {"positive": 0.5, "negative": 0.2, "samples": 24, "positive_share": 0.25},
    },
    "roi": {
        "convs": 1,
        "linears": 1,
        "sampling": 0,
        "weights": (8.0, 7.0, 4.0, 3.0),
        "matching": {"positive": 0.6, "negative": 0.4, "samples": 12, "positive_share": 0.7},
        "score": 0.1,
        "nms": 0.37,
        "detections": 9,
    },
}


@pytest.fixture(params=[{}, WIDE], ids=["plain", "wide"])
def twins(request):
    """A detector of each engine with the same weights, large enough for boxes to differ."""
    ours, theirs = (
        detector(engine=engine, **request.param) for engine in ("torchvision", "detectron2")
    )
    torch.manual_seed(5)
    for layer in (
        ours.rpn.head.bbox_pred,
        ours.rpn.head.cls_logits,
        *ours.roi.box_predictor.children(),
    ):
        nn.init.normal_(layer.weight, std=0.1)
    copy_weights(ours, theirs)
    return ours, theirs


@torch.no_grad()
def copy_weights(ours, theirs):
    """From torchvision's layers to Detectron2's, which stand in the same order."""
    theirs.backbone.load_state_dict(ours.backbone.state_dict())
    rcnn = theirs.rcnn
    pairs = [
        (ours.pyramid, rcnn.backbone),
        (ours.rpn.head, rcnn.proposal_generator.rpn_head),
        (ours.roi.box_head, rcnn.roi_heads.box_head),
    ]
    for one, other in pairs:
        for value, target in zip(one.parameters(), other.parameters(), strict=True):
            target.copy_(value)
    one, other = ours.roi.box_predictor, rcnn.roi_heads.box_predictor
    for name in ("weight", "bias"):
        scores, deltas = getattr(one.cls_score, name), getattr(one.bbox_pred, name)
        # The background is torchvision's first class and Detectron2's last, there without a box.
        getattr(other.cls_score, name).copy_(scores.roll(-1, 0))
        getattr(other.bbox_pred, name).copy_(deltas[4:])


def inputs(ours):
    """Images of odd sides, padded, with their sizes."""
    torch.manual_seed(7)
    return padded(torch.randn(2, 3, 45, 37), ours.multiple), [(45, 37)] * 2


def test_anchors_are_equal(twins):
    ours, theirs = twins
    images, sizes = inputs(ours)
    maps = ours.feature_maps(images)
    anchors, _ = ours.rpn.anchor_generator(ImageList(images, sizes), maps)
    found = theirs.rcnn.proposal_generator.anchor_generator(maps)
    assert torch.allclose(torch.cat([each.tensor for each in found]), anchors, atol=1e-5)


def test_feature_maps_are_equal(twins):
    ours, theirs = twins
    images, _ = inputs(ours)
    maps, found = ours.feature_maps(images), theirs.rcnn.backbone(images)
    assert len(maps) == len(found)
    for one, other in zip(maps, found.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_equal(twins, training):
    ours, theirs = (each.train(training) for each in twins)
    seen = []
    for part in (ours.rpn, theirs.rcnn.proposal_generator):
        part.register_forward_hook(lambda module, arguments, result: seen.append(result[0]))
    for model in (ours, theirs):
        model(batch()) if training else model.detect(batch()["image"])
    for one, other in zip(*seen, strict=True):
        assert len(one) > 5
        assert torch.allclose(other.proposal_boxes.tensor, one, atol=1e-5)


def test_detections_are_equal(twins):
    ours, theirs = (each.eval() for each in twins)
    torch.manual_seed(7)
    images = torch.randn(3, 3, 45, 37)
    for one, other in zip(ours.detect(images), theirs.detect(images), strict=True):
        assert len(one.scores) > 5
        np.testing.assert_array_equal(other.labels, one.labels)
        np.testing.assert_allclose(other.scores, one.scores, atol=1e-6)
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_losses_and_gradients_are_equal(twins, empty):
    """Both engines draw their samples in the same order from torch's generator."""
    both = []
    for model in twins:
        torch.manual_seed(11)
        losses = model.train()(batch(empty=empty))
        sum(losses.values()).backward()
        gradients = {name: each.grad for name, each in model.backbone.named_parameters()}
        both.append((losses, gradients))
    (ours, our_gradients), (theirs, their_gradients) = both
    assert ours["rpn_box_reg"] > 0
    assert {name: value.item() for name, value in theirs.items()} == pytest.approx(
        {name: value.item() for name, value in ours.items()}, rel=1e-5
    )
    for name, gradient in our_gradients.items():
        if gradient is not None:
            assert torch.allclose(their_gradients[name], gradient, rtol=1e-3, atol=1e-5), name


def test_every_parameter_has_one_name_and_the_optimizer_its_own_groups():
    model = detector(engine="detectron2")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    sizes = {}
    for engine in ("torchvision", "detectron2"):
        model = detector(engine=engine)
        groups = make_optimizer(model, load_protocol("mini_sdgod").recipe, {}).param_groups
        sizes[engine] = {group["name"]: len(group["params"]) for group in groups}
    assert sizes["detectron2"] == sizes["torchvision"]


def test_a_deep_copy_reads_its_own_backbone():
    model = detector(engine="detectron2").train()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    assert twin.rcnn.backbone.net.outside[0] is twin.backbone
    assert twin.backbone.patch_embed.proj.weight.any()


def test_a_model_that_diverged_says_so():
    model = detector(engine="detectron2").train()
    nn.init.constant_(model.rcnn.proposal_generator.rpn_head.anchor_deltas.weight, float("nan"))
    with pytest.raises(FloatingPointError):
        model(batch())


def test_strides_that_are_no_powers_of_two_are_refused():
    backbone = load_backbone(ONE_MAP)
    backbone.patch_embed.patch_size = (14, 14)
    with pytest.raises(UserError, match=r"strides of \[7, 14, 28\] pixels.*engine: torchvision"):
        engines.load("detectron2").Detector(backbone, (3,), head(), 7)
