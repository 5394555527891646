"""The detection task in the suite's runner: records, resume, engines, evaluation."""

import dataclasses
import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_detection import ENGINES, HEAD, ONE_MAP
from tiny_voc import write_domain
from toy_task import RANK_2, RECIPE, files, numbers

from benchmarks import run
from benchmarks.__main__ import main
from benchmarks.cell import fingerprints, make_cell, protocol_semantics
from benchmarks.data.cards import load_card
from benchmarks.detection import engines, predictions, task
from benchmarks.detection.data import evaluation_samples
from benchmarks.detection.metrics import scores
from benchmarks.detection.predictions import Detections
from benchmarks.detection.settings import DetectionProtocol
from benchmarks.errors import UserError
from benchmarks.tasks import load_protocol
from benchmarks.yaml_files import digest_of

pytestmark = pytest.mark.usefixtures("one_thread")
HELD_OUT = {"card": "sdgod", "split": "daytime_clear_train", "holdout": 2}


@pytest.fixture(autouse=True)
def _deterministic_only_here():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _without_detectron2(request, monkeypatch):
    if not request.node.get_closest_marker("detectron2"):
        monkeypatch.setattr(engines, "_is_here", lambda: False)


@pytest.fixture(autouse=True)
def _cells_here_name_no_data(monkeypatch):
    monkeypatch.setattr(run, "_check_unchanged", lambda *_: None)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    splits = {"daytime_clear_train": 6, "daytime_clear_test": 2, "night_clear": 3}
    for seed, (split, count) in enumerate(splits.items()):
        write_domain(root, split, count, seed=seed)
    return root


def protocol(**changes):
    tiny = {
        "backbone": ONE_MAP.model_dump(),
        "head": HEAD | {"roi": HEAD["roi"] | {"score": 0.0}},
        "source": [{"domain": "day_train", **HELD_OUT}],
        "validation": [{"domain": "day_held_out", **HELD_OUT, "size": [32, 48]}],
        "source_test": [
            {"domain": "day", "card": "sdgod", "split": "daytime_clear_test", "size": [32, 48]}
        ],
        "targets": [{"domain": "night", "card": "sdgod", "split": "night_clear", "size": [20, 64]}],
        "recipe": RECIPE | changes.pop("recipe", {}),
        "recipes": {"controlled": {}},
        "methods": {"soma": RANK_2},
    }
    whole = load_protocol("mini_sdgod")
    small = whole.augment.model_copy(update={"base": (32, 48), "crop": 32, "min_side": 1.0})
    base = whole.model_dump() | {"augment": small.model_dump()}
    return DetectionProtocol.model_validate(base | tiny | changes)


def cell_of(method="soma", **changes):
    return make_cell(protocol(**changes), method, seed=0, placement="all", data={})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cell_leaves_a_record_weights_and_its_detections(engine, worlds, tmp_path):
    cell = cell_of(engine=engine)
    record = run.run_cell(cell, tmp_path, worlds)
    assert record.status == "done"
    assert record.cell["engine"] == engine
    last = record.evaluations[-1].domains
    assert {name: (score.role, score.images) for name, score in last.items()} == {
        "day_held_out": ("validation", 2),
        "day": ("source", 2),
        "night": ("target", 3),
    }
    kept = [f"seed0.{name}.json.gz" for name in ("day", "day_held_out", "night")]
    assert files(tmp_path) == sorted([*kept, "seed0.json", "seed0.safetensors"])
    # The kept detections give the record's metrics again.
    ours = next(domain for domain in cell.protocol.targets)
    samples = list(evaluation_samples(cell.protocol, worlds, ours))
    path = (tmp_path / cell.path).with_suffix(".night.json.gz")
    detections = predictions.read(path, [sample["name"] for sample in samples], 7)
    assert sum(len(each.scores) for each in detections) > 0
    classes = load_card("sdgod", "boxes").classes
    again = scores([sample["objects"] for sample in samples], detections, classes)
    assert json.loads(json.dumps(again)) == last["night"].metrics


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("method", "dies_at"), [("soma", 3), ("vpt", 5)])
def test_a_killed_cell_is_resumed_to_the_same_bits(
    engine, method, dies_at, worlds, tmp_path, monkeypatch
):
    recipe = {"evaluate_at": [3], "ema": {"momentum": 0.2, "start": 2}}
    cell = cell_of(method, engine=engine, recipe=recipe)
    whole = run.run_cell(cell, tmp_path / "whole", worlds)
    original = task.batches

    def dying(held_fixed, data_root, seed, first, shard):
        given = original(held_fixed, data_root, seed, first, shard)
        for iteration, batch in enumerate(given, first):
            if iteration == dies_at:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(task, "batches", dying)
    with pytest.raises(KeyboardInterrupt):
        run.run_cell(cell, tmp_path / "cut", worlds)
    assert files(tmp_path / "cut") == ["seed0.json.checkpoint"]
    monkeypatch.setattr(task, "batches", original)
    assert numbers(run.run_cell(cell, tmp_path / "cut", worlds)) == numbers(whole)
    one, two = ((tmp_path / name / cell.path) for name in ("whole", "cut"))
    for ending in (".night.json.gz", ".day.json.gz"):
        assert one.with_suffix(ending).read_bytes() == two.with_suffix(ending).read_bytes()
    weights = load_file(one.with_suffix(".safetensors"))
    for name, value in load_file(two.with_suffix(".safetensors")).items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_under_freeze_the_backward_pass_spares_the_backbone(engine, worlds):
    cell = cell_of("freeze", engine=engine)
    model = run.build(cell, task).model
    batch = next(task.batches(cell.protocol, worlds, 0))
    sum(model(batch).values()).backward()
    assert all(each.grad is None for each in model.backbone.parameters())
    head = [each for name, each in model.named_parameters() if not name.startswith("backbone.")]
    assert all(each.grad is not None for each in head)


