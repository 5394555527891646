"""A folder with data, a tiny protocol and a table of two methods."""

from pathlib import Path

import pytest
from paths import ROOT
from tiny_worlds import write_world

PROTOCOL = """
extends: {base}
name: tiny
version: 1
backbone:
  weights: random
  args: {{img_size: 96, patch_size: 8, embed_dim: 64, depth: 4, num_heads: 4}}
  features: [0, 1, 2, 3]
head: {{kind: semantic-fpn, hidden: 32, channels: 32, groups: 8, scales: [2.0, 1.0, 0.5, 0.25]}}
recipe: {{iterations: 12, checkpoint_every: 2, batch: 2}}
validation:
  - {{domain: gtav_held_out, card: gtav, split: train, holdout: 2, size: [40, 64]}}
source:
  - {{domain: gtav, card: gtav, split: train, holdout: 2}}
seeds: [0, 1]
default_placement: all
"""
TABLE = """
name: tiny_table
title: Tiny
protocols: {{mini: {protocol}}}
metric: mIoU
domains: {{cityscapes: Cityscapes, bdd100k: BDD100K, mapillary: Mapillary}}
reference: freeze
methods: [freeze, soma]
"""


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a tiny protocol and a table of two methods."""
    folder = tmp_path_factory.mktemp("setting")
    write_world(folder / "data", "gtav", "train", count=6)
    write_world(folder / "data", "mapillary", "val", count=2)
    write_world(folder / "data", "cityscapes", "val", count=2)
    write_world(folder / "data", "bdd100k", "val", count=2)
    base = ROOT / "benchmarks" / "protocols" / "mini_gtav.yaml"
    (folder / "tiny.yaml").write_text(PROTOCOL.format(base=base))
    (folder / "tiny_table.yaml").write_text(TABLE.format(protocol=folder / "tiny.yaml"))
    return folder
