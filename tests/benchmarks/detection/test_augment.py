import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scripted import Scripted
from tiny_voc import AUGMENT
from tiny_worlds import INPUT

from benchmarks.data.transforms import photometric_float
from benchmarks.detection import augment
from benchmarks.detection.settings import DetectionAugment
from benchmarks.tasks import load_protocol


def rules(**changes: object) -> DetectionAugment:
    return AUGMENT.model_copy(update={"photometric": False, **changes})


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def sample(
    image: np.ndarray, given_boxes: np.ndarray, spec: DetectionAugment, seed: int = 0
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return augment.training_sample(image, given_boxes, labels(len(given_boxes)), spec, INPUT, rng)


def painted(size: tuple[int, int], given_boxes: np.ndarray) -> np.ndarray:
    """Black with a bright rectangle of its own brightness for each box."""
    image = np.zeros((*size, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(given_boxes.astype(int)):
        image[y1:y2, x1:x2] = 100 + 50 * number
    return image


def unnormalised(image: np.ndarray) -> np.ndarray:
    mean, std = np.array(INPUT.mean), np.array(INPUT.std)
    return (image.transpose(1, 2, 0) * std + mean) * 255


@pytest.mark.parametrize(
    ("size", "base", "factor", "expected"),
    [
        ((720, 1280), (1024, 1024), 1.0, (576, 1024)),
        ((720, 1280), (1024, 1024), 0.5, (288, 512)),
        ((100, 50), (48, 64), 1.0, (48, 24)),
        ((40, 64), (40, 64), 1.0, (40, 64)),
        ((4, 300), (10, 10), 1.0, (1, 10)),
    ],
)
def test_resize_fits_into_base_and_moves_boxes(
    size: tuple[int, int], base: tuple[int, int], factor: float, expected: tuple[int, int]
) -> None:
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    given_boxes = boxes((0, 0, width, height), (width / 4, height / 2, width / 2, height))
    resized, moved = augment.resize(image, given_boxes, base, factor)
    assert resized.shape[:2] == expected
    h, w = expected
    np.testing.assert_allclose(moved, [[0, 0, w, h], [w / 4, h / 2, w / 2, h]], rtol=1e-6)
    assert moved.dtype == np.float32


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_image(seed: int) -> None:
    """Whatever resize, crop and flip do, a box lies around its own rectangle."""
    given_boxes = boxes((8, 8, 24, 24), (32, 16, 48, 32))
    image = painted((48, 64), given_boxes)
    spec = rules(scale=(1.0, 1.0), crop=40, min_visible=0.0)
    out = sample(image, given_boxes, spec, seed)
    picture = unnormalised(out["image"])[..., 0].round()
    assert out["size"].tolist() == [40, 40]
    for (x1, y1, x2, y2), label in zip(out["boxes"].astype(int), out["labels"], strict=True):
        mask = np.zeros((40, 40), bool)
        mask[y1:y2, x1:x2] = True
        np.testing.assert_array_equal(picture == 100 + 50 * label, mask)


def test_padding_lies_at_the_bottom_and_on_the_right() -> None:
    given_boxes = boxes((0, 0, 20, 10))
    spec = rules(base=(10, 20), scale=(1.0, 1.0), flip=0.0)
    out = sample(np.full((10, 20, 3), 200, np.uint8), given_boxes, spec)
    assert out["image"].shape == (3, 32, 32)
    assert out["size"].tolist() == [10, 20]
    assert out["size"].dtype == np.int64
    assert (out["image"][:, :10, :20] != 0).all()
    assert (out["image"][:, 10:] == 0).all()
    assert (out["image"][:, :, 20:] == 0).all()
    assert out["boxes"].tolist() == [[0, 0, 20, 10]]


def test_flip_is_its_own_inverse() -> None:
    given_boxes = boxes((0, 1, 3, 5), (7.5, 0, 10, 2))
    image = np.arange(5 * 10 * 3, dtype=np.uint8).reshape(5, 10, 3)
    once = augment.flip(image, given_boxes)
    assert once[1].tolist() == [[7, 1, 10, 5], [0, 0, 2.5, 2]]
    twice = augment.flip(*once)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], given_boxes)


@pytest.mark.parametrize(
    ("min_side", "min_visible", "kept"),
    [(1.0, 0.0, [0, 1, 2, 3]), (3.0, 0.0, [0, 1, 2]), (1.0, 0.3, [0, 1]), (1.0, 0.5, [0, 1])],
)
def test_minimum_visible_size(min_side: float, min_visible: float, kept: list[int]) -> None:
    whole = boxes((0, 0, 10, 10), (-10, 0, 10, 10), (-30, 0, 10, 10), (-8, 0, 2, 10))
    inside = np.clip(whole, 0, 100)
    spec = rules(min_side=min_side, min_visible=min_visible)
    kept_boxes, numbers = augment.visible(inside, whole, labels(4), spec)
    assert numbers.tolist() == kept
    np.testing.assert_array_equal(kept_boxes, inside[kept])


def test_boxes_outside_the_crop_are_dropped() -> None:
    whole = boxes((-20, 0, -5, 10), (0, 0, 10, 10))
    spec = rules(min_visible=0.0)
    kept_boxes, numbers = augment.visible(np.clip(whole, 0, 32), whole, labels(2), spec)
    assert (len(kept_boxes), numbers.tolist()) == (1, [1])


def test_boxes_that_become_too_small_are_dropped() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    given_boxes = boxes((0, 0, 400, 400), (10, 10, 12, 200))
    spec = rules(base=(32, 32), scale=(1.0, 1.0))
    assert sample(image, given_boxes, spec)["labels"].tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(20, 90),
    st.integers(20, 90),
    st.integers(0, 6),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.booleans(),
)
def test_boxes_are_always_valid(
    seed: int, height: int, width: int, count: int, min_visible: float, negative: bool
) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 0.8, (count, 2))
    ends = np.minimum(corners + rng.uniform(0.001, 0.5, (count, 2)), 1)
    given_boxes = boxes(*np.hstack([corners, ends]) * np.array([width, height] * 2))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    spec = rules(scale=(0.1, 2.0), min_visible=min_visible, negative_crops=negative)
    out = sample(image, given_boxes, spec, seed)
    h, w = out["size"]
    x1, y1, x2, y2 = out["boxes"].T
    assert out["image"].shape == (3, 32, 32)
    assert ((x2 - x1 >= spec.min_side) & (y2 - y1 >= spec.min_side)).all()
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= w) & (y2 <= h)).all()
    assert len(out["boxes"]) == len(out["labels"]) == len(set(out["labels"].tolist()))
    assert out["boxes"].dtype == out["image"].dtype == np.float32