class Oracle(torch.nn.Module):
    """Finds exactly the annotated boxes, in pixels of the test size; knows the order of images."""

    def __init__(self, samples):
        super().__init__()
        self.waiting = list(samples)
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def detect(self, images, sizes):
        now, self.waiting = self.waiting[: len(images)], self.waiting[len(images) :]
        found = []
        for image, sample in zip(images, now, strict=True):
            assert torch.equal(image, sample["image"])
            truth, (high, wide) = sample["objects"], sample["scale"]
            boxes = truth.boxes * np.array([wide, high, wide, high])
            found.append(Detections(boxes, np.ones(len(boxes)), truth.labels))
        return found


@pytest.mark.parametrize("changes", [{}, {"keep_ratio": False}, {"size": None}])
def test_boxes_are_compared_in_pixels_of_the_file(changes, worlds):
    ours = protocol()
    domain = ours.targets[0].model_copy(update=changes)
    model = Oracle(evaluation_samples(ours, worlds, domain)).train()
    result = task.evaluate(model, ours, worlds, domain)
    assert model.training
    assert result.images == 3
    assert result.metrics["AP50_voc07"] == result.metrics["AP50_area"] == pytest.approx(100)
    assert result.metrics["AP"] == pytest.approx(100, abs=1)  # kept with two decimals


def test_a_domain_without_an_object_is_the_users_error(tmp_path):
    write_domain(tmp_path, "night_clear", 2, empty=(0, 1))
    ours = protocol()
    model = Oracle(evaluation_samples(ours, tmp_path, ours.targets[0]))
    with pytest.raises(UserError, match="night: no object to be found in 2 images; check the box"):
        task.evaluate(model, ours, tmp_path, ours.targets[0])


def test_domains_and_fingerprints_cover_every_role(worlds):
    ours = protocol()
    assert [each.domain for each in ours.scored_domains] == ["day_held_out", "day", "night"]
    found = fingerprints(ours, worlds)
    names = {"day_train", "day_held_out", "day", "night"}
    assert set(found) == names | {f"{name}.list" for name in names}
    assert "ImageSets/Main/test.txt sha256:" in found["day.list"]
    assert found["day_train"] == found["day_held_out"] != found["day"]


def test_data_sets_of_two_label_spaces_are_refused():
    foggy = {"domain": "fog", "card": "foggy_cityscapes", "split": "val"}
    with pytest.raises(UserError, match="foggy_cityscapes and sdgod have different classes"):
        task.build(protocol(targets=[foggy]))


def test_an_engine_that_is_missing_is_refused_before_any_work(tmp_path):
    cell = cell_of(engine="detectron2")
    with pytest.raises(UserError, match=r"not installed here; install it as https.*torchvision"):
        _ = cell.digest
    with pytest.raises(UserError, match="say --engine torchvision"):
        run.run_cell(cell, tmp_path, tmp_path)
    assert files(tmp_path) == []


def test_auto_takes_detectron2_where_it_is(monkeypatch):
    assert engines.resolve("auto") == "torchvision"
    assert "torchvision, since Detectron2 is not installed" in engines.announcement("auto")
    monkeypatch.setattr(engines, "_is_here", lambda: True)
    assert engines.resolve("auto") == engines.resolve("detectron2") == "detectron2"
    assert engines.resolve("torchvision") == "torchvision"
    assert cell_of().resolved["engine"] == "detectron2"


