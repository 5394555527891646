"""The mini worlds: deterministic, in the real layouts, every class present, boxes kept."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.__main__ import main
from benchmarks.backbones import load_backbone
from benchmarks.data.cards import load_card
from benchmarks.detection.reading import read_pair as read_boxes
from benchmarks.errors import UserError
from benchmarks.segmentation.data import read_pair
from benchmarks.tasks import load_protocol
from benchmarks.worlds import pretrain, weather, worlds
from benchmarks.worlds.scenes import sample_scene
from benchmarks.worlds.styles import cityscapes, gtav
from benchmarks.worlds.worlds import WORLDS, World, render_worlds, sample

SHIPPED = Path(worlds.__file__).with_name("backbone.safetensors")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "WORLDS", {d: World(w.split, 3) for d, w in WORLDS.items()})
    weathers = {d: weather.World(w.style, {"train": 1}) for d, w in weather.WORLDS.items()}
    monkeypatch.setattr(weather, "WORLDS", weathers)
    monkeypatch.setattr(worlds, "SMALL_IMAGES", 1)


@pytest.mark.usefixtures("few")
def test_rendered_twice_is_bit_identical(tmp_path: Path) -> None:
    one, two = (render_worlds(tmp_path / name) for name in ("one", "two"))
    manifests = [json.loads((root / "manifest.json").read_text()) for root in (one, two)]
    assert manifests[0] == manifests[1]
    for name, digest in manifests[0]["files"].items():
        assert hashlib.sha256((two / name).read_bytes()).hexdigest() == digest


@pytest.mark.usefixtures("few")
def test_another_seed_renders_other_images(tmp_path: Path) -> None:
    one, two = render_worlds(tmp_path / "one", seed=1), render_worlds(tmp_path / "two", seed=2)
    name = "gtav/images/00001.png"
    assert (one / name).read_bytes() != (two / name).read_bytes()


@pytest.mark.usefixtures("few")
def test_rendering_again_keeps_the_files(tmp_path: Path) -> None:
    root = render_worlds(tmp_path / "mini")
    before = (root / "manifest.json").stat().st_mtime_ns
    assert (render_worlds(root) / "manifest.json").stat().st_mtime_ns == before
    (root / "gtav/images/00002.png").unlink()
    render_worlds(root)
    assert (root / "gtav/images/00002.png").is_file()


@pytest.mark.usefixtures("few")
def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no mini worlds"):
        render_worlds(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("few")
def test_another_renderer_deletes_no_file_that_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = render_worlds(tmp_path / "mini")
    (root / "gtav/thesis.txt").write_text("mine")
    manifest = json.loads((root / "manifest.json").read_text())
    gone, edited = "gtav/images/gone.png", "gtav/images/edited.png"
    for file in (gone, edited):
        shutil.copy(root / "gtav/images/00001.png", root / file)
        manifest["files"][file] = manifest["files"]["gtav/images/00001.png"]
    (root / edited).write_text("mine")
    (root / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(worlds, "renderer_hash", lambda: "another")
    render_worlds(root)
    assert (root / "gtav/thesis.txt").read_text() == (root / edited).read_text() == "mine"
    assert not (root / gone).exists()
    written = json.loads((root / "manifest.json").read_text())
    assert written["origin"]["renderer"] == "another"
    assert gone not in written["files"]


@pytest.mark.usefixtures("few")
def test_a_file_in_the_place_of_a_rendered_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = render_worlds(tmp_path / "mini")
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["files"]["gtav/images/00001.png"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "gtav/images/00001.png").write_text("mine")
    monkeypatch.setattr(worlds, "renderer_hash", lambda: "another")
    with pytest.raises(UserError, match=r"00001\.png: was not rendered, and a rendered file"):
        render_worlds(root)
    assert (root / "gtav/images/00001.png").read_text() == "mine"
    assert not (root / ".partial").exists()


@pytest.mark.usefixtures("few")
def test_no_file_is_ever_missing_while_the_worlds_are_rendered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = render_worlds(tmp_path / "mini")
    names = list(worlds.read_manifest(root).files)
    kept = {name: (root / name).stat().st_ino for name in names}
    draw = worlds.render_small_worlds
    looked = []

    def draw_and_look(folder: Path, seed: int) -> None:
        draw(folder, seed)
        looked.append([name for name in names if not (root / name).is_file()])

    monkeypatch.setattr(worlds, "render_small_worlds", draw_and_look)
    replace = Path.replace

    def replace_and_look(source: Path, target: Path) -> Path:
        result = replace(source, target)
        looked.append([name for name in names if not (root / name).is_file()])
        return result

    monkeypatch.setattr(Path, "replace", replace_and_look)
    monkeypatch.setattr(worlds, "renderer_hash", lambda: "another")
    render_worlds(root)  # the same bytes
    assert {name: (root / name).stat().st_ino for name in names} == kept
    render_worlds(root, seed=2)  # other ones
    assert {name: (root / name).stat().st_ino for name in names} != kept
    assert len(looked) > 10
    assert not any(looked)


@pytest.mark.usefixtures("few")
def test_a_root_that_is_a_link_or_a_mount_point_is_rendered_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/lost+found").mkdir()  # as a fresh file system has it
    (tmp_path / "mini").symlink_to("disk")
    root = render_worlds(tmp_path / "mini")
    monkeypatch.setattr(worlds, "renderer_hash", lambda: "another")
    render_worlds(root)
    assert root.is_symlink()
    assert worlds.read_manifest(tmp_path / "disk").origin["renderer"] == "another"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "mini"]


@pytest.mark.usefixtures("few")
def test_a_manifest_that_names_files_outside_is_none(tmp_path: Path) -> None:
    root = render_worlds(tmp_path / "mini")
    (tmp_path / "thesis.txt").write_text("mine")
    manifest = json.loads((root / "manifest.json").read_text())
    for name in ("../thesis.txt", str(tmp_path / "thesis.txt")):
        digest = hashlib.sha256(b"mine").hexdigest()
        changed = manifest | {"files": {name: digest}, "origin": {"seed": 1}}
        (root / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="is no manifest of rendered worlds"):
            render_worlds(root)
        assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.parametrize("command", ["render", "sheet"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"files": {}}', None])
def test_commands_say_what_is_wrong_with_a_manifest(
    command: str, text: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mini").mkdir()
    if text is not None:
        (tmp_path / "mini/manifest.json").write_text(text)
    elif command == "render":
        (tmp_path / "mini/other.txt").touch()
    out = ["--out", str(tmp_path / "out")] if command == "sheet" else []
    assert main(["mini", command, "--root", str(tmp_path / "mini"), *out]) == 2
    err = capfd.readouterr().err
    assert "mini worlds" in err or "is no manifest of rendered worlds" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "-1"],
        ["--steps", "0"],
        ["--seed", "-1"],
        ["--pairs", "0"],
        ["--workers", "0"],
        ["--device", "cuda:99"],
        ["--out", "/dev/null/x"],
        ["--out", "/tmp"],
    ],
)
def test_pretraining_that_cannot_be_is_one_line(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["mini", "pretrain", "--out", str(tmp_path / "vit.safetensors"), *options]) == 2
    err = capfd.readouterr().err
    said = {"--out": f"{options[1]}: cannot be written", "--device": "cuda:99"}
    assert said.get(options[0], options[0]) in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_pretraining_draws_the_same_scenes_with_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        pretrain.pretrain(tmp_path / f"{workers}.safetensors", 2, 2, seed=3, workers=workers)
    one, other = (tmp_path / f"{workers}.safetensors" for workers in (1, 2))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("text", ["", '{"origin": ', "[]", "{}", '{"files": {}}'])
def test_a_manifest_that_cannot_be_read_is_one_line_and_deletes_nothing(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"manifest\.json: is no manifest of rendered worlds"):
        render_worlds(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("domain", WORLDS)
def test_loaders_read_back_what_was_drawn(domain: str, tmp_path: Path) -> None:
    root = render_worlds(tmp_path / "mini")
    card = load_card(domain)
    pairs = card.pairs(root, WORLDS[domain].split)
    drawn = {scene.labels.tobytes() for scene, _ in (sample(domain, i) for i in range(3))}
    read = [read_pair(pair, card) for pair in pairs]
    assert {labels.astype(np.uint8).tobytes() for _, labels in read} == drawn
    assert {image.shape for image, _ in read} == {(96, 160, 3)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each set that no mini protocol uses."""
    root = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "SMALL_IMAGES", 4)
        worlds.render_small_worlds(root, seed=1)
    return root


