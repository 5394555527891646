"""The mini worlds: deterministic, in the real layouts, every class present, boxes kept."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks.__main__ import main
from benchmarks.backbones import load_backbone
from benchmarks.data.cards import load_card
from benchmarks.detection.reading import read_pair as read_boxes
from benchmarks.errors import UserError
from benchmarks.segmentation.data import read_pair
from benchmarks.tasks import load_protocol
from benchmarks.worlds import pretrain, styles, weather, worlds
from benchmarks.worlds.appearance import render
from benchmarks.worlds.scenes import sample_scene
from benchmarks.worlds.worlds import WORLDS, render_worlds, sample

SHIPPED = Path(worlds.__file__).with_name("backbone.safetensors")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {d: 3 if d in worlds.TABLE1 else 1 for d in WORLDS}
    few = {d: replace(w, images=images[d]) for d, w in WORLDS.items()}
    monkeypatch.setattr(worlds, "WORLDS", few)
    weathers = {d: weather.World(w.style, {"train": 1}) for d, w in weather.WORLDS.items()}
    monkeypatch.setattr(weather, "WORLDS", weathers)


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
    draw = worlds.write_instances
    looked = []

    def draw_and_look(*what: object) -> None:
        draw(*what)
        looked.append([name for name in names if not (root / name).is_file()])

    monkeypatch.setattr(worlds, "write_instances", draw_and_look)
    move = Path.replace

    def replace_and_look(source: Path, target: Path) -> Path:
        result = move(source, target)
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
    root = render_worlds(tmp_path / "mini", names=[domain])
    world = WORLDS[domain]
    card = load_card(world.card)
    pairs = card.pairs(root, world.split)
    drawn = {scene.labels.tobytes() for scene, _ in map(partial(sample, domain), range(len(pairs)))}
    read = [read_pair(pair, card) for pair in pairs]
    assert {labels.astype(np.uint8).tobytes() for _, labels in read} == drawn
    assert {image.shape for image, _ in read} == {(96, 160, 3)}


@pytest.mark.usefixtures("few")
def test_worlds_rendered_in_parts_are_those_rendered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = render_worlds(tmp_path / "whole")
    root = render_worlds(tmp_path / "parts", names=["gtav", "acdc_snow", "dusk_rainy"])
    assert {entry.name for entry in root.iterdir() if entry.is_dir()} == {
        *("gtav", "acdc", "boxes", "diverseWeather"),
    }
    first = worlds.read_manifest(root)
    kept = {file: (root / file).stat().st_ino for file in first.files}
    render_worlds(root, names=["gtav"])
    assert worlds.read_manifest(root) == first  # nothing to do
    monkeypatch.setattr(worlds, "sample", _only("cityscapes", "bdd100k"))
    render_worlds(root, names=["gtav", "cityscapes", "bdd100k"])
    assert kept == {file: (root / file).stat().st_ino for file in first.files}
    monkeypatch.setattr(worlds, "sample", sample)
    render_worlds(root)
    for read in (worlds.MANIFEST, *worlds.read_manifest(whole).files):
        assert (root / read).read_bytes() == (whole / read).read_bytes()


def _only(*domains: str) -> Callable[..., object]:
    """`sample`, for these domains alone."""

    def checked(domain: str, *args: object) -> object:
        assert domain in domains
        return sample(domain, *args)

    return checked


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("listed", [True, False])
def test_another_renderer_renders_all_that_was_there(
    listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = render_worlds(tmp_path / "mini", names=["gtav"] if listed else None)
    if not listed:  # as a renderer of everything wrote it
        manifest = json.loads((root / "manifest.json").read_text())
        del manifest["worlds"]
        (root / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(worlds, "renderer_hash", lambda: "another")
    before = worlds.read_manifest(root).files
    render_worlds(root, names=["acdc_fog"])
    after = worlds.read_manifest(root)
    assert set(after.worlds) == ({"gtav", "acdc_fog"} if listed else worlds.everything())
    assert before.items() <= after.files.items()
    assert all((root / file).is_file() for file in after.files)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("table1", worlds.TABLE1),
        ("table2", weather.WORLDS),
        ("table3a", (*worlds.TABLE1, "synthia")),
        ("table3b", (*worlds.TABLE1, "synthia", "urbansyn")),
        ("table3c", ("cityscapes", "cityscapes_train", "bdd100k", "mapillary")),
        ("table3d", ("cityscapes", "cityscapes_train", *(w for w in WORLDS if "acdc" in w))),
        ("table4", worlds.TABLE1),
    ],
)
def test_what_a_table_reads_is_all_that_is_rendered_for_it(
    table: str, names: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(worlds, "render_worlds", lambda _, names: asked.append(names))
    assert main(["mini", "render", "--table", table]) == 0
    assert asked == [frozenset(names)]
    monkeypatch.setattr(worlds, "render_worlds", lambda _, names: asked.append(names))
    assert main(["mini", "render"]) == 0
    assert asked[1] is None


def test_the_sheet_wants_everything_rendered(
    tmp_path: Path, few: None, capfd: pytest.CaptureFixture[str]
) -> None:
    root = render_worlds(tmp_path / "mini", names=["gtav"])
    assert main(["mini", "sheet", "--root", str(root), "--out", str(tmp_path / "out")]) == 2
    assert "is not rendered; python -m benchmarks mini render" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_further_sources_are_to_gtav_as_the_real_ones() -> None:
    trained = WORLDS["gtav"].images - 160
    for name in ("synthia", "urbansyn"):
        share = load_card(name).split("train").count / load_card("gtav").split("train").count
        assert WORLDS[name].images == round(trained * share)


def test_the_scenes_of_table_1_keep_their_random_streams() -> None:
    for number, domain in enumerate(("gtav", "cityscapes", "bdd100k", "mapillary")):
        rng = np.random.default_rng([1, number, 5])
        scene, image = sample(domain, 5)
        assert scene.labels.tobytes() == sample_scene(rng).labels.tobytes()
        style = getattr(styles, domain)
        np.testing.assert_array_equal(image, render(scene, style(rng), rng))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of Cityscapes, with instances and in fog."""
    few = {d: replace(w, images=4) for d, w in WORLDS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "WORLDS", few)
        return render_worlds(
            tmp_path_factory.mktemp("small"), names=["cityscapes", "foggy_cityscapes"]
        )


