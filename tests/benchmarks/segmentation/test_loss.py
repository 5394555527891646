import copy

import pytest
import torch
from tiny_worlds import HEAD, random_batch, tiny_protocol
from torch import Tensor

from benchmarks.distributed import Part
from benchmarks.segmentation import task as segmentation
from benchmarks.segmentation.loss import SetLoss
from benchmarks.segmentation.mask2former import Mask2Former

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> Mask2Former:
    torch.manual_seed(0)
    return segmentation.build(tiny_protocol())


def test_losses_are_weighted(model: Mask2Former) -> None:
    weights = {"class_weight": 4.0, "mask_weight": 10.0, "dice_weight": 10.0}
    doubled = copy.deepcopy(model)
    doubled.loss = SetLoss(19, HEAD.model_copy(update=weights))
    losses = []
    for each in (model, doubled):
        torch.manual_seed(3)
        losses.append(each(random_batch()))
    assert list(losses[0]) == ["cross_entropy", "mask", "dice"]
    for key, value in losses[0].items():  # all weights doubled: the matching is the same
        assert losses[1][key].item() == pytest.approx(2 * value.item(), rel=1e-6)


def test_same_seed_same_loss(model: Mask2Former) -> None:
    values = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        values.append([value.item() for value in model(random_batch()).values()])
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("ignored", [[0], [0, 1]])
def test_images_without_labels(model: Mask2Former, ignored: list[int]) -> None:
    inputs = random_batch()
    inputs["label"][ignored] = 255
    losses = model(inputs)
    assert all(torch.isfinite(value) for value in losses.values())
    if len(ignored) == 2:
        assert losses["mask"] == losses["dice"] == 0
    sum(losses.values()).backward()


def losses_of(labels: Tensor, count: bool, parts: int) -> dict[str, float]:
    """The losses of fixed predictions, in `parts` micro-batches whose mean is taken."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(len(labels), 20, 16, 16, generator=generator)
    classes = torch.randn(1, len(labels), 20, 20, generator=generator)
    loss = SetLoss(19, HEAD.model_copy(update={"count_unlabelled": count}))
    targets = tuple(len(label[label != 255].unique()) for label in labels)
    size, total = len(labels) // parts, {"cross_entropy": 0.0, "mask": 0.0, "dice": 0.0}
    for n in range(parts):
        own = slice(n * size, (n + 1) * size)
        part = Part(n, parts, targets, seed=5)
        for key, value in loss([masks[own]], classes[:, own], labels[own], part).items():
            total[key] += value.item() / parts
    return total


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_unlabelled_images_count_as_one_mask_in_every_micro_batch(parts: int) -> None:
    labels = torch.full((4, 32, 32), 255)
    labels[1, :, :16], labels[1, :, 16:], labels[3] = 3, 7, 4  # three masks, two images without
    plain, counted = losses_of(labels, False, 1), losses_of(labels, True, parts)
    assert counted["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=1e-5)
    for key in ("mask", "dice"):
        assert plain[key] > 0.1
        assert counted[key] == pytest.approx(plain[key] * 3 / 5, rel=1e-5)


def test_queries_of_the_wrong_class_cost_more_than_perfect_ones() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 10
    labels[:, 28:] = 255
    truth = torch.stack([labels == 10, labels == 0], dim=1)  # queries in another order
    logits = torch.full((2, 1, 2, 20), -20.0)
    logits[:, 0, 0, 10] = logits[:, 0, 1, 0] = 20.0
    torch.manual_seed(0)
    loss = SetLoss(19, HEAD.model_copy(update={"points": 400}))
    right = loss([truth * 80.0 - 40.0] * 2, logits, labels)
    assert right["cross_entropy"].item() == pytest.approx(0, abs=1e-6)
    # Masks of the other class: matched by their masks, the queries then name the wrong class.
    wrong = loss([truth.flip(1) * 80.0 - 40.0] * 2, logits, labels)
    assert wrong["cross_entropy"].item() > 50
    assert sum(right.values()).item() < 0.1 * sum(wrong.values()).item()


def test_every_layer_counts_once() -> None:
    torch.manual_seed(0)
    masks, classes = torch.randn(1, 20, 16, 16), torch.zeros(1, 1, 20, 20)
    labels = random_batch(1)["label"]
    loss = SetLoss(19, HEAD)
    one = loss([masks], classes, labels)["cross_entropy"]
    three = loss([masks] * 3, classes.expand(3, -1, -1, -1), labels)["cross_entropy"]
    assert three.item() == pytest.approx(3 * one.item(), rel=1e-5)
