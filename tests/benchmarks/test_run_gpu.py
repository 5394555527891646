"""Cells on a GPU: that they train, score and go on there, and how far they lie from the CPU's."""

import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_detection
import torch
from tiny_setting import setting
from tiny_voc import write_domain
from tiny_worlds import HEAD as MASK2FORMER
from toy_task import RANK_2, RECIPE

from benchmarks import costs as measuring
from benchmarks import run
from benchmarks.__main__ import main
from benchmarks.cell import Cell, make_cell, prepare
from benchmarks.detection.settings import DetectionProtocol
from benchmarks.distributed import Batch
from benchmarks.protocol import Protocol
from benchmarks.record import Record
from benchmarks.report import costs as report
from benchmarks.segmentation import task as segmentation
from benchmarks.tasks import load_protocol

__all__ = ["setting"]
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_thread")]

DEVICE = "cuda"
# float32 rounds to 2^-24 = 6e-8 of a number. A loss is a mean over thousands of outputs, each some
# tens of sums deep, which a GPU adds in another order: 100 such errors, all of one sign, are 6e-6.
FLOAT32 = 1e-5
# TF32 keeps 11 bits of the factors of a convolution, 2^-11 = 5e-4 of each, and there are a few in a
# row: the patches, and those of the head.
TF32 = 2e-3
# bfloat16 keeps 8 bits, 2^-9 = 2e-3 of every factor and of what lies between some ten layers;
# float16 keeps 11, and may leave steps out until its loss scale fits, which 12 steps show more.
MIXED, MIXED_TRAINED = 2e-2, 1e-1
# AdamW divides by the size of the gradient, so that a rounding error in a small one can turn a step
# of the full rate around: errors grow over the 12 steps, in which the loss falls by 2 to 20 %.
TRAINED = 1e-3
POINTS = 0.1  # of mIoU: one pixel of the 5,120 of a domain moves it by about 0.02


@pytest.fixture(autouse=True)
def _deterministic_only_here() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask2Former's loss draws its points on the device; here they are the CPU's everywhere."""
    draw = torch.rand

    def on_cpu(*size: int, device: torch.device | None = None, **options: Any) -> torch.Tensor:
        return draw(*size, **options).to(device or "cpu")

    monkeypatch.setattr(torch, "rand", on_cpu)


def cell_of(setting: Path, head: str = "semantic-fpn", **recipe: object) -> Cell:
    protocol = load_protocol(str(setting / "tiny.yaml"))
    if head == "mask2former":
        protocol = protocol.model_copy(update={"head": MASK2FORMER})
    made = make_cell(protocol, "soma", seed=0, changes={"recipe": recipe})
    (cell,) = prepare([made], setting / "data", setting)
    return cell


def losses(record: Record) -> list[float]:
    assert [point.iteration for point in record.losses] == list(range(len(record.losses)))
    return [point.loss for point in record.losses]


def scores(record: Record) -> dict[str, float]:
    return {name: one.metrics["mIoU"] for name, one in record.evaluations[-1].domains.items()}


def trained_on(device: str, cell: Cell, setting: Path, out: Path) -> Record:
    record = run.run_cell(cell, out / device, setting / "data", device)
    assert record.status == "done", record.reason
    assert len(record.losses) == cell.protocol.recipe.iterations
    return record


def test_the_command_trains_and_scores_on_the_gpu(setting: Path, tmp_path: Path) -> None:
    """As a user starts it, with convolutions in TF32, which torch takes by itself."""
    command = ["run", str(setting / "tiny.yaml"), "soma", "--data-root", str(setting / "data")]
    assert main([*command, "--device", DEVICE, "--out", str(tmp_path)]) == 0
    record = Record.load(tmp_path / cell_of(setting).path)
    assert record.environment.gpu == torch.cuda.get_device_name()
    tensors = sum((record.parameters.backbone_total, record.parameters.head)) * 4
    assert record.cost.peak_train_bytes > tensors  # counted on the GPU, where the model is
    assert set(scores(record)) == {"gtav_held_out", "cityscapes", "bdd100k", "mapillary"}
    cpu = trained_on("cpu", cell_of(setting), setting, tmp_path)
    assert losses(record)[0] == pytest.approx(losses(cpu)[0], rel=TF32)
    assert scores(record) == pytest.approx(scores(cpu), abs=POINTS)


@pytest.mark.parametrize("head", ["semantic-fpn", "mask2former"])
@pytest.mark.usefixtures("full_float32", "same_points")
def test_losses_and_scores_are_those_of_the_cpu(head: str, setting: Path, tmp_path: Path) -> None:
    cell = cell_of(setting, head)
    gpu, cpu = (trained_on(device, cell, setting, tmp_path) for device in (DEVICE, "cpu"))
    assert gpu.digest == cpu.digest
    assert gpu.parameters == cpu.parameters
    assert losses(gpu)[0] == pytest.approx(losses(cpu)[0], rel=FLOAT32)
    assert losses(gpu) == pytest.approx(losses(cpu), rel=TRAINED)
    assert scores(gpu) == pytest.approx(scores(cpu), abs=POINTS)


def interrupted_at(iteration: int) -> Callable[..., Iterator[Batch]]:
    """The task's batches up to that of an iteration, which is interrupted."""
    whole = segmentation.batches

    def batches(
        protocol: Protocol, root: Path, seed: int, first: int = 0, **others: Any
    ) -> Iterator[Batch]:
        for number, batch in enumerate(whole(protocol, root, seed, first, **others), first):
            if number == iteration:
                raise KeyboardInterrupt
            yield batch

    return batches


