"""The weather domains: the set's layout, boxes that fit, the rule for difficult ones, same bits."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks.worlds import weather, worlds, writers
from benchmarks.worlds.canvas import Camera, Canvas
from benchmarks.worlds.scenes import Scene
from benchmarks.worlds.weather import SIZE, WORLDS, World, render_domain, sample
from benchmarks.worlds.writers import CLASSES, Annotated, annotate, statistics, voc_xml

BOX = ("xmin", "ymin", "xmax", "ymax")
BUILDING, PERSON, CAR, TRAIN = 2, 11, 13, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five domains with 3 images in each list."""
    folder = tmp_path_factory.mktemp("weather")
    with pytest.MonkeyPatch.context() as patch:
        few = {d: World(w.style, dict.fromkeys(w.lists, 3)) for d, w in WORLDS.items()}
        patch.setattr(weather, "WORLDS", few)
        for domain in few:
            render_domain(folder, domain, seed=1)
    return folder


def scene_of(*rectangles: tuple[int, int, tuple[int, int, int, int]]) -> Scene:
    """A scene of rectangles (trainId, instance, x1 y1 x2 y2), painted in this order."""
    canvas = Canvas(Camera(*SIZE, horizon=90.0, centre=160.0, focal=200.0))
    for label, instance, (x1, y1, x2, y2) in ((10, 0, (0, 0, 320, 192)), *rectangles):
        # the painter fills the pixels under its corners too: end one pixel earlier
        corners = [(x1, y1), (x2 - 1, y1), (x2 - 1, y2 - 1), (x1, y2 - 1)]
        canvas.polygon(corners, (label, "sky"), 10.0, instance)
    segments = canvas.paint()
    labels = np.array([s.label for s in canvas.surfaces], dtype=np.uint8)[segments]
    return Scene(segments, labels, np.zeros(SIZE, np.float32), canvas)


def objects_in(xml: Path) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (item.findtext("name"), tuple(int(item.findtext(f"bndbox/{edge}")) for edge in BOX))
        for item in ElementTree.parse(xml).iter("object")
    ]


def test_the_layout_is_that_of_the_real_set(root: Path) -> None:
    homes = sorted(path.name for path in (root / "diverseWeather").iterdir())
    assert homes == sorted(
        ("daytime_clear", "Night-Sunny", "dusk_rainy", "night_rainy", "daytime_foggy")
    )
    for domain in homes:
        home = root / "diverseWeather" / domain / "VOC2007"
        lists = {f.stem: f.read_text().split() for f in (home / "ImageSets/Main").iterdir()}
        assert set(lists) == ({"train", "test"} if domain == "daytime_clear" else {"train"})
        named = [name for names in lists.values() for name in names]
        assert len(named) == len(set(named)) == 3 * len(lists)  # no image in two lists
        assert {f.name for f in (home / "JPEGImages").iterdir()} == {f"{n}.jpg" for n in named}
        assert {f.name for f in (home / "Annotations").iterdir()} == {f"{n}.xml" for n in named}


def test_what_is_rendered_is_what_the_protocol_needs() -> None:
    assert WORLDS["daytime_clear"].lists == {"train": 600, "test": 160}
    assert all(w.lists == {"train": 160} for d, w in WORLDS.items() if d != "daytime_clear")


def test_annotations_fit_their_images(root: Path) -> None:
    seen = 0
    for xml in (root / "diverseWeather").rglob("*.xml"):
        with Image.open(xml.parents[1] / "JPEGImages" / f"{xml.stem}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", SIZE[::-1])
        tree = ElementTree.parse(xml).getroot()
        assert tree.findtext("filename") == f"{xml.stem}.jpg"
        assert [tree.findtext(f"size/{k}") for k in ("height", "width", "depth")] == [
            *map(str, SIZE),
            "3",
        ]
        for name, (x1, y1, x2, y2) in objects_in(xml):
            assert name in CLASSES.values()
            assert 1 <= x1 < x2 <= SIZE[1]
            assert 1 <= y1 < y2 <= SIZE[0]
            seen += 1
    assert seen > 40


def test_files_hold_the_drawn_boxes_counted_from_one(root: Path) -> None:
    home = root / "diverseWeather" / "daytime_clear" / "VOC2007"
    names = (home / "ImageSets/Main/test.txt").read_text().split()
    for index, name in enumerate(names, start=3):  # 3 training images before them
        scene, image = sample("daytime_clear", index, seed=1)
        drawn = [(o.name, (o.box[0] + 1, o.box[1] + 1, *o.box[2:])) for o in annotate(scene)]
        assert objects_in(home / "Annotations" / f"{name}.xml") == drawn
        stored = np.asarray(Image.open(home / "JPEGImages" / f"{name}.jpg"), dtype=float)
        assert np.abs(stored - image).mean() < 4


def test_every_class_can_be_scored_in_every_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "render", lambda *_: None)  # geometry only: much faster
    for domain in WORLDS:
        scenes = [sample(domain, index, worlds.SEED)[0] for index in range(24)]
        counts = Counter(o.name for s in scenes for o in annotate(s) if not o.difficult)
        assert set(counts) == set(CLASSES.values())
        assert min(counts.values()) >= 4, (domain, counts)
        assert not any((scene.labels == TRAIN).any() for scene in scenes)


