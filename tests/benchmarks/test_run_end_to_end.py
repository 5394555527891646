import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from toy_task import numbers, protocol

from benchmarks import run
from benchmarks.cell import fingerprints, make_cell, prepare
from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
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


def segmentation_cell(method, root):
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
    return make_cell(ours, method, seed=0, placement="all", data=fingerprints(ours, root))


def test_segmentation_end_to_end(worlds, tmp_path):
    cell = segmentation_cell("soma", worlds)
    one, two = (run.run_cell(cell, tmp_path / name, worlds) for name in "ab")
    assert one.status == "done"
    assert numbers(one) == numbers(two)
    scores = one.evaluations[-1].domains
    assert one.classes[:2] == ["road", "sidewalk"]
    assert len(one.classes) == len(scores["cityscapes"].metrics["IoU"])
    assert {name: score.images for name, score in scores.items()} == {
        "gtav_held_out": 2,
        "cityscapes": 2,
    }
    with np.load((tmp_path / "a" / cell.path).with_suffix(".npz")) as arrays:
        assert arrays["cityscapes"].shape == (2, 19, 19)
        assert arrays["cityscapes.names"].shape == (2,)
        assert arrays["cityscapes.names"].dtype.kind == "U"  # read without unpickling
        assert arrays["cityscapes"].sum() == 2 * 28 * 56  # all but the void rows
    assert json.loads((tmp_path / "a" / cell.path).read_text())["status"] == "done"


def test_segmentation_under_freeze_spares_the_backward_pass_of_the_backbone(worlds):
    cell = segmentation_cell("freeze", worlds)
    model = run.build(cell, segmentation).model
    batch = next(segmentation.batches(cell.protocol, worlds, 0, 0))
    assert not any(each.requires_grad for each in model.feature_maps(batch["image"]))
    sum(model(batch).values()).backward()
    assert all(each.grad is None for each in model.backbone.parameters())
    assert all(each.grad is not None for each in model.head.parameters())


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_scored_file_that_is_cut_off_is_met_before_training(part, worlds, tmp_path):
    root = tmp_path / "worlds"
    shutil.copytree(worlds, root)
    cell = dataclasses.replace(segmentation_cell("soma", root), data=None)
    file = load_card("cityscapes").path(root, "val", part, name="lindau_1", city="lindau")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{file.name}: cannot be decoded"):
        prepare([cell], root, tmp_path)


def test_scores_of_files_that_changed_under_the_run_are_refused_and_training_kept(
    worlds, tmp_path, monkeypatch
):
    root = tmp_path / "worlds"
    shutil.copytree(worlds, root)
    whole = run.run_cell(segmentation_cell("soma", worlds), tmp_path / "whole", worlds)
    card, evaluate = load_card("cityscapes"), segmentation.evaluate

    def swapping(*arguments):
        black = Image.new("RGB", (56, 36))
        black.save(card.path(root, "val", "images", name="lindau_0", city="lindau"))
        return evaluate(*arguments)

    monkeypatch.setattr(segmentation, "evaluate", swapping)
    with pytest.raises(UserError, match="the files of cityscapes changed while it ran"):
        run.run_cell(segmentation_cell("soma", root), tmp_path / "cut", root)
    monkeypatch.setattr(segmentation, "evaluate", evaluate)
    monkeypatch.setattr(run.Training, "step", None)  # nothing is trained again
    again = run.run_cell(segmentation_cell("soma", root), tmp_path / "cut", root)
    assert (again.status, again.losses) == ("done", whole.losses)
