import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as theirs

from benchmarks import segmentation
from benchmarks.segmentation.loss import SetLoss
from benchmarks.segmentation.mask2former import Segmenter
from tests.tiny_worlds import HEAD, random_batch, tiny_protocol

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return segmentation.build(tiny_protocol())


def test_losses_are_weighted(model: Segmenter) -> None:
    weights = {"class_weight": 4.0, "mask_weight": 10.0, "dice_weight": 10.0}
    doubled = copy.deepcopy(model)
    doubled.loss = SetLoss(19, HEAD.model_copy(update=weights))
    losses = []
    for each in (model, doubled):
        torch.manual_seed(3)
        losses.append(each(random_batch()))
    assert list(losses[0]) == ["class", "mask", "dice"]
    for key, value in losses[0].items():  # all weights doubled: the matching is the same
        assert losses[1][key].item() == pytest.approx(2 * value.item(), rel=1e-6)


def test_same_seed_same_loss(model: Segmenter) -> None:
    values = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        values.append([value.item() for value in model(random_batch()).values()])
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("ignored", [[0], [0, 1]])
def test_images_without_labels(model: Segmenter, ignored: list[int]) -> None:
    inputs = random_batch()
    inputs["label"][ignored] = 255
    losses = model(inputs)
    assert all(torch.isfinite(value) for value in losses.values())
    if len(ignored) == 2:
        assert losses["mask"] == losses["dice"] == 0
    sum(losses.values()).backward()


def same_points(count: int) -> Callable[..., Tensor]:
    """Stands in for torch.rand: the same `count` points for every mask, whatever is asked for."""
    fixed = torch.rand(count, 2, generator=torch.Generator().manual_seed(9))

    def rand(*shape: int, device: torch.device | None = None) -> Tensor:
        repeats = -(-shape[-2] // count)
        return fixed.repeat(repeats, 1)[: shape[-2]].expand(*shape).contiguous()

    return rand


def test_loss_equals_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers, batch of three, one image without labels."""
    sizes = HEAD.model_copy(update={"points": 400, "queries": 20})
    generator = torch.Generator().manual_seed(2)
    masks = [torch.randn(3, 20, 16, 16, generator=generator) * 3 for _ in range(3)]
    classes = torch.randn(3, 3, 20, 20, generator=generator)
    labels = random_batch(3, (1, 2, 4, 8, 16))["label"]
    labels[1] = 255
    # Points of one period: 3 x 400 candidates, 400 kept, 400 for matching, all from 100 points.
    monkeypatch.setattr(torch, "rand", same_points(100))
    ours = SetLoss(19, sizes)(masks, classes, labels)

    config = Mask2FormerConfig(
        num_labels=19,
        class_weight=sizes.class_weight,
        mask_weight=sizes.mask_weight,
        dice_weight=sizes.dice_weight,
        no_object_weight=sizes.no_object_weight,
        train_num_points=sizes.points,
    )
    reference = theirs.Mask2FormerLoss(config, {})
    present = [label.unique()[label.unique() < 19] for label in labels]
    targets = [
        (label[None] == ids[:, None, None]).float()
        for label, ids in zip(labels, present, strict=True)
    ]
    expected = dict.fromkeys(("cross_entropy", "mask", "dice"), 0.0)
    for layer in range(3):
        losses = reference(masks[layer], classes[layer], targets, present)
        for key in expected:
            expected[key] += float(losses[f"loss_{key}"])
    for key, other, weight in (
        ("class", "cross_entropy", 2.0),
        ("mask", "mask", 5.0),
        ("dice", "dice", 5.0),
    ):
        assert float(ours[key]) == pytest.approx(weight * expected[other], rel=1e-5)
