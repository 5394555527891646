"""Training batches and evaluation samples of detection, each a function of its number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.data.cards import Card, load_card
from benchmarks.data.files import Pair
from benchmarks.data.loading import Order, loaded
from benchmarks.data.transforms import normalise, pad_to, resize_to
from benchmarks.detection import augment as augmentation
from benchmarks.detection.reading import (
    evaluation_pairs,
    read_pair,
    trainable_boxes,
    training_pairs,
)
from benchmarks.detection.settings import DetectionAugment
from benchmarks.distributed import WHOLE, Batch, Shard
from benchmarks.errors import UserError
from benchmarks.protocol import Domain, Input, Protocol
from benchmarks.seeding import stream


class TrainingSamples(Dataset):
    """Sample n of a run: a pure function of (seed, n), whatever was drawn before.

    Epoch e is a permutation of all source pairs; several sources are simply concatenated. An
    unreadable file is returned as its UserError (see `loading.loaded`).
    """

    def __init__(
        self,
        sources: tuple[Domain, ...],
        root: Path,
        augment: DetectionAugment,
        statistics: Input,
        seed: int,
    ) -> None:
        self.pairs: list[tuple[Pair, Card]] = []
        for source in sources:
            card = load_card(source.card, "boxes")
            pairs = training_pairs(source, root, augment.difficult, augment.empty)
            self.pairs += [(pair, card) for pair in pairs]
        self.augment, self.statistics, self.seed = augment, statistics, seed
        self.index = Order(len(self.pairs), seed)

    def __getitem__(self, n: int) -> dict[str, np.ndarray] | UserError:
        """Sample n: see `augment.training_sample`."""
        pair, card = self.pairs[self.index(n)]
        try:
            image, objects = read_pair(pair, card)
        except UserError as error:
            return error
        trainable = trainable_boxes(objects, self.augment.difficult)
        boxes, labels = objects.boxes[trainable], objects.labels[trainable]
        rng = stream(self.seed, "augmentation", n)
        return augmentation.training_sample(
            image, boxes, labels, self.augment, self.statistics, rng
        )


def batches(
    protocol: Protocol, data_root: Path, seed: int, first: int = 0, shard: Shard = WHOLE
) -> Iterator[Batch]:
    """Training batches of the iterations `first`, `first` + 1, ... up to the last of the recipe.

    B is the batch of the recipe, or what is this process's `shard` of it.

    Yields:
        image float32 (B, 3, crop, crop), normalised, padded at the bottom and on the right; boxes,
        list of float32 (n, 4), x1, y1, x2, y2 in pixels of the image; labels, list of int64 (n,);
        size int64 (B, 2), height and width before padding.

    Raises:
        UserError: a data folder or file is not as its card says.
    """
    recipe = protocol.recipe
    samples = TrainingSamples(
        protocol.source, Path(data_root), protocol.augment, protocol.input, seed
    )
    counters = shard.samples(recipe.batch, first, recipe.iterations)
    together = recipe.batch // shard.world
    return loaded(samples, counters, recipe.loader_workers, together, _collate)


class EvaluationSamples(Dataset):
    """The scored images of one domain, resized to its test size; boxes stay in file pixels."""

    def __init__(self, domain: Domain, root: Path, statistics: Input) -> None:
        self.domain, self.statistics = domain, statistics
        self.pairs = evaluation_pairs(domain, root)
        self.card = load_card(domain.card, "boxes")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        """See `evaluation_samples`."""
        pair = self.pairs[index]
        try:
            image, objects = read_pair(pair, self.card)
        except UserError as error:
            return error
        resized = resize_to(image, self.domain)
        image = normalise(resized, self.statistics)
        if self.domain.pad:
            image = pad_to(image, self.domain.pad)
        height, width = (new / old for new, old in zip(resized.shape, objects.size, strict=False))
        return {
            "image": torch.from_numpy(image),
            "size": resized.shape[:2],
            "scale": (height, width),
            "objects": objects,
            "name": pair.name,
        }


def evaluation_samples(
    protocol: Protocol, data_root: Path, domain: Domain, shard: Shard = WHOLE
) -> Iterator[dict[str, Any]]:
    """The samples of one domain, or of this process's `shard` of it, in name order.

    Yields:
        image float32 (3, h, w) at test size, padded where its domain says so; size, (height, width)
        before padding; scale, (vertical, horizontal) test size / file size;
        objects, in file pixels, difficult ones too; name.

    Raises:
        UserError: a data folder or file is not as its card says.
    """
    samples = EvaluationSamples(domain, Path(data_root), protocol.input)
    return loaded(samples, shard.items(len(samples)), protocol.recipe.loader_workers)


def _collate(samples: list[dict[str, np.ndarray]]) -> Batch:
    arrays = {key: [torch.from_numpy(sample[key]) for sample in samples] for key in samples[0]}
    stacked = {key: torch.stack(arrays[key]) for key in ("image", "size")}
    return stacked | {key: arrays[key] for key in ("boxes", "labels")}
