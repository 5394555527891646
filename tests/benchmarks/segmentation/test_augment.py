import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted
from tiny_worlds import INPUT, tiny_protocol

from benchmarks.data.transforms import _scaled
from benchmarks.segmentation import augment
from benchmarks.segmentation.settings import Augment

AUGMENT: Augment = tiny_protocol().augment
SEEDS = st.integers(0, 2**32 - 1)


def scene(height: int = 40, width: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, 19, (height, width), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(10, 90), st.integers(10, 90))
def test_sample_is_a_function_of_the_generator(seed: int, height: int, width: int) -> None:
    image, label = scene(height, width)
    kept = image.copy(), label.copy()
    first = augment.training_sample(image, label, AUGMENT, INPUT, np.random.default_rng(seed))
    second = augment.training_sample(image, label, AUGMENT, INPUT, np.random.default_rng(seed))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[0].shape == (3, 32, 32)
    assert first[0].dtype == np.float32
    assert first[1].shape == (32, 32)
    assert first[1].dtype == np.int64
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(label, kept[1])


def test_different_generators_differ() -> None:
    image, label = scene()
    samples = [
        augment.training_sample(image, label, AUGMENT, INPUT, np.random.default_rng(seed))[0]
        for seed in range(4)
    ]
    assert len({sample.tobytes() for sample in samples}) == 4


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((1052, 1914), 512, (512, 932)),  # 931.5 rounds up
        ((1052, 1914), 1024, (1024, 1863)),
        ((100, 400), 1024, (512, 2048)),  # the long side is capped, the short one gets shorter
        ((400, 100), 256, (1024, 256)),
    ],
)
def test_short_side(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    image, label = augment.resize_short_side(image, label, short, 2048)
    assert image.shape[:2] == label.shape == expected


def test_factor_multiplies_the_short_side_and_the_cap() -> None:
    """mmcv's RandomResize of (2048, 1024) by 0.5 to 2 with the ratio kept."""
    wide = AUGMENT.model_copy(
        update={"short_sides": (1024,), "long_side_max": 2048, "factor": (0.5, 2.0), "crop": 2560}
    )
    for factor, size, expected in (
        (0.5, (1052, 1914), (512, 932)),
        (0.5, (100, 400), (256, 1024)),
        (1.2345, (400, 100), (2528, 632)),
    ):
        image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
        scale = min(int(2048 * factor) / max(size), int(1024 * factor) / min(size))
        assert expected == tuple(int(side * scale + 0.5) for side in size)
        draws = [1024, factor, *[0] * 22, 1.0, *[1.0] * 5]  # no flip, no distortion
        _, target = augment.training_sample(image, label, wide, INPUT, Scripted(*draws))
        assert (target != 255).sum() == expected[0] * expected[1]


def test_resize_invents_no_label() -> None:
    image, label = scene()
    label[label > 9] = 255
    _, resized = augment.resize_short_side(image, label, 53, 2048)
    assert set(np.unique(resized)) <= set(np.unique(label))


@given(SEEDS)
def test_crop_cuts_image_and_label_alike(seed: int) -> None:
    label = np.random.default_rng(seed).integers(0, 19, (30, 50), dtype=np.uint8)
    image = np.repeat(label[..., None], 3, axis=2)
    piece, cut = augment.random_crop(image, label, 20, 0.75, np.random.default_rng(seed))
    assert cut.shape == (20, 20)
    np.testing.assert_array_equal(piece[..., 1], cut)


@given(SEEDS)
def test_crop_larger_than_the_image_keeps_it(seed: int) -> None:
    image, label = scene(10, 50)
    piece, cut = augment.random_crop(image, label, 20, 0.75, np.random.default_rng(seed))
    assert cut.shape == (10, 20)
    assert piece.shape == (10, 20, 3)


def test_crop_avoids_one_class() -> None:
    label = np.zeros((8, 64), np.uint8)
    label[:, 58:] = 1  # 2/8 of the crop from column 52, which is not enough; 3/8 from 53
    image = np.repeat(label[..., None], 3, axis=2)
    rng = Scripted(0, 0, 0, 30, 0, 52, 0, 53, 0, 7)  # row and column of each draw
    piece, cut = augment.random_crop(image, label, 8, 0.75, rng)
    np.testing.assert_array_equal(cut, label[:, 53:61])
    np.testing.assert_array_equal(piece, image[:, 53:61])
    assert rng.draws == [0, 7]


def test_crop_keeps_the_eleventh_draw() -> None:
    label = np.zeros((4, 20), np.uint8)
    image = np.zeros((4, 20, 3), np.uint8)
    image[0, :, 0] = np.arange(20)
    rng = Scripted(*[value for start in range(12) for value in (0, start)])
    piece, _ = augment.random_crop(image, label, 4, 0.75, rng)
    assert piece[0, 0, 0] == 10  # one draw and ten more
    assert rng.draws == [0, 11]


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    label = np.full((4, 4), 255, np.uint8)
    label[0, :2] = 3
    assert not augment._mixed(label, 0.75)
    label[1, :2] = 4
    assert augment._mixed(label, 0.75)
    assert not augment._mixed(np.full((4, 4), 255, np.uint8), 0.75)


def test_no_class_share_takes_the_first_draw() -> None:
    rng = Scripted(0, 0)
    augment.random_crop(np.zeros((4, 20, 3), np.uint8), np.zeros((4, 20), np.uint8), 4, 1.0, rng)
    assert rng.draws == []


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip(flip: float) -> None:
    image, label = scene(32, 32)
    fixed = AUGMENT.model_copy(
        update={"short_sides": (32,), "flip": flip, "photometric": False, "max_class_share": 1.0}
    )
    got, cut = augment.training_sample(image, label, fixed, INPUT, np.random.default_rng(0))
    step = -1 if flip else 1
    np.testing.assert_array_equal(cut, label[:, ::step])
    np.testing.assert_array_equal(got, augment.normalise(image[:, ::step], INPUT))


# Draws of photometric: brightness?, amount, contrast last?, contrast?, factor, saturation?, ...
NO, YES = 0.9, 0.1


def test_photometric_can_do_nothing() -> None:
    image, _ = scene()
    same = augment.photometric(image, Scripted(NO, NO, NO, NO, NO))
    np.testing.assert_array_equal(same, image)


def test_brightness_then_contrast_is_cut_off_after_each_step() -> None:
    image = np.array([[[0, 100, 250]]], np.uint8)
    got = augment.photometric(image, Scripted(YES, 20.5, NO, YES, 1.5, NO, NO))
    # 20.5 -> 20 -> 30; 120.5 -> 120 -> 180; 270.5 -> 255 -> 382 -> 255
    np.testing.assert_array_equal(got, [[[30, 180, 255]]])


def test_contrast_can_come_last() -> None:
    image = np.array([[[10, 100, 200]]], np.uint8)
    got = augment.photometric(image, Scripted(NO, YES, NO, NO, YES, 0.5))
    np.testing.assert_array_equal(got, [[[5, 50, 100]]])


def test_saturation_and_hue() -> None:
    red = np.array([[[200, 100, 100]]], np.uint8)  # H 0, S 127, V 200
    got = augment.photometric(red, Scripted(NO, NO, NO, YES, 0.5, NO))[0, 0]
    _, saturation, value = colorsys.rgb_to_hsv(*(got / 255))
    assert value == pytest.approx(200 / 255, abs=0.01)
    assert saturation == pytest.approx(63 / 255, abs=0.01)
    got = augment.photometric(red, Scripted(NO, NO, NO, NO, YES, -18))[0, 0]
    hue = colorsys.rgb_to_hsv(*(got / 255))[0]
    assert hue * 360 == pytest.approx(324, abs=1)  # 18 of 180 steps below red


def test_channel_order_does_not_matter_for_saturation_and_hue() -> None:
    image, _ = scene()
    bgr = cv2.cvtColor(image[..., ::-1].copy(), cv2.COLOR_BGR2HSV)
    np.testing.assert_array_equal(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), bgr)


@given(st.floats(0.5, 1.5), st.floats(-32, 32))
def test_table_equals_arithmetic(factor: float, offset: float) -> None:
    values = np.arange(256, dtype=np.uint8)
    plain = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    expected = np.clip(plain, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(_scaled(values, factor, offset), expected)


def test_padding_is_zero_after_normalisation_and_255_in_the_label() -> None:
    image, label = scene(20, 24)
    padded, target = augment.pad(augment.normalise(image, INPUT), label.astype(np.int64), 32)
    assert padded.shape == (3, 32, 32)
    assert not padded[:, 20:].any()
    assert not padded[:, :, 24:].any()
    assert (target[20:] == 255).all()
    assert (target[:, 24:] == 255).all()
    np.testing.assert_array_equal(target[:20, :24], label)


def test_normalise_by_hand() -> None:
    image = np.array([[[255, 0, 51]]], np.uint8)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(augment.normalise(image, INPUT)[:, 0, 0], expected, rtol=1e-5)
