"""The download sections of the shipped cards, and what their schema refuses."""

import pytest

from benchmarks import yaml_files
from benchmarks.data import cards
from benchmarks.data.download_source import Source
from benchmarks.errors import UserError

# Typed from where each address was read, not from the cards.
FILES = {
    "gtav": [
        f"https://download.visinf.tu-darmstadt.de/data/from_games/data/{part:02}_{kind}.zip"
        for kind in ("images", "labels")
        for part in range(1, 11)
    ],
    "bdd100k": [
        "https://dl.cv.ethz.ch/bdd100k/data/10k_images_train.zip",
        "https://dl.cv.ethz.ch/bdd100k/data/10k_images_val.zip",
        "https://dl.cv.ethz.ch/bdd100k/data/bdd100k_sem_seg_labels_trainval.zip",
    ],
    "synthia": ["http://synthia-dataset.cvc.uab.cat/SYNTHIA_RAND_CITYSCAPES.rar"],
}
DIRECT = {"kind": "direct", "url": "https://a.example/", "files": [{"name": "a.zip"}]}


def sources(name: str) -> tuple[Source, ...]:
    data = yaml_files.read(cards.FOLDER / f"{name}.yaml")
    return tuple(yaml_files.validate(Source, way, name) for way in data.get("download", ()))


@pytest.mark.parametrize("name", FILES)
def test_direct_addresses_are_the_known_ones(name: str) -> None:
    source = sources(name)[0]
    assert [source.url + archive.name for archive in source.archives()] == FILES[name]


@pytest.mark.parametrize("name", cards.names())
def test_every_card_says_where_its_files_come_from(name: str) -> None:
    ways = sources(name)
    assert ways
    assert len({way.kind for way in ways}) == len(ways)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "https://me:secret@a.example/"}, "url"),
        ({"url": "ftp://a.example/"}, "url"),
        ({"kind": "torrent"}, "kind"),
        ({"files": []}, "direct needs files"),
        ({"kind": "hub"}, "OWNER/NAME"),
        ({"files": [{"name": "../a.zip"}]}, "holds no /"),
        ({"files": [{"name": "a.zip", "into": "../b"}]}, "below the data set's folder"),
        ({"files": [{"name": "a.zip", "into": "/b"}]}, "below the data set's folder"),
        ({"files": [{"name": "{part}.zip"}]}, "needs parts"),
        ({"files": [{"name": "{part}.zip", "parts": ["1"], "md5": "0" * 32}]}, "belongs to one"),
        ({"files": [{"name": "a.zip", "md5": "0" * 31}]}, "md5"),
        ({"files": [{"name": "a.zip", "bytes": 0}]}, "bytes"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(change: dict[str, object], words: str) -> None:
    yaml_files.validate(Source, DIRECT, "card")
    with pytest.raises(UserError, match=words):
        yaml_files.validate(Source, DIRECT | change, "card")
