"""What the torchvision engine builds: pyramid, anchors, pooling, the numbers of the protocol."""

import pytest
import torch
from pydantic import ValidationError
from tiny_detection import batch, detector, head
from torch.nn.functional import interpolate
from torchvision.models.detection.image_list import ImageList

from benchmarks.detection.pyramid import SimplePyramid, padded, strides
from benchmarks.detection.settings import Pyramid, Roi
from benchmarks.detection.torchvision_engine import Anchors, Pooling

pytestmark = pytest.mark.usefixtures("one_thread")


def test_levels_of_the_pyramid_halve_in_size():
    spec = Pyramid(scales=(4.0, 2.0, 1.0, 0.5), channels=8, extra=True)
    torch.manual_seed(0)
    maps = SimplePyramid(32, spec)(torch.randn(2, 32, 6, 4))
    sizes = [(24, 16), (12, 8), (6, 4), (3, 2), (2, 1)]
    assert [tuple(each.shape) for each in maps] == [(2, 8, *size) for size in sizes]
    assert strides(16, spec) == [4, 8, 16, 32, 64]
    assert torch.equal(maps[4], maps[3][..., ::2, ::2])


def test_every_channel_of_a_level_is_normalised():
    torch.manual_seed(0)
    pyramid = SimplePyramid(16, Pyramid(scales=(2.0, 1.0), channels=8))
    for level in pyramid(torch.randn(1, 16, 4, 4)):
        assert level.mean(1).abs().max() < 1e-5
        assert level.var(1, unbiased=False).mean().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scales", [(1.0, 2.0), (4.0, 1.0), (3.0,), ()])
def test_scales_that_are_no_pyramid_are_refused(scales):
    with pytest.raises(ValidationError):
        Pyramid(scales=scales, channels=8)


def test_padding_is_below_and_right_and_zero():
    images = torch.ones(1, 3, 20, 33)
    larger = padded(images, 16)
    assert larger.shape == (1, 3, 32, 48)
    assert torch.equal(larger[..., :20, :33], images)
    assert larger.sum() == images.sum()
    assert padded(images[..., :32, :32], 4).shape == (1, 3, 20, 32)


def test_the_protocols_numbers_reach_the_model():
    changes = {
        "rpn": {"nms": 0.61, "convs": 2},
        "roi": {"nms": 0.37, "score": 0.11, "detections": 9, "weights": (8.0, 8.0, 4.0, 4.0)},
    }
    spec, model = head(**changes), detector(**changes)
    rpn, roi = model.rpn, model.roi
    for part, ours in ((rpn, spec.rpn.matching), (roi, spec.roi.matching)):
        matcher, sampler = part.proposal_matcher, part.fg_bg_sampler
        assert (matcher.high_threshold, matcher.low_threshold) == (ours.positive, ours.negative)
        assert sampler.batch_size_per_image == ours.samples
        assert sampler.positive_fraction == ours.positive_share
    assert (rpn.nms_thresh, len(rpn.head.conv)) == (0.61, 2)
    assert (roi.nms_thresh, roi.score_thresh, roi.detections_per_img) == (0.37, 0.11, 9)
    assert roi.box_coder.weights == (8.0, 8.0, 4.0, 4.0)
    assert (rpn.train().pre_nms_top_n(), rpn.post_nms_top_n()) == (60, 30)
    assert (rpn.eval().pre_nms_top_n(), rpn.post_nms_top_n()) == (40, 20)
    assert roi.box_roi_pool.output_size == (3, 3)
    assert roi.box_predictor.cls_score.out_features == 8


def test_anchors_have_the_stated_area_and_ratio():
    for box in Anchors(((5.0,),), ((0.5, 1.0, 2.0),)).generate_anchors((5.0,), (0.5, 1.0, 2.0)):
        left, top, right, bottom = box.tolist()
        assert (right - left) * (bottom - top) == pytest.approx(25, rel=1e-5)
        assert (left + right, top + bottom) == (0, 0)
    model = detector()
    maps = [torch.zeros(1, 16, side, side) for side in (8, 4, 2)]
    (anchors,) = model.rpn.anchor_generator(ImageList(torch.zeros(1, 3, 32, 32), [(32, 32)]), maps)
    assert len(anchors) == 3 * (64 + 16 + 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert torch.allclose(centres[3], torch.tensor([4.0, 0.0]))  # stride 4, second pixel
    assert torch.allclose(centres[-1], torch.tensor([16.0, 16.0]))  # stride 16, last pixel
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
    assert torch.allclose(sides[[0, 3 * 64, -1]], torch.tensor([6.0, 12.0, 24.0]))


def test_regions_are_pooled_from_the_level_that_fits_their_size():
    spec = Roi(pool=2, sampling=2, canonical_side=32.0, canonical_stride=8)
    pooling = Pooling(spec, [4, 8, 16])
    maps = {str(i): torch.full((2, 3, 64 // s, 64 // s), i + 1.0) for i, s in enumerate((4, 8, 16))}
    sides = [4.0, 15.9, 16.0, 31.9, 32.0, 63.9, 64.0, 200.0]
    boxes = [torch.tensor([[0.0, 0, side, side] for side in sides]), torch.zeros(0, 4)]
    # Half the side, half the stride: 32 px at stride 8, from 64 px on at stride 16.
    wanted = [1, 1, 1, 1, 2, 2, 3, 3]
    assert (pooling.level_of(boxes[0]) + 1).tolist() == wanted
    for sizes in ([(64, 64)] * 2, [(20, 30)] * 2):  # what is padding does not move the strides
        pooled = pooling(maps, boxes, sizes)
        assert pooled.shape == (8, 3, 2, 2)
        inside = pooled[: len(sides) - 1]
        assert inside.amax((1, 2, 3)).tolist() == pytest.approx(wanted[:-1], abs=1e-5)


def test_pooling_reads_where_the_box_is():
    image = torch.arange(32.0).expand(1, 1, 32, 32)  # value = column
    level = interpolate(image, scale_factor=1 / 4, mode="area")
    pooling = Pooling(Roi(pool=2, sampling=2), [4])
    pooled = pooling({"0": level}, [torch.tensor([[8.0, 8, 24, 24]])], [(32, 32)])
    # Bins cover columns 8..16 and 16..24, whose pixels have the means 11.5 and 19.5.
    assert pooled[0, 0, 0].tolist() == pytest.approx([11.5, 19.5], abs=1e-4)


def test_an_extra_level_proposes_and_is_not_pooled_from():
    changes = {"pyramid": {"extra": True}, "rpn": {"anchors": [[6], [12], [24], [48]]}}
    model = detector(**changes)
    assert model.multiple == 32
    assert model.roi.box_roi_pool.steps == [4, 8, 16]
    assert all(part.isfinite() for part in model(batch()).values())
