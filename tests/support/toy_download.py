"""A card of a toy data set whose files are fetched in tests, and what they are."""

import io
import sys
import zipfile
from pathlib import Path

CARD = """
name: toy
title: A toy
folder: toy
native_size: null
test_sizes: {}
licence: none
access: none
splits: {val: {images: "images/{name}.png", labels: "labels/{name}.png", count: 1}}
label: {encoding: gray_png, classes: {road: [0]}, void: [255]}
sources: []
"""


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


IMAGES, LABELS = zipped(images__1="image" * 1000), zipped(labels__1="label")


def write_card(root: Path, *sources: str) -> None:
    ways = "".join(f"  - {{{source}}}\n" for source in sources)
    (root.parent / "cards" / "toy.yaml").write_text(f"{CARD}download:\n{ways}")


def files(root: Path) -> dict[str, str]:
    """What lies below the root, without the command's own folder."""
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and ".download" not in path.parts
    }


PLACED = {"toy/images/1": "image" * 1000, "toy/labels/1": "label"}


def run_here(root: Path) -> list[str]:
    """The same command in another process, with the toy card."""
    code = (
        "import sys, pathlib; from benchmarks.data import cards;"
        "from benchmarks.__main__ import main;"
        f"cards.FOLDER = pathlib.Path({str(root.parent / 'cards')!r});"
        f"sys.exit(main(['download', '--dataset', 'toy', '--root', {str(root)!r}]))"
    )
    return [sys.executable, "-c", code]
