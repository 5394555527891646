from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from toy_task import FakeTask, Net, cell_of

from baselines import METHODS
from benchmarks import run
from benchmarks.backbones import BACKBONE, load_backbone
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.protocol import HUB
from benchmarks.segmentation import task as segmentation
from benchmarks.segmentation.settings import SegmentationProtocol
from benchmarks.tasks import load_protocol
from benchmarks.yaml_files import merge
from soma.method import Method, adapt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task():
    return FakeTask("fake_task")


def test_adapting_before_the_weights_are_in_is_refused(task, monkeypatch):
    def adapts_first(self, protocol):
        model = Net(load_backbone(protocol.backbone))
        del model.backbone.weights_sha256  # as a backbone is before its weights are loaded
        adapt(cell_of().make_method(), model.backbone)
        return model

    monkeypatch.setattr(FakeTask, "build", adapts_first)
    with pytest.raises(UserError, match="loaded before a method adapts it"):
        run.build(cell_of(), task)


def test_other_weights_than_the_protocols_are_refused(task, monkeypatch):
    def other(self, protocol):
        model = Net(load_backbone(protocol.backbone))
        model.backbone.weights_sha256 = "0" * 64
        return model

    monkeypatch.setattr(FakeTask, "build", other)
    with pytest.raises(UserError, match="holds weights 0000"):
        run.build(cell_of(), task)


def test_weights_without_a_stated_hash_are_those_of_the_cell(task, monkeypatch):
    def from_hub(self, protocol):
        model = Net(load_backbone(cell_of().protocol.backbone))
        model.backbone.weights_sha256 = "1" * 64
        return model

    monkeypatch.setattr(FakeTask, "build", from_hub)
    cell = cell_of()
    backbone = cell.protocol.backbone.model_copy(update={"weights": HUB})
    cell = replace(cell, protocol=cell.protocol.model_copy(update={"backbone": backbone}))
    run.build(replace(cell, data={BACKBONE: "1" * 64}), task)
    with pytest.raises(UserError, match=r"holds weights 1111.* where 2222"):
        run.build(replace(cell, data={BACKBONE: "2" * 64}), task)


def test_the_head_starts_from_the_same_values_under_every_method(task):
    heads = {name: run.build(cell_of(name), task).model.head.weight for name in METHODS}
    assert all(torch.equal(head, heads["full"]) for head in heads.values())
    other = run.build(cell_of("full", seed=1), task).model.head.weight
    assert not torch.equal(other, heads["full"])


def test_what_learns_follows_the_decay_of_the_method(task):
    @dataclass(frozen=True, kw_only=True)
    class Scaled(Method):
        source: ClassVar[str] = "here"

        def attach(self, vit):
            vit.gain = nn.Parameter(torch.ones(3))

        def trains(self, name):
            return name == "cls_token"

        def decay(self, name):
            return {"gain": "to_init", "cls_token": "none"}[name]

    cell = cell_of()
    object.__setattr__(cell, "make_method", Scaled)
    adapted = run.build(cell, task)
    assert adapted.decay_rules == {"backbone.gain": "to_init", "backbone.cls_token": "none"}
    groups = run.make_training(cell, adapted, run.make_fabric("cpu", "32-true")).state.optimizer
    assert [(group["name"], len(group["params"])) for group in groups.param_groups] == [
        ("backbone none", 1),
        ("backbone to_init", 1),
        ("head to_zero", 2),
    ]


def test_the_method_decides_on_annealing_where_the_recipe_leaves_it(task):
    fabric = run.make_fabric("cpu", "32-true")
    found = {}
    for method in ("soma", "lora", "full"):
        cell = cell_of(method)
        training = run.make_training(cell, run.build(cell, task), fabric)
        found[method] = training.recipe.weight_decay_schedule
    assert found == {"soma": "cosine", "lora": "constant", "full": "constant"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"args": {"num_heads": 5}}}, "no model can be built of its backbone"),
        ({"augment": {"crop": 100}}, "crop 100 is no multiple of the backbone's patch of 8 pixels"),
        (
            {
                "backbone": {
                    "name": "swin_tiny_patch4_window7_224",
                    "features": [0, 1, 2, 3],
                }
            },
            "no model can be built of its backbone",
        ),
    ],
)
def test_a_protocol_of_which_no_model_can_be_built_is_one_line(
    changes: dict[str, Any], message: str
) -> None:
    random = {"backbone": {"weights": "random", "sha256": None}}
    whole = merge(load_protocol("mini_gtav").model_dump(exclude_unset=True), random)
    if "name" in changes.get("backbone", {}):
        whole["backbone"]["args"] = {}
    whole = merge(whole, changes)
    ours = SegmentationProtocol.model_validate(whole)
    cell = make_cell(ours, "lora", seed=0)
    with pytest.raises(UserError, match=message):
        run.build(cell, segmentation)
