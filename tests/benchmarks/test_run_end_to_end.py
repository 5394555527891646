import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from toy_task import numbers, protocol

from benchmarks import run
from benchmarks.cell import make_cell
from benchmarks.data.cards import load_card
from benchmarks.seeding import stream
from benchmarks.segmentation import task as segmentation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _deterministic_only_here():
    yield
    torch.use_deterministic_algorithms(False)


def write_pair(card_name, root, split, name, rng, **parts):
    """An image of noise in a card's layout; its left and right halves are two classes."""
    card = load_card(card_name)
    label = np.full((36, 56), card.native_id(0), np.uint8)
    label[:, 28:] = card.native_id(10)
    label[:8] = card.native_id(255)
    pixels = rng.integers(256, size=(36, 56, 3), dtype=np.uint8)
    image = card.path(root, split, "images", name=name, **parts)
    truth = card.path(root, split, "labels", name=name, **parts)
    for path in (image, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image), pixels)
    Image.fromarray(label).save(truth)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("worlds"), stream(0, "order")
    for number in range(5):
        write_pair("gtav", root, "train", f"{number:05d}", rng)
    for number in range(2):
        write_pair("cityscapes", root, "val", f"lindau_{number}", rng, city="lindau")
    return root


def segmentation_cell(method):
    small = {"iterations": 2, "checkpoint_every": 1}
    head = {"hidden": 32, "feedforward": 32, "decoder_layers": 1, "queries": 20, "points": 64}
    whole = protocol(**small)
    ours = whole.model_copy(
        update={
            "head": whole.head.model_copy(update=head),
            "augment": whole.augment.model_copy(update={"crop": 32, "short_sides": (32, 48)}),
            "window": whole.window.model_copy(update={"size": 32, "stride": 16}),
        }
    )
    return make_cell(ours, method, seed=0, placement="all", data={})


def test_segmentation_end_to_end(worlds, tmp_path):
    cell = segmentation_cell("soma")
    one, two = (run.run_cell(cell, tmp_path / name, worlds) for name in "ab")
    assert one.status == "done"
    assert numbers(one) == numbers(two)
    scores = one.evaluations[-1].domains
    assert {name: score.images for name, score in scores.items()} == {
        "gtav_held_out": 2,
        "cityscapes": 2,
    }
    with np.load((tmp_path / "a" / cell.path).with_suffix(".npz")) as arrays:
        assert arrays["cityscapes"].shape == (2, 19, 19)
        assert arrays["cityscapes"].sum() == 2 * 28 * 56  # all but the void rows
    assert json.loads((tmp_path / "a" / cell.path).read_text())["status"] == "done"


def test_segmentation_under_freeze_spares_the_backward_pass_of_the_backbone(worlds):
    cell = segmentation_cell("freeze")
    model = run.build(cell, segmentation).model
    batch = next(segmentation.batches(cell.protocol, worlds, 0, 0))
    assert not any(each.requires_grad for each in model.feature_maps(batch["image"]))
    sum(model(batch).values()).backward()
    assert all(each.grad is None for each in model.backbone.parameters())
    assert all(each.grad is not None for each in model.head.parameters())