def test_a_folder_called_detectron2_is_no_engine(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "detectron2").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("detectron2") is not None
    if importlib.util.find_spec("detectron2").origin is None:
        assert engines.resolve("auto") == "torchvision"


def test_an_engine_that_cannot_be_imported_is_one_line(monkeypatch):
    monkeypatch.setattr(engines, "_is_here", lambda: True)
    monkeypatch.setitem(sys.modules, "detectron2.layers", None)
    monkeypatch.delitem(sys.modules, "benchmarks.detection.detectron2_engine", raising=False)
    with pytest.raises(UserError, match=r"engine detectron2: .* not to be imported \(.*detectron2"):
        engines.load("auto")


def test_the_engine_decides_the_digest_and_its_name_in_the_protocol_does_not(monkeypatch):
    auto = cell_of()
    copied = auto.protocol.model_copy(update={"engine": "torchvision"})
    named = make_cell(copied, "soma", seed=0, placement="all", data={})
    assert auto.digest == named.digest
    assert copied.engine_reason == "engine torchvision, as asked"
    with pytest.raises(UserError, match="no engine 'torchvison'; did you mean 'torchvision'"):
        _ = copied.model_copy(update={"engine": "torchvison"}).engine_here
    assert protocol_semantics(auto.protocol) == protocol_semantics(named.protocol)
    monkeypatch.setattr(engines, "_is_here", lambda: True)
    other = cell_of()
    assert other.digest != auto.digest
    assert {k for k in other.resolved if other.resolved[k] != auto.resolved[k]} == {"engine"}


def test_segmentation_cells_know_nothing_of_detection():
    cell = make_cell(load_protocol("mini_gtav"), "lora", seed=0, data={})
    assert "engine" not in cell.resolved
    shared = {"name", "version", "task", "backbone", "head", "source", "validation", "targets"}
    assert set(cell.resolved["protocol"]) == shared | {"input", "augment", "window"}
    assert digest_of(cell.resolved) == cell.digest


def test_lists_that_share_an_image_between_training_and_test_are_refused(worlds, tmp_path):
    root = tmp_path / "worlds"
    shutil.copytree(worlds, root)
    task.check_data(protocol(), root)
    card = load_card("sdgod")
    train, test = (
        card.path(root, f"daytime_clear_{part}", "list_file") for part in ("train", "test")
    )
    shared = train.read_text().split()[0]
    test.write_text(f"{test.read_text()}{shared}\n")
    with pytest.raises(UserError, match=rf"day: 1 of its .* trained on in day_train, .*{shared}"):
        task.check_data(protocol(), root)


@pytest.mark.parametrize("end", [b"\xff\xd9", b"</annotation>"])
def test_a_scored_file_without_its_end_is_met_before_training(end, worlds, tmp_path):
    root = tmp_path / "worlds"
    shutil.copytree(worlds, root)
    part = "images" if end == b"\xff\xd9" else "labels"
    file = load_card("sdgod").path(root, "night_clear", part, name="night_clear-0001")
    file.write_bytes(file.read_bytes()[: -len(end) - 200])
    with pytest.raises(UserError, match=file.name):
        task.check_data(protocol(), root)


@pytest.mark.parametrize("edit", ["nothing", "score", "detections", "data"])
def test_a_record_is_verified_by_scoring_its_detections_again(edit, worlds, tmp_path, capsys):
    root = tmp_path / "worlds"
    shutil.copytree(worlds, root)
    cell = dataclasses.replace(cell_of(), data=fingerprints(cell_of().protocol, root))
    run.run_cell(cell, tmp_path / "out", root)
    path = tmp_path / "out" / cell.path
    kept = path.with_suffix(".night.json.gz")
    if edit == "score":
        content = json.loads(path.read_text())
        content["evaluations"][-1]["domains"]["night"]["metrics"]["AP"] += 1
        path.write_text(json.dumps(content))
    elif edit == "detections":
        samples = list(evaluation_samples(cell.protocol, root, cell.protocol.targets[0]))
        truth = [sample["objects"] for sample in samples]
        perfect = [Detections(each.boxes, np.ones(len(each)), each.labels) for each in truth]
        predictions.write(kept, [sample["name"] for sample in samples], perfect)
    elif edit == "data":
        write_domain(root, "night_clear", 3, size=(44, 64), seed=2)
    code = main(["verify", str(path), "--root", str(root)])
    said = capsys.readouterr()
    if edit == "nothing":
        assert (code, said.err) == (0, "")
        assert "scored again as its run did: day_held_out, day, night" in said.out
    else:
        assert code == 2
        assert said.err.count("\n") == 1
        wrong = "is not the data" if edit == "data" else "is not that of the detections"
        assert f"night{'' if edit == 'data' else ':'} " in said.err
        assert wrong in said.err
