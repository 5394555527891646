"""From the domains of a protocol to training batches and evaluation samples.

A sample is a function of its number, so that a run can resume anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.data.cards import IGNORE, OUTSIDE, Card, load_card
from benchmarks.data.files import Pair, evaluation_part, refuse_overlap, training_part
from benchmarks.data.loading import Kept, Order, decoded, header_size, loaded
from benchmarks.data.pictures import evenly_spaced
from benchmarks.data.transforms import normalise, resize_to
from benchmarks.distributed import WHOLE, Batch, Shard
from benchmarks.errors import UserError
from benchmarks.protocol import Domain, Input, Protocol
from benchmarks.seeding import stream
from benchmarks.segmentation import augment as augmentation
from benchmarks.segmentation.predictions import KEPT_IMAGES
from benchmarks.segmentation.settings import Augment


def training_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that may be trained on: without the last `holdout`, then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; nothing is left to train on.
    """
    card = load_card(domain.card, "label")
    pairs = card.pairs(root, domain.split, exclude=domain.exclude)
    return training_part(domain, pairs, root / card.folder)


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: the last `holdout` where it is set, else all; then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; fewer images than are held out.
    """
    card = load_card(domain.card, "label")
    pairs = card.pairs(root, domain.split, exclude=domain.exclude)
    return evaluation_part(domain, pairs, root / card.folder)


def check_data(protocol: Protocol, root: Path) -> None:
    """See `Task.check_data`."""
    trained = {domain: training_pairs(domain, root) for domain in protocol.source}
    scored = {domain: evaluation_pairs(domain, root) for domain in protocol.scored_domains}
    refuse_overlap(trained, scored)
    for domain, pairs in (*trained.items(), *scored.items()):
        for pair in pairs:
            # Headers alone: decoding every image would take as long as an epoch. `read_pair` says
            # why.
            if header_size(pair.image) != header_size(pair.label):
                read_pair(pair, load_card(domain.card, "label"))


def read_pair(
    pair: Pair, card: Card, halve: Literal["pixels", "jpeg"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Image RGB uint8 (H, W, 3) and label uint8 (H, W) in trainIds, both read-only if small.

    Args:
        pair: the files.
        card: of their data set.
        halve: see `Domain.halve`.

    Raises:
        UserError: unreadable or cut-off file, label that is not stored as the card says, label
            value outside the encoding, image and label of different size.
    """
    encoding = card.label.encoding, card.label_table().tobytes()
    return _KEPT((pair.image, pair.label), (encoding, halve), lambda: _read(pair, card, halve))


_KEPT = Kept()


def _read(
    pair: Pair, card: Card, halve: Literal["pixels", "jpeg"] | None
) -> tuple[np.ndarray, np.ndarray]:
    image = decoded(pair.image, convert="RGB")
    raw = label_values(pair.label, card)
    # One entry more: wide numbers are clipped to it.
    label = np.append(card.label_table(), np.uint8(OUTSIDE)).take(raw, mode="clip")
    if (label == OUTSIDE).any():
        unknown = sorted({int(value) for value in np.unique(raw[label == OUTSIDE])})
        raise UserError(
            f"{pair.label}: label values {unknown} are not in the encoding of its data set; "
            "restore the original file or correct the card"
        )
    if image.size[::-1] != label.shape:
        raise UserError(
            f"{pair.image}: is {image.width}x{image.height} pixels, its label "
            f"{label.shape[1]}x{label.shape[0]} ({pair.label}); restore both files or leave this "
            "pair out (`exclude` of the domain)"
        )
    if halve:
        image, label = _halved(image, label, jpeg=halve == "jpeg")
    return np.asarray(image), label


def label_values(file: Path, card: Card) -> np.ndarray:
    """The values that a label file holds, before they become trainIds: uint8 or uint16 (H, W).

    Raises:
        UserError: unreadable or cut-off file, or another kind of image than the card says.
    """
    # Pillow, not OpenCV: that one turns palette indices into colours and fills cut-off files.
    image = decoded(file)
    if card.label.encoding == "rgb16_png":
        # But Pillow reduces 16-bit channels to 8 bits. OpenCV puts them in the order B, G, R.
        channels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if channels is None or channels.dtype != np.uint16 or channels.ndim != 3:
            raise UserError(
                f"{file}: is no 16-bit PNG of several channels (mode {image.mode}); restore the "
                "original file"
            )
        return channels[..., 2]
    if image.mode not in ("P", "L"):
        raise UserError(
            f"{file}: holds colours or wide numbers (mode {image.mode}), not 8-bit label "
            "indices; restore the original file"
        )
    return np.asarray(image)