@pytest.mark.usefixtures("full_float32")
def test_an_interrupted_cell_goes_on_from_its_checkpoint(
    setting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits are a promise of the CPU alone: some CUDA kernels add in any order.

    On a GPU no step is done twice, the steps before the checkpoint stay as they were to the bit,
    and those after it, from the same weights, moments and averages, agree to rounding.
    """
    cell = cell_of(setting, warmup=0, ema={"momentum": 0.2, "start": 2}, evaluate_at=(4,))
    whole = trained_on(DEVICE, cell, setting, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "batches", interrupted_at(7))
        with pytest.raises(KeyboardInterrupt):
            trained_on(DEVICE, cell, setting, tmp_path / "cut")
    file = (tmp_path / "cut" / DEVICE / cell.path).with_suffix(".json.checkpoint")
    kept = torch.load(file, weights_only=True)["state"]["history"]
    assert kept["iteration"] == 6  # one is written every 2 steps
    cut = trained_on(DEVICE, cell, setting, tmp_path / "cut")
    assert not file.exists()
    assert losses(cut)[:6] == kept["losses"]
    scored = cut.evaluations[0].domains["bdd100k"].metrics
    assert scored == kept["evaluations"][4]["bdd100k"]["metrics"]
    assert losses(cut) == pytest.approx(losses(whole), rel=TRAINED)
    assert [one.iteration for one in cut.evaluations] == [4, 12]
    assert scores(cut) == pytest.approx(scores(whole), abs=POINTS)
    assert (cut.digest, cut.parameters) == (whole.digest, whole.parameters)


@pytest.mark.parametrize("head", ["semantic-fpn", "mask2former"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.usefixtures("same_points")
def test_mixed_precision_trains_close_to_float32(
    head: str, precision: str, setting: Path, tmp_path: Path
) -> None:
    full, mixed = (
        trained_on(DEVICE, cell_of(setting, head, precision=name), setting, tmp_path / name)
        for name in ("32-true", precision)
    )
    assert all(map(math.isfinite, losses(mixed)))
    assert losses(mixed) != losses(full)  # it computes in another type
    assert losses(mixed)[0] == pytest.approx(losses(full)[0], rel=MIXED)
    assert losses(mixed)[-1] == pytest.approx(losses(full)[-1], rel=MIXED_TRAINED)


def detection_cell(root: Path) -> Cell:
    """Anchors and regions all take part, so that which of them is drawn cannot matter."""
    held_out = {"card": "sdgod", "split": "daytime_clear_train", "holdout": 2}
    night = {"domain": "night", "card": "sdgod", "split": "night_clear", "size": [20, 64]}
    everything = {"samples": 10_000, "positive_share": 0.5}
    parts = {
        name: part | {"matching": part["matching"] | everything}
        for name, part in tiny_detection.HEAD.items()
        if "matching" in part
    }
    whole = load_protocol("mini_sdgod").model_dump()
    tiny = {
        "backbone": tiny_detection.ONE_MAP.model_dump(),
        "head": tiny_detection.HEAD | parts | {"roi": parts["roi"] | {"score": 0.0}},
        "engine": "torchvision",
        "augment": whole["augment"] | {"base": (32, 48), "crop": 32, "min_side": 1.0},
        "source": [{"domain": "day_train", **held_out}],
        "validation": [{"domain": "day_held_out", **held_out, "size": [32, 48]}],
        "source_test": [],
        "targets": [night],
        "recipe": RECIPE,
        "recipes": {"controlled": {}},
        "methods": {"soma": RANK_2},
    }
    protocol = DetectionProtocol.model_validate(whole | tiny)
    (cell,) = prepare([make_cell(protocol, "soma", seed=0)], root, root)
    return cell


@pytest.mark.usefixtures("full_float32")
def test_the_torchvision_engine_trains_and_scores(tmp_path: Path) -> None:
    for seed, (split, count) in enumerate({"daytime_clear_train": 6, "night_clear": 3}.items()):
        write_domain(tmp_path, split, count, seed=seed)
    cell = detection_cell(tmp_path)
    gpu, cpu = (run.run_cell(cell, tmp_path / name, tmp_path, name) for name in (DEVICE, "cpu"))
    assert (gpu.status, gpu.cell["engine"]) == ("done", "torchvision")
    assert all(map(math.isfinite, losses(gpu)))
    # Beyond FLOAT32: rounding may decide which of two regions non-maximum suppression keeps.
    assert losses(gpu)[0] == pytest.approx(losses(cpu)[0], rel=1e-3)
    for name, score in gpu.evaluations[-1].domains.items():
        assert score.images == cpu.evaluations[-1].domains[name].images
        assert 0 <= score.metrics[cell.protocol.metric] <= 100
        file = (tmp_path / DEVICE / cell.path).with_suffix(f".{name}.json.gz")
        assert json.loads(gzip.decompress(file.read_bytes()))  # it detects something


def test_costs_are_measured_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "costs", "--rounds", "2", "--methods", "full,lora,vpt,hf:LoRA"]
    assert main([*command, "--device", DEVICE, "--write", str(tmp_path)]) == 0
    costs = report.load(tmp_path, "mini")
    assert costs.unit == "clock"
    assert costs.environment.gpu == torch.cuda.get_device_name()
    assert costs.environment.gpu in capsys.readouterr().out
    full, lora, vpt, _ = costs.rows
    for row in costs.rows:
        assert row.peak_bytes > row.kept_bytes
        assert min(row.step, row.evaluation, row.startup) > 0
    assert lora.peak_bytes < full.peak_bytes
    assert vpt.folded is None
    alone = measuring.measure("mini", rounds=1, rows=("lora",), device=DEVICE).rows[0]
    # Whatever else lies on the GPU; torch hands out memory in blocks of 512 bytes.
    assert alone.peak_bytes == pytest.approx(lora.peak_bytes, rel=0.02)
