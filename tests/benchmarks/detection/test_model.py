"""Faster R-CNN on a plain ViT, by both engines: gradients, losses, that it learns and detects."""

from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_detection import ENGINES, ONE_MAP, batch, detector, head

from baselines import METHODS
from benchmarks.backbones import load_backbone
from benchmarks.detection.pyramid import fitting_strides
from benchmarks.distributed import make_fabric
from benchmarks.errors import UserError
from soma import adapt

pytestmark = pytest.mark.usefixtures("one_thread")
INVERTED = {"positive": 0.3, "negative": 0.5, "samples": 4, "positive_share": 0.5}


@pytest.fixture(params=ENGINES)
def build(request):
    return partial(detector, engine=request.param)


def losses(model, seed=0, **which):
    torch.manual_seed(seed)
    return model(batch(**which))


def gradients(model, **which):
    model.zero_grad()
    sum(losses(model, **which).values()).backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_gets_a_gradient(build, empty):
    model = build().train()
    parts = losses(model, empty=empty)
    assert set(parts) == {"objectness", "rpn_box_reg", "classifier", "box_reg"}
    assert all(part.isfinite() and part.dim() == 0 for part in parts.values())
    without = [name for name, grad in gradients(model, empty=empty).items() if grad is None]
    assert without == ["backbone.norm.weight", "backbone.norm.bias"]  # the map comes before it
    dead = [
        name
        for name, grad in gradients(model).items()
        if grad is not None and not grad.any() and "attn.qkv.k.bias" not in name
    ]
    assert dead == []


def test_images_without_boxes_alone_can_be_learnt_from(build):
    nothing = batch(empty=True)
    nothing = {k: [v[1]] if isinstance(v, list) else v[1:] for k, v in nothing.items()}
    parts = build()(nothing)
    assert parts["box_reg"] == parts["rpn_box_reg"] == 0
    assert parts["objectness"] > 0


def test_draws_come_from_the_global_generator_and_gradients_repeat_to_the_bit(build):
    model = build()
    torch.use_deterministic_algorithms(True)  # roi_align's backward pass neither refuses nor varies
    try:
        first = gradients(model)
        again = gradients(model)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(g is None or torch.equal(g, again[name]) for name, g in first.items())
    assert losses(model, seed=1)["classifier"] != losses(model)["classifier"]


def test_it_learns_a_fixed_batch_and_finds_its_objects(build):
    model = build(roi={"score": 0.3})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for step in range(120):
        total = sum(losses(model, seed=step).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert np.mean(history[-10:]) < 0.35 * np.mean(history[:3])
    detected = model.eval().detect(batch()["image"])[0]
    for box, label in zip(batch()["boxes"][0].numpy(), (0, 6), strict=True):
        best = detected.boxes[detected.labels == label]
        assert len(best), f"class {label} is not detected"
        assert np.abs(best[0] - box).max() < 4


def test_detections_lie_in_the_image_and_are_sorted(build):
    model = build(roi={"score": 0.0, "nms": 0.9}).eval()
    images = torch.randn(2, 3, 21, 37)  # no multiple of anything
    for detected in model.detect(images):
        assert 0 < len(detected.scores) <= 10
        assert (detected.boxes >= 0).all()
        assert (detected.boxes[:, [0, 2]] <= 37).all()
        assert (detected.boxes[:, [1, 3]] <= 21).all()
        assert (np.diff(detected.scores) <= 0).all()
        assert set(detected.labels) <= set(range(7))
    nothing = build(roi={"score": 1.0}).eval().detect(images)
    assert [len(detected.scores) for detected in nothing] == [0, 0]


def test_detections_lie_in_the_image_and_not_in_its_padding(build):
    model = build(roi={"score": 0.0, "nms": 0.9}).eval()
    images, sizes = torch.randn(2, 3, 32, 40), [(21, 37), (32, 16)]
    for detected, (height, width) in zip(model.detect(images, sizes), sizes, strict=True):
        assert len(detected.scores)
        assert (detected.boxes >= 0).all()
        assert (detected.boxes <= [width, height] * 2).all()


@pytest.mark.parametrize("method", ["freeze", "full", "vpt", "lora", "soma", "rein", "adaptformer"])
def test_methods_of_every_kind_adapt_the_detector(build, method):
    model = build()
    plain = {name for name, _ in model.named_parameters()}
    adapt(METHODS[method](), model.backbone)
    grads = gradients(model)
    added = [name for name, _ in model.named_parameters() if name not in plain]
    assert bool(added) == (method not in ("freeze", "full"))
    assert all(grads[name] is not None for name in added if name in grads)
    frozen = [name for name in plain if name.startswith("backbone.") and name not in grads]
    assert bool(frozen) == (method != "full")
    assert model.eval().detect(batch()["image"])


def test_a_shorter_type_reaches_the_backbone_only(build):
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = losses(model)
    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts.values())
    close = losses(model)
    assert parts["objectness"].item() == pytest.approx(close["objectness"].item(), rel=0.05)


def test_boxes_beyond_512_pixels_reach_the_heads_unrounded(build):
    model = build().train()
    boxes = torch.tensor([[701.3, 3.2, 717.8, 20.9]])
    image, size = torch.randn(1, 3, 32, 768), torch.tensor([[32, 768]])
    rpn = model.rpn if hasattr(model, "rpn") else model.rcnn.proposal_generator
    targets = []
    rpn.register_forward_pre_hook(lambda _, given: targets.extend(given[2]))
    given = {"image": image, "boxes": [boxes], "labels": [torch.tensor([2])], "size": size}
    parts = make_fabric("cpu", "bf16-mixed").setup_module(model)(given)
    assert all(part.isfinite() for part in parts.values())
    (target,) = targets
    reached = target["boxes"] if isinstance(target, dict) else target.gt_boxes.tensor
    assert torch.equal(reached, boxes)


def test_what_does_not_fit_the_backbone_is_one_line():
    backbone, spec = load_backbone(ONE_MAP), head().pyramid
    with pytest.raises(UserError, match=r"backbone.features \[0, 3\]: the pyramid reads one block"):
        fitting_strides(backbone, (0, 3), spec)
    with pytest.raises(UserError, match=r"backbone.features \[4\]"):
        fitting_strides(backbone, (4,), spec)
    backbone.patch_embed.patch_size = (1, 1)
    with pytest.raises(UserError, match=r"head.pyramid.scales: patches of 1 pixels have no level"):
        fitting_strides(backbone, (3,), spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rpn": {"anchors": [[6], [12]]}}, "2 lists for 3 levels"),
        ({"rpn": {"anchors": [[6], [12], [24, 30]]}}, "every level needs as many sides"),
        ({"pyramid": {"extra": True}}, "3 lists for 4 levels"),
        ({"roi": {"matching": INVERTED}}, "negative 0.5 lies above positive 0.3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        head(**changes)
