from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_worlds import tiny_protocol, write_label, write_world
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.segmentation import data, metrics, predictions
from benchmarks.segmentation import task as segmentation
from benchmarks.segmentation.data import EvaluationSamples
from benchmarks.segmentation.evaluate import WINDOWS_PER_FORWARD, evaluate, predict, slide, starts

pytestmark = pytest.mark.usefixtures("one_thread")


class Stand(nn.Module):
    """A model whose scores depend on the place in the window, so that wrong windows show."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(19, 3, generator=torch.Generator().manual_seed(0)))
        self.calls: list[int] = []

    def score(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        height, width = images.shape[-2:]
        ramp = torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 2, width)
        return (torch.einsum("kc,bchw->bkhw", self.weight, images) * (1 + ramp)).detach()


def slow_slide(model: Stand, image: Tensor, size: int, stride: int) -> Tensor:
    """Scores (classes, H, W) by the written rule, one window at a time."""
    _, height, width = image.shape
    total, count = torch.zeros(19, height, width), torch.zeros(height, width)
    rows = max(height - size + stride - 1, 0) // stride + 1
    columns = max(width - size + stride - 1, 0) // stride + 1
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride + size, height)
            right = min(column * stride + size, width)
            top, left = max(bottom - size, 0), max(right - size, 0)
            window = image[:, top:bottom, left:right]
            total[:, top:bottom, left:right] += model.score(window[None])[0]
            count[top:bottom, left:right] += 1
    return total / count


@pytest.mark.parametrize("shape", [(32, 32), (32, 50), (61, 47), (33, 32), (20, 70), (16, 16)])
@pytest.mark.parametrize(("size", "stride"), [(32, 16), (32, 21), (32, 32), (24, 5)])
def test_slide_equals_the_slow_rule(shape: tuple[int, int], size: int, stride: int) -> None:
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    model = Stand()
    scores = slide(model, images, size, stride)
    for image, score in zip(images, scores, strict=True):
        torch.testing.assert_close(score, slow_slide(model, image, size, stride), rtol=0, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_windows_cover_every_pixel(length: int, size: int, stride: int) -> None:
    stride = min(stride, size)
    found = starts(length, size, stride)
    covered = {pixel for start in found for pixel in range(start, min(start + size, length))}
    assert covered == set(range(length))
    assert found[-1] == max(length - size, 0)
    assert len(found) == max(length - size + stride - 1, 0) // stride + 1


@pytest.mark.parametrize(
    ("length", "expected"), [(2048, [0, 341, 682, 1023, 1364, 1536]), (512, [0]), (300, [0])]
)
def test_official_window_starts(length: int, expected: list[int]) -> None:
    assert starts(length, 512, 341) == expected


@pytest.mark.parametrize("shape", [(30, 48), (40, 64), (17, 90)])
def test_predict_resizes_scores_not_classes(shape: tuple[int, int]) -> None:
    scores = torch.randn(19, 30, 48, generator=torch.Generator().manual_seed(2))
    whole = functional.interpolate(scores[None], size=shape, mode="bilinear")[0]
    torch.testing.assert_close(predict(scores, shape), whole.argmax(0))


@pytest.mark.parametrize("shape", [(4, 4), (8, 8)])
def test_predict_takes_the_first_of_equals(shape: tuple[int, int]) -> None:
    scores = torch.ones(19, 4, 4)
    assert not predict(scores, shape).any()
    scores[[5, 7]] = 2
    assert (predict(scores, shape) == 5).all()


def test_predict_at_the_size_of_the_scores_is_the_arg_max() -> None:
    scores = torch.randint(0, 6, (19, 33, 47), generator=torch.Generator().manual_seed(2)).float()
    assert torch.equal(predict(scores, (33, 47)), scores.argmax(0))


def world(root: Path) -> None:
    """Three images of one size and, between them by name, one of another."""
    write_world(root, "bdd100k", "val", count=4, size=(40, 64))
    card = load_card("bdd100k")
    odd = card.pairs(root, "val")[1]
    Image.new("RGB", (48, 80), (9, 99, 199)).save(odd.image)
    write_label(card, odd.label, np.full((80, 48), 4, np.uint8))


def test_confusion_per_image_and_metrics(tmp_path: Path) -> None:
    world(tmp_path)
    protocol = tiny_protocol()
    domain = protocol.targets[0]
    model = Stand()
    result = evaluate(model, protocol, tmp_path, domain)
    assert result.images == 4
    matrices = result.arrays["confusion"]
    assert matrices.dtype == np.int32
    assert matrices.shape == (4, 19, 19)
    kept = [pair.name for pair in load_card("bdd100k").pairs(tmp_path, "val")]
    assert result.arrays["names"].tolist() == kept
    hits, truths, guesses = np.zeros(19), np.zeros(19), np.zeros(19)
    for sample, matrix in zip(
        data.evaluation_samples(protocol, tmp_path, domain), matrices, strict=True
    ):
        scores = slow_slide(model, sample["image"], 32, 16)
        guess = (
            functional.interpolate(scores[None], size=sample["label"].shape, mode="bilinear")[0]
            .argmax(0)
            .numpy()
        )
        label = sample["label"]
        guess, label = guess[label != 255], label[label != 255]
        for truth in range(19):
            for wrong in range(19):
                assert matrix[truth, wrong] == ((label == truth) & (guess == wrong)).sum()
            hits[truth] += ((label == truth) & (guess == truth)).sum()
            truths[truth] += (label == truth).sum()
            guesses[truth] += (guess == truth).sum()
    unions = truths + guesses - hits
    expected = [
        100 * hit / union if union else None for hit, union in zip(hits, unions, strict=True)
    ]
    assert result.metrics["IoU"] == expected
    defined = [value for value in expected if value is not None]
    assert result.metrics["mIoU"] == pytest.approx(np.mean(defined), rel=1e-14)


def test_images_run_together_but_windows_are_bounded(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val", count=9, size=(32, 48))
    protocol = tiny_protocol()
    model = Stand()
    evaluate(model, protocol, tmp_path, protocol.targets[0])
    assert sum(model.calls) == 9 * 2
    assert max(model.calls) == WINDOWS_PER_FORWARD == 8


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_even_after_an_error(training: bool, tmp_path: Path) -> None:
    world(tmp_path)
    protocol = tiny_protocol()
    model = Stand().train(training)
    evaluate(model, protocol, tmp_path, protocol.targets[0])
    assert model.training == training
    load_card("bdd100k").pairs(tmp_path, "val")[2].label.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be decoded"):
        evaluate(model, protocol, tmp_path, protocol.targets[0])
    assert model.training == training


def test_domain_without_labels(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val", count=1, size=(40, 64))
    card = load_card("bdd100k")
    write_label(card, card.pairs(tmp_path, "val")[0].label, np.full((40, 64), 255, np.uint8))
    protocol = tiny_protocol()
    with pytest.raises(UserError, match="bdd100k: no labelled pixel"):
        evaluate(Stand(), protocol, tmp_path, protocol.targets[0])


def test_build_train_evaluate_through_the_files(tmp_path: Path) -> None:
    """The task as the loop uses it: held-out source and target, twice the same numbers."""
    write_world(tmp_path, count=4)
    write_world(tmp_path, "bdd100k", "val", count=2)
    protocol = tiny_protocol()
    confusions = []
    for _ in range(2):
        torch.manual_seed(0)
        model = segmentation.build(protocol).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for batch in segmentation.batches(protocol, tmp_path, 0, 4):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
        results = [
            segmentation.evaluate(model, protocol, tmp_path, domain)
            for domain in protocol.scored_domains
        ]
        assert [result.images for result in results] == [1, 2]
        confusions.append(np.concatenate([each.arrays["confusion"] for each in results]))
    np.testing.assert_array_equal(*confusions)


def test_limit(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val", count=3)
    domain = Domain(domain="bdd100k", card="bdd100k", split="val", limit=2)
    result = evaluate(Stand(), tiny_protocol(), tmp_path, domain)
    assert result.images == 2


def test_windows_scores_and_classes_of_the_real_head_follow_the_written_rule() -> None:
    """One image, window by window and query by query, with nothing shared but the head."""
    torch.manual_seed(3)
    model = segmentation.build(tiny_protocol()).eval()
    image = torch.randn(3, 48, 72, generator=torch.Generator().manual_seed(3))
    total, count = torch.zeros(19, 48, 72), torch.zeros(48, 72)
    with torch.no_grad():
        for top in (0, 16):
            for left in (0, 21, 40):  # stride 21; the last window is shifted back to the border
                part = image[None, :, top : top + 32, left : left + 32]
                masks, classes = model.head(model.feature_maps(part))
                logits = functional.interpolate(masks[-1], (32, 32), mode="bilinear")[0]
                shares = classes[-1][0].exp() / classes[-1][0].exp().sum(1, keepdim=True)
                scores = torch.zeros(19, 32, 32)
                for share, logit in zip(shares, logits, strict=True):
                    scores += share[:19, None, None] / (1 + torch.exp(-logit))
                total[:, top : top + 32, left : left + 32] += scores
                count[top : top + 32, left : left + 32] += 1
    expected = total / count
    found = slide(model, image[None], 32, 21)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    large = functional.interpolate(expected[None], (100, 140), mode="bilinear")[0]
    assert (predict(found, (100, 140)) == large.argmax(0)).float().mean() > 0.9999


def test_the_same_few_predictions_of_a_domain_are_kept(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val", count=9, size=(32, 48))
    protocol, file = tiny_protocol(), tmp_path / "seed0.bdd100k.png"
    domain = protocol.targets[0]
    result = evaluate(Stand(), protocol, tmp_path, domain)
    result.files[".png"](file)
    kept, samples = predictions.read(file), EvaluationSamples(domain, tmp_path, protocol.input)
    assert [one.name for one in kept] == [samples[place]["name"] for place in (0, 3, 5, 8)]
    for place, one in zip((0, 3, 5, 8), kept, strict=True):
        confusion = metrics.confusion(samples[place]["label"], one.classes, 19)
        assert np.array_equal(confusion, result.arrays["confusion"][place])
    with Image.open(file) as picture:
        assert picture.mode == "P"
