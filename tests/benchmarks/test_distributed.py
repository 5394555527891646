"""One device or several, in one go or in micro-batches: the same batch gives the same training."""

import numpy as np
import pytest
import tiny_detection
import torch
from safetensors.torch import load_file
from tiny_worlds import FPN, LINEAR, write_world
from toy_shards import STEPS, cell, furthest, losses

from baselines import METHODS
from benchmarks import run
from benchmarks.cell import prepare
from benchmarks.distributed import BLOCK, Shard, device_of_worker, is_nonzero_rank, make_fabric
from benchmarks.errors import UserError
from benchmarks.segmentation import predictions
from benchmarks.segmentation import task as segmentation
from benchmarks.train import Training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _deterministic_only_here():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Five images to learn from, two held out, twenty to score."""
    root = tmp_path_factory.mktemp("worlds")
    write_world(root, "gtav", "train", 7)
    write_world(root, "cityscapes", "val", 20)
    return root


def prepared(worlds, **recipe):
    (ours,) = prepare([cell(**recipe)], worlds, worlds)
    return ours


@pytest.fixture(scope="module")
def alone(worlds, tmp_path_factory):
    """What one process makes of the cell: folder of the records, record."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("alone")
    record = run.run_cell(prepared(worlds), folder, worlds)
    torch.set_num_threads(threads)
    return folder, record


def confusions(folder):
    with np.load((folder / cell().path).with_suffix(".npz")) as arrays:
        return {name: arrays[name] for name in arrays if not name.endswith(".names")}


def test_two_processes_train_and_score_as_one(alone, worlds, tmp_path):
    folder, one = alone
    two = run.run_cell(prepared(worlds), tmp_path, worlds, devices=2)
    assert len(one.losses) == STEPS
    assert furthest(losses(two), losses(one)) <= 1e-5
    assert two.digest == one.digest
    assert (two.cost.devices, two.cost.nodes, two.cost.micro_batch) == (2, 1, 2)
    assert (one.cost.devices, one.cost.nodes, one.cost.micro_batch) == (1, 1, 4)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    pictures = {f"seed0.{domain}.png" for domain in one.evaluations[-1].domains}
    files = {"seed0.json", "seed0.log.jsonl", "seed0.npz", "seed0.safetensors"}
    assert names == files | pictures
    for name in pictures:  # each process scores some of the images
        kept = [predictions.read(next(root.rglob(name))) for root in (folder, tmp_path)]
        assert [one.name for one in kept[0]] == [one.name for one in kept[1]]
    expected = confusions(folder)
    for domain, matrices in confusions(tmp_path).items():
        # 20 steps may end a rounding apart (see `COMPARED`): few pixels change, no image is lost.
        moved = np.abs(matrices.astype(int) - expected[domain]).sum()
        assert matrices.shape == expected[domain].shape
        assert moved <= 0.02 * expected[domain].sum()