@pytest.mark.parametrize(
    ("card_name", "split", "stream"),
    [
        ("synthia", "train", "synthia"),
        ("urbansyn", "train", "urbansyn"),
        ("acdc", "train", "acdc_train"),
        ("acdc", "val", "acdc_val"),
        ("cityscapes", "train", "cityscapes_train"),
    ],
)
def test_loaders_read_back_the_small_worlds(
    card_name: str, split: str, stream: str, small: Path
) -> None:
    card = load_card(card_name)
    read = [read_pair(pair, card) for pair in card.pairs(small, split)]
    scenes = [worlds.sample_small(stream, 1, index, gtav)[0] for index in range(4)]
    assert {labels.tobytes() for _, labels in read} == {s.labels.tobytes() for s in scenes}
    assert {image.shape for image, _ in read} == {(96, 160, 3)}


def test_small_acdc_has_one_image_of_each_condition(small: Path) -> None:
    card = load_card("acdc")
    assert [len(card.pairs(small, f"val_{c}")) for c in ("fog", "night", "rain", "snow")] == [1] * 4


def test_fog_thickens_and_keeps_scene_and_boxes(small: Path) -> None:
    clear, foggy = load_card("cityscapes_boxes", "boxes"), load_card("foggy_cityscapes", "boxes")
    scene, _ = worlds.sample_small("cityscapes_train", 1, 0, cityscapes)
    levels = []
    for pair in foggy.pairs(small, "train_all")[:3]:  # one picture, 0.005, 0.01 and 0.02 per metre
        image, found = read_boxes(pair, foggy)
        _, boxes = read_boxes(clear.pairs(small, "train")[0], clear)
        np.testing.assert_array_equal(found.boxes, boxes.boxes)
        levels.append(image.astype(float))
    change = [np.abs(levels[more] - levels[0]).mean(axis=2) for more in (1, 2)]
    far = (scene.depth > 20) & (scene.labels != 10)
    assert 0 < change[0][far].mean() < change[1][far].mean()