def _halved(image: Image.Image, label: np.ndarray, jpeg: bool) -> tuple[Image.Image, np.ndarray]:
    """Both at half the size, as tools/convert_datasets/mapillary_resize.py of Rein describes it."""
    size = (image.width // 2, image.height // 2)
    image = image.resize(size, Image.Resampling.BICUBIC)
    if jpeg:
        image.save(buffer := BytesIO(), "JPEG")
        image = Image.open(buffer).convert("RGB")
    return image, np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))


class TrainingSamples(Dataset):
    """Sample n of a run: a pure function of (seed, n), whatever was drawn before.

    Epoch e is a permutation of all source pairs; several sources are simply concatenated, so that
    each is seen in proportion to its size. An unreadable file is returned as its UserError, because
    a loader process would wrap a raised one into a traceback.
    """

    def __init__(
        self,
        sources: tuple[Domain, ...],
        root: Path,
        augment: Augment,
        statistics: Input,
        seed: int,
    ) -> None:
        self.pairs: list[tuple[Pair, Card, Domain]] = []
        for source in sources:
            card = load_card(source.card, "label")
            self.pairs += [(pair, card, source) for pair in training_pairs(source, root)]
        self.augment, self.statistics, self.seed = augment, statistics, seed
        self.index = Order(len(self.pairs), seed)

    def __getitem__(self, n: int) -> dict[str, np.ndarray] | UserError:
        """Sample n: image float32 (3, crop, crop), label int64 (crop, crop)."""
        pair, card, source = self.pairs[self.index(n)]
        try:
            image, label = read_pair(pair, card, source.halve)
        except UserError as error:
            return error
        rng = stream(self.seed, "augmentation", n)
        image, label = augmentation.training_sample(
            image, label, self.augment, self.statistics, rng
        )
        return {"image": image, "label": label}


def batches(
    protocol: Protocol, data_root: Path, seed: int, first: int = 0, shard: Shard = WHOLE
) -> Iterator[Batch]:
    """Training batches of the iterations `first`, `first` + 1, ... up to the last of the recipe.

    B is the batch of the recipe, or what is this process's `shard` of it.

    Yields:
        image float32 (B, 3, crop, crop), normalised; label int64 (B, crop, crop), 255 = ignore;
        targets int64 (B,), what the loss of the head is divided by, of each label: the number of
        classes for Mask2Former, of labelled pixels for the others.

    Raises:
        UserError: a data folder or file is not as its card says.
    """
    recipe = protocol.recipe
    samples = TrainingSamples(
        protocol.source, Path(data_root), protocol.augment, protocol.input, seed
    )
    counters = shard.samples(recipe.batch, first, recipe.iterations)
    together = recipe.batch // shard.world
    count = _classes if protocol.head.kind == "mask2former" else _pixels
    collate = partial(_collate, count=count)
    return loaded(samples, counters, recipe.loader_workers, together, collate)


class EvaluationSamples(Dataset):
    """The scored images of one domain, resized to its test size.

    Ground truth keeps its size, which is half that of the file where the domain says so.
    """

    def __init__(self, domain: Domain, root: Path, statistics: Input) -> None:
        self.domain, self.statistics = domain, statistics
        self.pairs = evaluation_pairs(domain, root)
        self.card = load_card(domain.card, "label")
        self.kept = set(evenly_spaced(len(self.pairs), KEPT_IMAGES))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        """Image float32 (3, h, w) at test size; label uint8 (H, W) at its own; domain, name.

        `kept`: whether a run keeps what is predicted for it (see `segmentation.predictions`).
        """
        pair = self.pairs[index]
        try:
            image, label = read_pair(pair, self.card, self.domain.halve)
        except UserError as error:
            return error
        image = resize_to(image, self.domain)
        image = torch.from_numpy(normalise(image, self.statistics))
        return {
            "image": image,
            "label": label,
            "domain": self.domain.domain,
            "name": pair.name,
            "kept": index in self.kept,
        }


def evaluation_samples(
    protocol: Protocol, data_root: Path, domain: Domain, shard: Shard = WHOLE
) -> Iterator[dict[str, Any]]:
    """The samples of one domain, or of this process's `shard` of it, in name order.

    Raises:
        UserError: a data folder or file is not as its card says.
    """
    samples = EvaluationSamples(domain, Path(data_root), protocol.input)
    return loaded(samples, shard.items(len(samples)), protocol.recipe.loader_workers)


def _classes(label: np.ndarray) -> int:
    return np.count_nonzero(np.bincount(label.ravel(), minlength=IGNORE)[:IGNORE])


def _pixels(label: np.ndarray) -> int:
    return np.count_nonzero(label != IGNORE)


def _collate(samples: list[dict[str, np.ndarray]], count: Callable[[np.ndarray], int]) -> Batch:
    batch = {
        key: torch.from_numpy(np.stack([sample[key] for sample in samples]))
        for key in ("image", "label")
    }
    # The loss of a part of a batch has to know the targets of the whole one.
    return batch | {"targets": torch.tensor([count(sample["label"]) for sample in samples])}