def test_what_one_process_began_two_finish(alone, worlds, tmp_path, monkeypatch):
    batches = segmentation.batches

    def cut_off(*arguments, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            if number == 12:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(segmentation, "batches", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.run_cell(prepared(worlds), tmp_path, worlds)
    resumed = run.run_cell(prepared(worlds, accumulate=2), tmp_path, worlds, devices=2)
    assert resumed.cost.micro_batch == 1
    assert furthest(losses(resumed), losses(alone[1])) <= 1e-5


def test_an_unreadable_image_in_one_process_is_one_line(worlds, tmp_path):
    root = tmp_path / "worlds"
    write_world(root, "gtav", "train", 7)
    write_world(root, "cityscapes", "val", 2)
    for file in sorted((root / "gtav" / "images").rglob("*.png")):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot be decoded .* copy or unpack it again$"):
        run.run_cell(prepared(worlds), tmp_path, root, devices=2)


def test_micro_batches_train_as_the_whole_batch(alone, worlds, tmp_path):
    accumulated = run.run_cell(prepared(worlds, accumulate=4), tmp_path, worlds)
    assert accumulated.cost.micro_batch == 1
    assert furthest(losses(accumulated), losses(alone[1])) <= 1e-5


@pytest.mark.parametrize("head", [FPN, LINEAR], ids=lambda head: head.kind)
def test_heads_of_pixels_learn_the_same_in_one_process_and_in_two(head, worlds, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    (ours,) = prepare([cell(head=head)], worlds, worlds)
    one = run.run_cell(ours, alone, worlds)
    other = run.run_cell(ours, two, worlds, devices=2)
    assert furthest(losses(other), losses(one)) <= 1e-5
    weights = [load_file((out / ours.path).with_suffix(".safetensors")) for out in (alone, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3)


def test_micro_batches_of_pixels_train_as_the_whole_batch(worlds):
    steps = {}
    for accumulate in (1, 2, 4):
        ours = cell(head=FPN, accumulate=accumulate)
        training = training_of(ours)
        training.step(segmentation.batches(ours.protocol, worlds, 0))
        norms = [float(p.grad.norm()) for p in training.trainable if p.grad is not None]
        steps[accumulate] = training.state.history.losses + norms
    for accumulate in (2, 4):
        assert steps[accumulate] == pytest.approx(steps[1], rel=1e-4)


def test_micro_batches_without_any_target_count_for_nothing(worlds):
    found = {}
    for accumulate in (1, 4):
        batch = next(segmentation.batches(cell().protocol, worlds, 0))
        batch["label"][1:3] = 255
        batch["targets"][1:3] = 0
        training = training_of(cell(accumulate=accumulate))
        found[accumulate] = training.step(iter([batch]))
    assert found[4] == pytest.approx(found[1], rel=1e-6)


def test_micro_batches_of_detection_train_as_the_whole_batch_where_all_is_sampled():
    """Two images alike give as many samples each; nothing is drawn where all of it is taken."""
    every = {"samples": 10_000, "positive_share": 1.0}
    parts = ("rpn", "roi")
    matching = {part: {"matching": tiny_detection.HEAD[part]["matching"] | every} for part in parts}
    batch = tiny_detection.batch()
    twice = {
        key: torch.stack([value[0]] * 2) if torch.is_tensor(value) else [value[0]] * 2
        for key, value in batch.items()
    }
    found = {}
    for accumulate in (1, 2):
        recipe = cell(accumulate=accumulate).protocol.recipe
        model = tiny_detection.detector(**matching)
        optimizer = run.make_optimizer(model, recipe, {})
        training = Training(model, optimizer, recipe, 0, make_fabric("cpu", "32-true"))
        training.step(iter([twice]))
        found[accumulate] = training.state.history.losses + [
            float(each.grad.norm()) for each in training.trainable if each.grad is not None
        ]
    assert found[2] == pytest.approx(found[1], rel=1e-5)


def training_of(ours):
    adapted = run.build(ours, segmentation)
    return run.make_training(ours, adapted, make_fabric("cpu", ours.protocol.recipe.precision))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_activation_checkpointing_changes_no_bit(method, precision, worlds):
    steps, blocks = {}, {}
    for kept in (True, False):
        recipe = {"precision": precision, "activation_checkpointing": not kept}
        ours = cell(method, **recipe)
        training, calls = training_of(ours), []
        block = training.state.model.backbone.blocks[-1]
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = training.step(segmentation.batches(ours.protocol, worlds, 0))
        grads = [each.grad for each in training.trainable if each.grad is not None]
        steps[kept], blocks[kept] = (loss, grads), len(calls)
    assert steps[True][0] == steps[False][0]
    for one, two in zip(steps[True][1], steps[False][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
    learns = method != "freeze"
    assert (blocks[True], blocks[False]) == (1, 1 + learns)


def test_what_saves_memory_makes_no_other_cell():
    plain, saving = cell(), cell(accumulate=4, activation_checkpointing=True)
    assert saving.digest == plain.digest
    assert saving.path == plain.path
    assert cell(accumulate=4, lr=2e-3).path == cell(lr=2e-3).path != plain.path


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_sample_is_learnt_from_once_whatever_the_number_of_processes(world):
    shards = [Shard(rank, world).samples(8, 3, 6) for rank in range(world)]
    for iteration in range(3):
        each = 8 // world
        parts = [shard[iteration * each : (iteration + 1) * each] for shard in shards]
        first = (3 + iteration) * 8
        assert [n for part in parts for n in part] == list(range(first, first + 8))


@pytest.mark.parametrize("count", [0, 5, 8, 30])
def test_each_image_is_scored_once_and_blocks_stay_together(count):
    shards = [Shard(rank, 3).items(count) for rank in range(3)]
    assert sorted(n for shard in shards for n in shard) == list(range(count))
    starts = range(0, count, BLOCK)
    blocks = [set(range(start, min(start + BLOCK, count))) for start in starts]
    assert all(any(block <= set(shard) for shard in shards) for block in blocks)


@pytest.mark.parametrize(("devices", "accumulate"), [(3, 1), (1, 3), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_one_line(devices, accumulate, tmp_path):
    with pytest.raises(UserError, match=f"recipe.batch 4 cannot be shared .* {devices} devices"):
        run.run_cell(cell(accumulate=accumulate), tmp_path, tmp_path, devices=devices)


class Reader(torch.nn.Linear):
    """Keeps what it is given, and computes."""

    def forward(self, batch):
        self.given = batch
        return super().forward(batch["image"])


def test_mixed_precision_rounds_what_autocast_chooses_and_no_part_of_the_batch():
    model = Reader(1, 1)
    # bfloat16 knows no number between 700 and 704
    batch = {"image": torch.tensor([[0.123456]]), "boxes": [torch.tensor([[701.3, 333.2]])]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(batch)
    output = make_fabric("cpu", "bf16-mixed").setup_module(model)(batch)
    assert torch.equal(output, expected.float())
    for given, own in (
        (model.given["image"], batch["image"]),
        (model.given["boxes"][0], batch["boxes"][0]),
    ):
        assert torch.equal(given, own)


def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r"recipe\.precision 16-mixed: a CPU has no .* bf16-mixed"):
        make_fabric("cpu", "16-mixed")


def test_devices_and_nodes_that_are_not_there_are_one_line():
    with pytest.raises(UserError, match="device 'cuda' x 99: torch sees"):
        make_fabric("cuda", "32-true", devices=99)
    with pytest.raises(UserError, match=r"--nodes 2: .* with srun or torchrun, 4 on each node"):
        make_fabric("cpu", "32-true", devices=4, nodes=2)


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        (4, 1, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0"]),
        (5, 2, ["cuda:0", "cuda:2", "cuda:0", "cuda:2", "cuda:0"]),  # the fifth has no partner
        (1, 2, ["cuda"] * 5),  # refused by `make_fabric`
    ],
)
def test_workers_of_a_sweep_take_gpus_in_turn(gpus, devices, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert [device_of_worker("cuda", number, devices) for number in range(5)] == expected
    assert device_of_worker("cuda:3", 1, devices) == "cuda:3"
    assert device_of_worker("cpu", 1, devices) == "cpu"


def test_only_the_first_of_the_processes_that_torchrun_starts_has_the_lock(monkeypatch):
    assert not is_nonzero_rank(2, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert is_nonzero_rank(2, 2)
    assert not is_nonzero_rank(1, 1)
    monkeypatch.setenv("RANK", "0")
    assert not is_nonzero_rank(2, 2)
