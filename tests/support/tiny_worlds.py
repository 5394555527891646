"""Tiny data sets in the real layouts, and the protocol parts that read them."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data.cards import Card, load_card
from benchmarks.protocol import Backbone, Domain, Input
from benchmarks.segmentation.settings import (
    Augment,
    LinearHead,
    Mask2FormerHead,
    SemanticFpnHead,
    Window,
)

INPUT = Input(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HEAD = Mask2FormerHead(
    hidden=32,
    feedforward=32,
    encoder_layers=1,
    decoder_layers=2,
    attention_heads=2,
    queries=20,
    points=64,
)
FPN = SemanticFpnHead(kind="semantic-fpn", hidden=16, channels=8, groups=4)
LINEAR = LinearHead(kind="linear")
BACKBONE = Backbone(
    name="vit_tiny_patch16_224",
    args={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    weights="random",
    features=(0, 1, 2, 3),
)


def parts(card: Card) -> dict[str, str]:
    known = {
        "cityscapes": {"city": "zurich"},
        "acdc": {"condition": "fog", "sequence": "GOPR0475"},
    }
    return known.get(card.name, {})


def write_rgb16(file: Path, channels: np.ndarray) -> None:
    """Writes (H, W, 3) numbers as a 16-bit RGB PNG, by the letter of its specification."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width, _ = channels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)  # 16 bits, colour type RGB
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def write_label(card: Card, file: Path, train_ids: np.ndarray) -> None:
    """Writes trainIds as the data set stores them, palette and other channels misleading."""
    lookup = np.array([card.native_id(t) if t in (*range(19), 255) else 0 for t in range(256)])
    file.parent.mkdir(parents=True, exist_ok=True)
    if card.label.encoding == "rgb16_png":
        others = np.random.default_rng(7).integers(0, 65536, (2, *train_ids.shape))
        write_rgb16(file, np.stack([lookup[train_ids], *others], axis=2))
        return
    image = Image.fromarray(lookup[train_ids].astype(np.uint8))
    if card.label.encoding == "palette_png":
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(file)


def write_world(
    root: Path,
    card_name: str = "gtav",
    split: str = "train",
    count: int = 4,
    size: tuple[int, int] = (40, 64),
    seed: int = 0,
) -> list[str]:
    """`count` random images with blocks of random classes; returns their names."""
    card, rng = load_card(card_name), np.random.default_rng(seed)
    names = [f"zurich_{index:06d}_000019" for index in range(count)]
    for name in names:
        file = card.path(root, split, "images", name=name, **parts(card))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
        blocks = rng.choice([*range(19), 255], (size[0] // 8, size[1] // 8))
        label = np.kron(blocks, np.ones((8, 8), dtype=int))
        write_label(card, card.path(root, split, "labels", name=name, **parts(card)), label)
    return names


def tiny_protocol(**changes: object) -> SimpleNamespace:
    """What the segmentation task reads of a protocol."""
    source = Domain(domain="gtav", card="gtav", split="train", holdout=1)
    fields = {
        "name": "tiny",
        "data_root": None,
        "backbone": BACKBONE,
        "head": HEAD,
        "source": (source,),
        "validation": (source.model_copy(update={"domain": "gtav_held_out"}),),
        "targets": (Domain(domain="bdd100k", card="bdd100k", split="val", size=(32, 48)),),
        "extra": (),
        "input": INPUT,
        "augment": Augment(
            short_sides=(24, 40, 56),
            long_side_max=96,
            crop=32,
            max_class_share=0.75,
            flip=0.5,
            photometric=True,
        ),
        "window": Window(size=32, stride=16),
        "recipe": SimpleNamespace(iterations=6, batch=2, loader_workers=0, accumulate=1),
    }
    made = SimpleNamespace(ground_truth="label", **{**fields, **changes})
    made.scored_domains = [*made.validation, *made.targets, *made.extra]
    return made


def random_batch(
    count: int = 2, classes: tuple[int, ...] = (0, 3, 7, 18), size: int = 32
) -> dict[str, Tensor]:
    """Noise images with blocks of the given classes and a strip without label."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(len(classes), (count, size // 8, size // 8), generator=generator)
    label = torch.tensor(classes)[blocks].repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :4] = 255
    return {"image": torch.randn(count, 3, size, size, generator=generator), "label": label}
