import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.segmentation import metrics


def images(classes: int) -> st.SearchStrategy:
    """(label, prediction) with classes that may be absent and ignored pixels."""
    size = st.tuples(st.integers(1, 6), st.integers(1, 6))
    return st.tuples(size, st.integers(0, 2**32 - 1)).map(
        lambda drawn: (
            np.random.default_rng(drawn[1]).choice([*range(classes - 1), 255], drawn[0]),
            np.random.default_rng(drawn[1] + 1).integers(0, classes - 1, drawn[0]),
        )
    )


def by_sets(pairs: list, classes: int) -> list[float | None]:
    """IoU per class from sets of pixel positions, no confusion matrix involved."""
    scores = []
    for wanted in range(classes):
        truth, guess = set(), set()
        for number, (label, prediction) in enumerate(pairs):
            for y in range(label.shape[0]):
                for x in range(label.shape[1]):
                    if label[y, x] == 255:
                        continue
                    if label[y, x] == wanted:
                        truth.add((number, y, x))
                    if prediction[y, x] == wanted:
                        guess.add((number, y, x))
        union = truth | guess
        scores.append(100.0 * len(truth & guess) / len(union) if union else None)
    return scores


@given(st.lists(images(5), min_size=1, max_size=3))
def test_iou_equals_sets_of_pixels(pairs: list) -> None:
    matrix = sum(metrics.confusion(label, guess, 5) for label, guess in pairs)
    expected = by_sets(pairs, 5)
    defined = [score for score in expected if score is not None]
    if not defined:
        with pytest.raises(ValueError, match="no labelled pixel"):
            metrics.summary(matrix)
        return
    summary = metrics.summary(matrix)
    assert summary["IoU"] == expected
    assert summary["IoU"][4] is None  # never in the ground truth, never predicted
    assert summary["mIoU"] == pytest.approx(sum(defined) / len(defined), rel=1e-14)


def test_rows_are_ground_truth() -> None:
    label, guess = np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 0]])
    np.testing.assert_array_equal(
        metrics.confusion(label, guess, 3), [[1, 1, 0], [0, 1, 0], [0] * 3]
    )


def test_predicted_but_absent_class_counts_as_zero() -> None:
    matrix = metrics.confusion(np.array([0, 0]), np.array([0, 1]), 3)
    assert metrics.summary(matrix) == {"mIoU": 25.0, "IoU": [50.0, 0.0, None]}


def test_large_counts_do_not_overflow() -> None:
    matrix = np.full((2, 2), 2**30, dtype=np.int32)
    np.testing.assert_allclose(metrics.iou(matrix), [100 / 3, 100 / 3])


def test_confusion_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="shape"):
        metrics.confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 3)
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        metrics.confusion(np.zeros(2, int), np.array([0, 3]), 3)
