"""Small folders in the layout of S-DGOD, and what the detection task reads of a protocol."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from tiny_worlds import INPUT

from benchmarks.data.cards import load_card
from benchmarks.detection.settings import DetectionAugment
from benchmarks.protocol import Domain

CLASSES = ("bus", "bike", "car", "motor", "person", "rider", "truck")
SOURCE = Domain(domain="day", card="sdgod", split="daytime_clear_train")
NIGHT = Domain(domain="night", card="sdgod", split="night_clear")
AUGMENT = DetectionAugment(
    base=(48, 64),
    scale=(0.5, 1.5),
    crop=32,
    min_side=1.0,
    min_visible=0.25,
    negative_crops=False,
    flip=0.5,
    photometric=True,
    difficult="drop",
    empty="keep",
)


def box(name: str, corners: Iterable[float | str], difficult: int | None = 0) -> str:
    """One object of an annotation; corners as VOC writes them, from 1 and inclusive."""
    parts = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    bounds = "".join(f"<{part}>{value}</{part}>" for part, value in parts)
    return f"<object><name>{name}</name>{flag}<bndbox>{bounds}</bndbox></object>"


def annotation(*objects: str, size: tuple[int, int] = (40, 64)) -> str:
    height, width = size
    sides = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>x.jpg</filename>{sides}{''.join(objects)}</annotation>"


def random_objects(rng: np.random.Generator, size: tuple[int, int]) -> list[str]:
    """Between two and five boxes of random classes, each about a fifth of the image wide."""
    height, width = size
    objects = []
    for _ in range(rng.integers(2, 6)):
        x, y = rng.integers(1, width - width // 5), rng.integers(1, height - height // 5)
        objects.append(box(str(rng.choice(CLASSES)), (x, y, x + width // 5, y + height // 5)))
    return objects


def write_domain(
    root: Path,
    split: str = "daytime_clear_train",
    count: int = 4,
    size: tuple[int, int] = (40, 64),
    empty: Iterable[int] = (),
    seed: int = 0,
) -> list[str]:
    """`count` noise images with boxes and the list of them; returns their names.

    Those whose number is in `empty` have no box.
    """
    card, rng = load_card("sdgod", "boxes"), np.random.default_rng(seed)
    names = [f"{split}-{index:04d}" for index in range(count)]
    for index, name in enumerate(names):
        image, label = (card.path(root, split, kind, name=name) for kind in ("images", "labels"))
        for file in (image, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
        objects = [] if index in empty else random_objects(rng, size)
        label.write_text(annotation(*objects, size=size))
    lists = card.path(root, split, "list_file")
    lists.parent.mkdir(parents=True, exist_ok=True)
    lists.write_text("\n".join(names) + "\n")
    return names


def tiny_detection_protocol(**changes: object) -> SimpleNamespace:
    """What data and evaluation of detection read of a protocol."""
    fields = {
        "name": "tiny",
        "source": (SOURCE,),
        "validation": (),
        "targets": (NIGHT.model_copy(update={"size": (20, 64)}),),
        "input": INPUT,
        "augment": AUGMENT,
        "recipe": SimpleNamespace(iterations=6, batch=2, loader_workers=0),
    }
    made = SimpleNamespace(ground_truth="boxes", **{**fields, **changes})
    return made
