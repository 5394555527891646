import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_voc import CLASSES, annotation, box

from benchmarks.data.cards import load_card
from benchmarks.detection.reading import Objects, read_cityscapes, read_voc
from benchmarks.errors import UserError

CITY = load_card("cityscapes_boxes", "boxes").boxes


def read(folder: Path, text: str | bytes) -> Objects:
    file = folder / "a.xml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_voc(file, CLASSES)


def test_counting_from_one_becomes_corners(tmp_path: Path) -> None:
    objects = (
        box("car", (1, 1, 64, 40)),
        box("bus", (11, 21, 11, 30), 1),
        box("truck", (2, 3, 9, 8)),
    )
    objects = read(tmp_path, annotation(*objects))
    assert objects.boxes.tolist() == [[0, 0, 64, 40], [10, 20, 11, 30], [1, 2, 9, 8]]
    assert objects.labels.tolist() == [2, 0, 6]
    assert objects.difficult.tolist() == [False, True, False]
    assert objects.size == (40, 64)
    assert not objects.repaired
    kinds = objects.boxes.dtype, objects.labels.dtype, objects.difficult.dtype
    assert kinds == (np.float32, np.int64, bool)


def test_without_objects(tmp_path: Path) -> None:
    objects = read(tmp_path, annotation())
    assert objects.boxes.shape == (0, 4)
    assert (len(objects), len(objects.labels), len(objects.difficult)) == (0, 0, 0)


def test_difficult_may_be_absent(tmp_path: Path) -> None:
    assert read(tmp_path, annotation(box("car", (1, 1, 2, 2), None))).difficult.tolist() == [False]


@pytest.mark.parametrize(
    ("corners", "kept", "repaired"),
    [
        ((-1, -1, 10, 10), [0, 0, 10, 10], {"clamped": 1}),
        ((0, 5, 10, 10), [0, 4, 10, 10], {"clamped": 1}),
        ((5, 5, 70, 50), [4, 4, 64, 40], {"clamped": 1}),
        ((1.5, 2, 10.25, 10), [0.5, 1, 10.25, 10], {"fractional": 1}),
        (("2.0", "3.0", "9.0", "8.0"), [1, 2, 9, 8], {}),
        ((-0.5, 2, 10, 10), [0, 1, 10, 10], {"clamped": 1, "fractional": 1}),
        ((20, 5, 10, 10), None, {"dropped": 1}),
        ((5, 20, 10, 10), None, {"dropped": 1}),
        ((65, 1, 80, 10), None, {"dropped": 1}),
        ((-20, 1, -3, 10), None, {"dropped": 1}),
        ((-20, 1, 0, 10), None, {"dropped": 1}),
        ((1, 41, 10, 50), None, {"dropped": 1}),
    ],
)
def test_coordinates_are_repaired_in_memory(
    corners: tuple, kept: list | None, repaired: dict, tmp_path: Path
) -> None:
    text = annotation(box("bike", corners), box("car", (3, 4, 5, 6)))
    objects = read(tmp_path, text)
    rest = [[2, 3, 5, 6]]
    assert objects.boxes.tolist() == ([kept, *rest] if kept else rest)
    assert objects.labels.tolist() == ([1, 2] if kept else [2])
    assert objects.repaired == Counter(repaired)
    assert (tmp_path / "a.xml").read_text() == text


LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE annotation [
<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">
]>
<annotation><filename>&c;</filename></annotation>"""
OUTSIDE = """<!DOCTYPE annotation [<!ENTITY f SYSTEM "file:///etc/hostname">]>
<annotation><filename>&f;</filename></annotation>"""
DTD = '<!DOCTYPE annotation SYSTEM "voc.dtd"><annotation/>'


@pytest.mark.parametrize("text", [LAUGHS, OUTSIDE, DTD])
def test_document_types_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.xml: declares a document type \(annotation\)"):
        read(tmp_path, text)


def test_entities_are_never_expanded(tmp_path: Path) -> None:
    """A million million laughs: had one been expanded, this test would not end."""
    names = "abcdefghijkl"
    entities = [f'<!ENTITY {names[0]} "ha">']
    for one, other in itertools.pairwise(names):
        entities.append(f'<!ENTITY {other} "{10 * f"&{one};"}">')
    text = f"<!DOCTYPE x [{''.join(entities)}]><annotation>&{names[-1]};</annotation>"
    with pytest.raises(UserError, match="document type"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation(box("cars", (1, 1, 2, 2))), r"unknown class 'cars'; did you mean 'car'\?"),
        (annotation(box("", (1, 1, 2, 2))), "unknown class ''; known: bike, bus"),
        ("<annotation/>", "annotation/size/width is missing"),
        ("<annotation><size><width>6</width></size></annotation>", "size/height is missing"),
        (annotation(size=(40, 0)), "size/width 0 is no number of pixels"),
        (annotation(size=(8, 10**20)), r"size/width 1e\+20 is no number of pixels"),
        (annotation(size=(1.5, 8)), "size/height 1.5 is no number of pixels"),
        (annotation(box("car", (1, 1, 2, "x"))), "object/bndbox/ymax is 'x', no number"),
        (annotation(box("car", (1, 1, "nan", 2))), "object/bndbox/xmax is 'nan', no number"),
        (annotation(box("car", (1, "inf", 4, 2))), "object/bndbox/ymin is 'inf', no number"),
        (annotation(box("car", (1, 1, 2, 2), "no")), "object/difficult is 'no', no number"),
        (annotation("<object><name>car</name></object>"), "object/bndbox/xmin is missing"),
        ("<html/>", r"is no VOC annotation \(its root is <html>\)"),
        ("", "is not XML"),
        (annotation()[:-4], "is not XML"),
        ("<annotation>&file;</annotation>", "is not XML .undefined entity"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is not XML"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "is not XML"),
    ],
)
def test_bad_annotations(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"a\.xml: .*{message}"):
        read(tmp_path, text)


def test_missing_annotation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_voc(tmp_path / "b.xml", CLASSES)


def polygon(label: str, *corners: tuple[int, int], **more: object) -> dict:
    return {"label": label, "polygon": [list(corner) for corner in corners], **more}


def rectangle(label: str, x1: int, y1: int, x2: int, y2: int, **more: object) -> dict:
    """Corners inclusive, as the official script paints them."""
    return polygon(label, (x1, y1), (x2, y1), (x2, y2), (x1, y2), **more)


def test_instance_images_and_polygons_give_the_same_boxes(tmp_path: Path) -> None:
    size = {"imgHeight": 40, "imgWidth": 60}
    objects = [
        rectangle("road", 0, 0, 59, 39),
        rectangle("car", 5, 5, 20, 15),
        rectangle("license plate", 5, 5, 20, 15),  # paints nothing
        rectangle("car", 30, 5, 45, 15),
        rectangle("building", 38, 0, 50, 30),  # hides the right half of it
        rectangle("person", 50, 30, 55, 36),
        rectangle("person", 48, 28, 59, 39, deleted=1),
        rectangle("cargroup", 0, 30, 10, 39),  # a group is no instance
        rectangle("rider", 2, 20, 4, 22),
        rectangle("vegetation", 1, 19, 5, 23),  # hides the rider completely
    ]
    polygons = tmp_path / "a_gtFine_polygons.json"
    polygons.write_text(json.dumps({**size, "objects": objects}))
    instances = np.full((40, 60), 7, np.uint16)
    instances[5:16, 5:21] = 26000
    instances[5:16, 30:46] = 26001
    instances[:31, 38:51] = 11
    instances[30:37, 50:56] = 24000
    instances[30:40, :11] = 26
    instances[19:24, 1:6] = 21
    picture = tmp_path / "a_gtFine_instanceIds.png"
    Image.fromarray(instances).save(picture)
    for file in (picture, polygons):
        objects = read_cityscapes(file, CITY)
        boxes = dict(zip(map(tuple, objects.boxes.tolist()), objects.labels.tolist(), strict=True))
        assert boxes == {(5, 5, 21, 16): 2, (30, 5, 38, 16): 2, (50, 30, 56, 37): 0}, file
        assert objects.size == (40, 60)
        assert not objects.difficult.any()


def test_cityscapes_without_instances(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((8, 9), 26, np.uint16)).save(file)
    assert read_cityscapes(file, CITY).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b'{"imgWidth": "a", "imgHeight": 2, "objects": []}', b"\xff{"),
        b'{"imgWidth": 1000000000, "imgHeight": 1000000000, "objects": []}',  # of memory, 8 EB
        b'{"imgWidth": 1%s, "imgHeight": 2, "objects": []}' % (b"0" * 30),
        b'{"imgWidth": 0, "imgHeight": 2, "objects": []}',
    ],
)
def test_bad_polygon_files(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a_gtFine_polygons.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"polygons\.json: is no Cityscapes polygon file"):
        read_cityscapes(file, CITY)
    file.write_bytes(b"[" * 200_000)
    with pytest.raises(UserError, match=r"polygons\.json: is nested without end"):
        read_cityscapes(file, CITY)


def test_coloured_instance_image(tmp_path: Path) -> None:
    file = tmp_path / "a_gtFine_color.png"
    Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(UserError, match="holds colours"):
        read_cityscapes(file, CITY)