def test_negative_crops() -> None:
    """One box in a large image: four of five crops lose it."""
    image, given_boxes = np.zeros((200, 200, 3), np.uint8), boxes((20, 20, 60, 60))
    base = {"base": (200, 200), "scale": (1.0, 1.0), "crop": 100}
    counts = {
        allowed: [
            len(sample(image, given_boxes, rules(negative_crops=allowed, **base), seed)["boxes"])
            for seed in range(40)
        ]
        for allowed in (True, False)
    }
    assert sum(counts[True]) < 15
    assert sum(counts[False]) > 25


def test_images_without_boxes() -> None:
    out = sample(np.zeros((40, 64, 3), np.uint8), boxes(), rules())
    assert out["boxes"].shape == (0, 4)
    assert out["labels"].shape == (0,)
    assert out["labels"].dtype == np.int64


def test_photometric_changes_colours_alone() -> None:
    given_boxes = boxes((8, 8, 40, 40))
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    plain = sample(image, given_boxes, rules(), 5)
    changed = sample(image, given_boxes, rules(photometric=True), 5)
    np.testing.assert_array_equal(plain["boxes"], changed["boxes"])
    assert not np.array_equal(plain["image"], changed["image"])


def test_distortion_of_mmdet_permutes_channels_and_turns_hue_by_18_degrees() -> None:
    rng, red = np.random.default_rng(0), np.full((1, 1, 3), (200, 30, 30), np.uint8)
    draws = np.stack([photometric_float(red, rng)[0, 0] for _ in range(2000)])
    assert draws.dtype == np.float32
    assert (draws > 255).any()
    assert (draws != draws.round()).any()
    moved = draws.argmax(1) != 0
    assert moved.mean() == pytest.approx(1 / 3, abs=0.04)  # half of the draws, two of three places
    r, g, b = draws[~moved].T
    low = np.minimum(g, b)
    hue = 60 * (g - b) / (r - low)
    assert 17 < np.abs(hue).max() < 18.01


def test_channels_change_their_order_in_42_percent() -> None:
    rng, patch = np.random.default_rng(1), np.full((1, 1, 3), (200, 100, 20), np.uint8)
    draws = np.stack([photometric_float(patch, rng)[0, 0] for _ in range(2000)])
    changed = (draws.argsort(1) != [2, 1, 0]).any(1)
    assert changed.mean() == pytest.approx(5 / 12, abs=0.04)


def test_float_distortion_can_do_nothing_and_leave_the_range() -> None:
    image = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    no, yes = 0.9, 0.1
    np.testing.assert_allclose(photometric_float(image, Scripted(*[no] * 6)), image, atol=1e-3)
    # Brightness -20, contrast 1.5 after it: nothing is clipped in between.
    given = Scripted(yes, -20.0, yes, 1.5, no, no, no, no)
    grey = np.full((1, 1, 3), 10, np.uint8)
    np.testing.assert_allclose(photometric_float(grey, given), -15, atol=1e-3)


def test_protocols_distort_as_they_say() -> None:
    assert load_protocol("soma_sdgod").augment.distortion == "mmdet"
    assert load_protocol("mini_sdgod").augment.distortion == "mmseg"
    given_boxes = boxes((8, 8, 40, 40))
    image = np.full((48, 64, 3), (200, 30, 30), np.uint8)
    spec = rules(photometric=True, distortion="mmdet", scale=(1.0, 1.0))
    first = [sample(image, given_boxes, spec, seed)["image"][:, 0, 0] for seed in range(30)]
    colours = np.array(first) * np.array(INPUT.std) + np.array(INPUT.mean)
    assert 3 < (colours.argmax(1) != 0).sum() < 20


def test_settings_are_checked() -> None:
    fields = AUGMENT.model_dump()
    for bad in ({"scale": (2.0, 1.0)}, {"min_side": 0.0}, {"min_visible": 1.5}, {"empty": "some"}):
        with pytest.raises(ValidationError):
            DetectionAugment.model_validate({**fields, **bad})