def test_fog_thickens_and_keeps_scene_and_boxes(small: Path) -> None:
    clear, foggy = load_card("cityscapes_boxes", "boxes"), load_card("foggy_cityscapes", "boxes")
    scene, _ = sample("cityscapes", 0)
    levels = []
    for pair in foggy.pairs(small, "val_all")[:3]:  # one picture, 0.005, 0.01 and 0.02 per metre
        image, found = read_boxes(pair, foggy)
        _, boxes = read_boxes(clear.pairs(small, "val")[0], clear)
        np.testing.assert_array_equal(found.boxes, boxes.boxes)
        levels.append(image.astype(float))
    change = [np.abs(levels[more] - levels[0]).mean(axis=2) for more in (1, 2)]
    far = (scene.depth > 20) & (scene.labels != 10)
    assert 0 < change[0][far].mean() < change[1][far].mean()


def test_boxes_of_the_written_instances_are_those_of_the_scene(small: Path) -> None:
    card = load_card("cityscapes_boxes", "boxes")
    train_id = dict(zip((11, 12, 13, 14, 15, 16, 17, 18), range(8), strict=True))
    for index, pair in enumerate(sorted(card.pairs(small, "val"), key=lambda p: p.name[-13:])):
        scene, _ = sample("cityscapes", index)
        drawn = {(train_id[each["train_id"]], *each["box"]) for each in scene.boxes()}
        _, found = read_boxes(pair, card)
        assert drawn == {
            (int(label), *map(int, box))
            for label, box in zip(found.labels, found.boxes, strict=True)
        }


def test_every_class_occurs_often_enough_in_every_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "render", lambda *_: None)  # geometry only: faster
    for domain in WORLDS:
        seen = np.zeros(256)
        for index in range(40):
            seen[np.unique(sample(domain, index)[0].labels)] += 1
        assert seen[:19].min() >= 10, (domain, seen[:19])


def test_domains_share_geometry_and_differ_in_appearance() -> None:
    road, light = {}, {}
    for domain in worlds.TABLE1:
        pairs = [sample(domain, index) for index in range(60)]
        road[domain] = np.mean([(scene.labels == 0).mean() for scene, _ in pairs])
        light[domain] = np.mean([image.std(axis=2).mean() for _, image in pairs])  # colourfulness
    assert max(road.values()) - min(road.values()) < 0.03
    assert light["gtav"] > 1.5 * light["cityscapes"]


def test_further_domains_look_like_their_names() -> None:
    own = [world.style for name, world in WORLDS.items() if name != "cityscapes_train"]
    assert len(set(own)) == len(own)
    assert WORLDS["cityscapes_train"].style is WORLDS["cityscapes"].style
    scenes, light, cast, spread = set(), {}, {}, {}
    for domain in WORLDS:
        pairs = [sample(domain, index) for index in range(8)]
        photos = np.stack([image for _, image in pairs]).astype(float)
        scenes.add(pairs[0][0].labels.tobytes())
        light[domain], cast[domain] = photos.mean(), np.ptp(photos.mean(axis=(0, 1, 2)))
        spread[domain] = photos[:, 30:60].std()  # around the horizon
    assert len(scenes) == len(WORLDS)  # no geometry is shared
    city = "cityscapes_train"
    assert light["acdc_night"] < 0.7 * light[city] < light[city] < light["acdc_snow"]
    assert light["acdc_fog"] > 1.1 * light[city]
    assert spread["acdc_fog"] < 0.9 * spread["gtav"]


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


@pytest.mark.parametrize("protocol", ["mini_gtav", "mini_sdgod"])
def test_the_shipped_backbone_is_the_protocols(protocol: str) -> None:
    spec = load_protocol(protocol).backbone
    assert Path(spec.weights).name == SHIPPED.name
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == spec.sha256
    assert SHIPPED.stat().st_size < 12e6
    assert load_backbone(spec).weights_sha256 == spec.sha256


def test_pretraining_pairs_show_one_scene_in_two_styles() -> None:
    images, depth, edges = pretrain.TwoStyles(seed=3, length=4)[2]
    assert images.shape == (2, 3, 96, 96)
    assert depth.shape == edges.shape == (48, 48)
    assert not images[0].allclose(images[1], atol=0.1)
    assert set(edges.unique().tolist()) == {0.0, 1.0}


def test_pretraining_writes_weights_that_the_backbone_loads(tmp_path: Path) -> None:
    pretrain.pretrain(tmp_path / "vit.safetensors", steps=12, pairs=2)
    log = (tmp_path / "vit.csv").read_text().splitlines()
    assert log[0].startswith("step,depth,edges,contrast")
    assert load_file(tmp_path / "vit.safetensors").keys() == load_file(SHIPPED).keys()
