import re
import tempfile
from pathlib import Path

import pytest
import yaml
from tiny_worlds import write_world
from toy_records import toy_record

from benchmarks import dry_run
from benchmarks.__main__ import main
from benchmarks.data import cards
from benchmarks.data.cards import load_card
from benchmarks.data.files import Pair
from benchmarks.detection.reading import read_pair as read_boxes
from benchmarks.detection.reading import trainable_boxes
from benchmarks.dry_run import project
from benchmarks.record import Cost
from benchmarks.segmentation.data import read_pair
from benchmarks.tasks import load_protocol
from benchmarks.worlds import stand_in

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (120, 200)
PICKY = """
from dataclasses import dataclass
from soma.method import Method, NotApplicable

@dataclass(frozen=True, kw_only=True)
class Picky(Method):
    source = "this test"

    def attach(self, vit):
        raise NotApplicable("there is no seventh sense")
"""
SPLITS = [(card, split) for card in cards.names() for split in load_card(card).splits]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files go to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def read(card: cards.Card, pair: Pair) -> tuple[tuple[int, ...], bool]:
    """Size of an image, and whether something in it can be learnt."""
    if card.boxes:
        image, found = read_boxes(pair, card)
        return image.shape, trainable_boxes(found, "drop").any()
    image, label = read_pair(pair, card)
    return image.shape, (label < 19).any()


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_data_set_can_be_stood_in_for(name: str, split: str, tmp_path: Path) -> None:
    card = load_card(name)
    stand_in.write_split(card, tmp_path, split, SIZE, images=1)
    pairs = card.pairs(tmp_path, split)
    only = getattr(card.split(split), "only", None)
    levels = len(getattr(card.split(split), "beta", ()) or (0,))
    assert len(pairs) == (card.split(split).count if only else levels)
    assert read(card, pairs[0]) == ((*SIZE, 3), True)


def test_every_card_says_how_large_its_images_are() -> None:
    for name in cards.names():
        card = load_card(name)
        assert (card.native_size is None) != (card.typical_size is None), name


def test_segmentation_without_data_and_weights(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = {
        "extends": "mini_gtav",
        "name": "elsewhere",
        "data_root": None,
        "backbone": {"weights": str(tmp_path / "none.safetensors"), "sha256": 64 * "0"},
    }
    file, out = tmp_path / "elsewhere.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(changes))
    assert main(["run", str(file), "soma", "--dry-run", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "missing: say with --data-root where GTAV" in said
    assert re.search(r"weights +missing: .*none\.safetensors", said)
    assert "117,504 of 1,938,688 in the backbone learn" in said  # as the table says: 118k
    assert re.search(r"training step +\d.* batch 4", said)
    assert re.search(r"test image .* 160x90 \(bdd100k\)", said)  # of all, the most pixels
    assert "270 steps" in said
    assert "1 x 320 images, as cards count them" in said
    assert not out.exists()
    assert not list(temporary.iterdir())


def test_detection_names_its_engine(temporary: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "smoke_sdgod", "lora", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"engine +auto: (torchvision|detectron2)", said)
    assert re.search(r"test image .* 160x96 ", said)
    assert "1 x 24 images" in said
    assert not list(temporary.iterdir())


def test_sweep_gives_a_line_per_row(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "picky.py"
    file.write_text(PICKY)
    sweep = ["sweep", "table1", "--profile", "smoke", "--dry-run", "--seeds", "0"]
    assert main([*sweep, "--methods", f"freeze,{file}:Picky"]) == 0
    *_, freeze, picky = capsys.readouterr().out.splitlines()
    assert re.match(r"freeze seed 0 \(last-two-thirds\) +0 .* h *$", freeze)
    assert picky == "cannot run: picky.Picky on smoke_gtav: there is no seventh sense"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["smoke_gtav", "lora", "--devices", "2"], "--devices"),
        (["smoke_gtav", "lora", "--device", "cuda:99"], "cuda:99"),
        (["smoke_gtav", "lora", "--set", "recipe.accumulate=3"], "recipe.batch 4"),
        (["smoke_gtav", "nothing"], "nothing"),
    ],
)
def test_what_cannot_run_is_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["run", *arguments, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert expected in said.err


def test_the_largest_test_size_counts() -> None:
    protocol = load_protocol("paper_gtav")
    sizes = {
        domain.domain: dry_run.pixels_of(protocol, domain)
        for domain in (*protocol.targets, *protocol.extra, *protocol.validation)
    }
    assert sizes == {
        "cityscapes": 1024 * 2048,
        "bdd100k": 720 * 1280,
        "mapillary": 1024 * 1365,  # 4:3 fitted into 1024 x 2048
        "cityscapes_low": 512 * 1024,
        "mapillary_low": 512 * 683,
        "gtav_held_out": 1052 * 1914,
    }


def test_hours_are_those_of_steps_and_pixels() -> None:
    protocol = load_protocol("rein_gtav")  # 40,000 steps, scored four times
    cost = Cost(adapt_seconds=36.0, seconds_per_step=0.9, evaluate_seconds=2.0)
    record = toy_record("lora", 0, cost=cost)
    measured = dry_run.Measured(record, "bdd100k", (720, 1280), "a device")
    projected = project(protocol, measured, dry_run.data(protocol, None))
    # 500 of Cityscapes and 2,000 of Mapillary at a lower resolution, 1,000 of BDD100K
    seconds = 2.0 * (500 * 512 * 1024 + 2000 * 512 * 683 + 1000 * 720 * 1280) / (720 * 1280)
    assert projected.train == pytest.approx(10.0)
    assert projected.evaluate == pytest.approx(4 * seconds / 3600)
    assert projected.total == pytest.approx(0.01 + 10.0 + 4 * seconds / 3600)
    assert (projected.evaluations, projected.images) == (4, 3500)


def test_images_that_are_there_are_counted(tmp_path: Path) -> None:
    write_world(tmp_path, "gtav", "train", count=3)
    (tmp_path / "bdd100k").mkdir()
    splits = dry_run.data(load_protocol("paper_gtav"), tmp_path)
    assert splits["gtav", "train"].images == 3
    assert splits["gtav", "train"].found
    assert splits["bdd100k", "val"].words.startswith("missing: ")
    assert "no image matches" in splits["bdd100k", "val"].words
    assert splits["cityscapes", "val"].images == 500
    assert "download_datasets.sh" in splits["cityscapes", "val"].words


def test_held_out_and_limited_images_are_what_a_domain_scores() -> None:
    domain = load_protocol("smoke_gtav").validation[0]
    assert dry_run.scored_images(domain, 760) == 4
    whole = domain.model_copy(update={"limit": None})
    assert dry_run.scored_images(whole, 760) == 160
    rest = whole.model_copy(update={"holdout": 0, "exclude": ("a", "b")})
    assert dry_run.scored_images(rest, 760) == 758