def test_domains_look_like_their_names() -> None:
    light, spread, scenes = {}, {}, {}
    for domain in WORLDS:
        pairs = [sample(domain, index, worlds.SEED) for index in range(8)]
        light[domain] = np.mean([image.mean() for _, image in pairs])
        spread[domain] = np.mean([image[60:120].std() for _, image in pairs])  # around the horizon
        scenes[domain] = pairs[0][0].labels.tobytes()
    assert len(set(scenes.values())) == len(WORLDS)  # no geometry is shared
    assert light["Night-Sunny"] < 0.55 * light["daytime_clear"]
    assert light["night_rainy"] < 0.55 * light["daytime_clear"]
    assert light["Night-Sunny"] < light["dusk_rainy"] < 0.8 * light["daytime_clear"]
    assert light["daytime_foggy"] > light["daytime_clear"]
    assert spread["daytime_foggy"] < 0.8 * spread["daytime_clear"]


def test_hidden_small_and_cut_off_objects() -> None:
    found = annotate(
        scene_of(
            (PERSON, 1, (10, 60, 30, 110)),  # free
            (CAR, 2, (50, 60, 100, 90)),  # 30 of its 50 columns get hidden: 40 % are seen
            (BUILDING, 0, (70, 60, 120, 90)),
            (CAR, 3, (150, 60, 200, 90)),  # 34 of 50 columns: 32 % are seen
            (BUILDING, 0, (166, 60, 220, 90)),
            (PERSON, 4, (230, 60, 237, 90)),  # 7 pixels wide
            (PERSON, 5, (250, 60, 254, 90)),  # 4 pixels wide
            (TRAIN, 6, (260, 60, 280, 90)),  # none of the seven classes
            (CAR, 7, (290, 60, 350, 90)),  # half of it is outside
            (CAR, 8, (290, 120, 410, 150)),  # three quarters are outside
            (PERSON, 9, (130, 100, 140, 130)),  # all of it gets hidden
            (BUILDING, 0, (130, 100, 140, 130)),
        )
    )
    assert [(o.name, o.box, o.difficult, o.truncated) for o in found] == [
        ("person", (10, 60, 30, 110), False, False),
        ("car", (50, 60, 70, 90), False, False),
        ("car", (150, 60, 166, 90), True, False),
        ("person", (230, 60, 237, 90), True, False),
        ("car", (290, 60, 320, 90), False, True),
        ("car", (290, 120, 320, 150), True, True),
    ]
    assert [o.share for o in found] == pytest.approx([1, 0.4, 0.32, 1, 0.5, 0.25])


def test_the_rule_changes_at_its_limits() -> None:
    def one(side: int, share: float) -> Annotated:
        return Annotated("car", (0, 0, side, 40), share, False)

    assert not one(writers.SMALL, writers.SHARE).difficult
    assert one(writers.SMALL - 1, 1.0).difficult
    assert one(40, writers.SHARE - 1e-6).difficult
    widths = (writers.LEAST, writers.LEAST - 1)
    scene = scene_of(*((PERSON, i + 1, (20 * i, 0, 20 * i + w, 30)) for i, w in enumerate(widths)))
    assert [o.box[2] - o.box[0] for o in annotate(scene)] == [writers.LEAST]


def test_an_image_without_objects_has_an_annotation() -> None:
    tree = ElementTree.fromstring(voc_xml("empty", SIZE, annotate(scene_of())))
    assert tree.find("size") is not None
    assert tree.find("object") is None


def test_the_same_seed_renders_the_same_bits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {d: World(w.style, {"train": 2}) for d, w in WORLDS.items()}
    monkeypatch.setattr(weather, "WORLDS", few)
    for domain in few:
        render_domain(tmp_path / "again", domain, seed=1)
    files = [f for f in (tmp_path / "again").rglob("*") if f.suffix in (".jpg", ".xml")]
    assert len(files) == 2 * 2 * len(WORLDS)
    for file in files:
        assert file.read_bytes() == (root / file.relative_to(tmp_path / "again")).read_bytes()
    render_domain(tmp_path / "other", "dusk_rainy", seed=2)
    for file in (tmp_path / "other").rglob("*.jpg"):
        assert file.read_bytes() != (root / file.relative_to(tmp_path / "other")).read_bytes()


def test_rendered_with_the_other_worlds_and_counted_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(worlds.WORLDS["gtav"], images=1)
    monkeypatch.setattr(worlds, "WORLDS", {"gtav": one})
    monkeypatch.setattr(weather, "WORLDS", {"dusk_rainy": WORLDS["dusk_rainy"]})
    monkeypatch.setitem(WORLDS["dusk_rainy"].lists, "train", 2)
    folder = worlds.render_worlds(tmp_path / "mini", names=["gtav", "dusk_rainy"])
    files = json.loads((folder / "manifest.json").read_text())["files"]
    xmls = [folder / name for name in files if name.endswith(".xml")]
    assert len(xmls) == 2
    table = worlds.boxes(folder, tmp_path / "out").read_text().splitlines()
    rows = [line.split(",") for line in table]
    assert [row[0] for row in rows[1:]] == ["dusk_rainy/train"] * 7
    drawn = Counter(name for xml in xmls for name, _ in objects_in(xml))
    assert {row[3]: int(row[4]) for row in rows[1:]} == {c: drawn[c] for c in CLASSES.values()}
    assert {len(row) for row in rows} == {len(rows[0])}


def test_statistics_of_a_hand_made_list() -> None:
    boxes = [(0, 0, width, 20) for width in (10, 20, 30)]
    images = [
        [Annotated("car", box, 1.0, False) for box in boxes],
        [],
        [Annotated("car", (0, 0, 90, 90), 0.1, True)],
    ]
    counted = statistics(images)
    assert (counted["images"], counted["without_box"]) == (3, 1)
    car = counted["classes"]["car"]
    assert (car["boxes"], car["difficult"], car["truncated"]) == (4, 1, 1)
    assert car["width"] == pytest.approx([12, 20, 28])
    assert car["height"] == [20, 20, 20]
    assert counted["classes"]["bus"] == {"boxes": 0, "difficult": 0, "truncated": 0}