def test_boxes_of_the_written_instances_are_those_of_the_scene(small: Path) -> None:
    card = load_card("cityscapes_boxes", "boxes")
    train_id = dict(zip((11, 12, 13, 14, 15, 16, 17, 18), range(8), strict=True))
    for index, pair in enumerate(sorted(card.pairs(small, "train"), key=lambda p: p.name[-13:])):
        scene, _ = worlds.sample_small("cityscapes_train", 1, index, cityscapes)
        drawn = {(train_id[each["train_id"]], *each["box"]) for each in scene.boxes()}
        _, found = read_boxes(pair, card)
        assert drawn == {
            (int(label), *map(int, box))
            for label, box in zip(found.labels, found.boxes, strict=True)
        }


def test_every_class_occurs_often_enough_in_every_domain() -> None:
    for domain in WORLDS:
        seen = np.zeros(256)
        for index in range(60):
            seen[np.unique(sample(domain, index)[0].labels)] += 1
        assert seen[:19].min() >= 15, (domain, seen[:19])


def test_domains_share_geometry_and_differ_in_appearance() -> None:
    road, light = {}, {}
    for domain in WORLDS:
        pairs = [sample(domain, index) for index in range(60)]
        road[domain] = np.mean([(scene.labels == 0).mean() for scene, _ in pairs])
        light[domain] = np.mean([image.std(axis=2).mean() for _, image in pairs])  # colourfulness
    assert max(road.values()) - min(road.values()) < 0.03
    assert light["gtav"] > 1.5 * light["cityscapes"]


def test_boxes_enclose_the_visible_pixels_of_their_class() -> None:
    scene = sample_scene(np.random.default_rng(5))
    boxes = scene.boxes()
    assert boxes
    for box in boxes:
        x1, y1, x2, y2 = box["box"]
        assert 0 <= x1 < x2 <= 160
        assert 0 <= y1 < y2 <= 96
        inside = (scene.labels[y1:y2, x1:x2] == box["train_id"]).sum()
        assert box["pixels"] <= inside
        assert 11 <= box["train_id"] <= 18
        assert box["full_box"][0] <= x1
        assert box["full_box"][2] >= x2


def test_no_space_left_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worlds, "write_pair", full)
    with pytest.raises(UserError, match="No space left"):
        render_worlds(tmp_path / "mini")
    assert not list(tmp_path.iterdir())


def test_the_shipped_backbone_is_the_protocols() -> None:
    spec = load_protocol("mini_gtav").backbone
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == spec.sha256
    assert SHIPPED.stat().st_size < 12e6
    assert load_backbone(spec).weights_sha256 == spec.sha256


def test_pretraining_pairs_show_one_scene_in_two_styles() -> None:
    images, category, depth, edges = pretrain.TwoStyles(seed=3, length=4)[2]
    assert images.shape == (2, 3, 96, 96)
    assert category.shape == depth.shape == edges.shape == (48, 48)
    assert not images[0].allclose(images[1], atol=0.1)
    assert set(category.unique().tolist()) <= {*range(7), 255}


def test_pretraining_writes_weights_that_the_backbone_loads(tmp_path: Path) -> None:
    pretrain.pretrain(tmp_path / "vit.safetensors", steps=12, pairs=2)
    log = (tmp_path / "vit.csv").read_text().splitlines()
    assert log[0].startswith("step,category,depth,edges,contrast")
    assert load_file(tmp_path / "vit.safetensors").keys() == load_file(SHIPPED).keys()


def test_pretraining_without_categories_never_sees_one() -> None:
    torch.manual_seed(0)
    model = pretrain.Pretext(categories=False)
    images, category, depth, edges = (part[None] for part in pretrain.TwoStyles(3, 4)[2])
    losses = model(images, torch.full_like(category, -1), depth, edges)  # no value of a category
    assert set(losses) == {"depth", "edges", "contrast"}
    sum(losses.values()).backward()
    patch = pretrain.ARCHITECTURE["patch_size"] // pretrain.CELL
    assert not model.maps.weight.grad[: 7 * patch * patch].any()
