"""From the files of a data root to training batches and evaluation samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from benchmarks.cards import OUTSIDE, Pair, load_card
from benchmarks.errors import UserError
from benchmarks.protocol import Augment, Domain, Input, Protocol
from benchmarks.seeding import stream
from benchmarks.segmentation import augment as augmentation

# Parallelism is over runs and loader processes; OpenCV's own threads would only get in their way.
cv2.setNumThreads(0)

Batch = dict[str, torch.Tensor]


def training_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that may be trained on: without the last `holdout`, then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; nothing is left to train on.
    """
    pairs = load_card(domain.card).pairs(root, domain.split)
    kept = pairs[: len(pairs) - domain.holdout] if len(pairs) > domain.holdout else []
    if not kept:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images, {domain.holdout} of them held out, leave none "
            f"to train on; add images to {root / load_card(domain.card).folder} or hold out fewer"
        )
    return kept[: domain.limit]


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: the last `holdout` where it is set, else all; then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; fewer images than are held out.
    """
    pairs = load_card(domain.card).pairs(root, domain.split)
    if len(pairs) < domain.holdout:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images are fewer than the {domain.holdout} held out; "
            f"add images to {root / load_card(domain.card).folder} or hold out fewer"
        )
    return pairs[len(pairs) - domain.holdout if domain.holdout else 0 :][: domain.limit]


def read_pair(pair: Pair, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image RGB uint8 (H, W, 3) and label uint8 (H, W) in trainIds.

    Args:
        pair: the files.
        table: value on disk -> trainId (`Card.label_table`).

    Raises:
        UserError: unreadable or cut-off file, label that is no 8-bit index image, label value
            outside the encoding, image and label of different size.
    """
    image = np.asarray(_decoded(pair.image, convert="RGB"))
    # Pillow, not OpenCV: that one turns palette indices into colours and fills cut-off files.
    indices = _decoded(pair.label)
    if indices.mode not in ("P", "L"):
        raise UserError(
            f"{pair.label}: holds colours or wide numbers (mode {indices.mode}), not 8-bit label "
            "indices; restore the original file"
        )
    raw = np.asarray(indices)
    label = table[raw]
    if (label == OUTSIDE).any():
        unknown = sorted({int(value) for value in np.unique(raw[label == OUTSIDE])})
        raise UserError(
            f"{pair.label}: label values {unknown} are not in the encoding of its data set; "
            "restore the original file or correct the card"
        )
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{pair.image}: is {image.shape[1]}x{image.shape[0]} pixels, its label {pair.label.name} "
            f"{label.shape[1]}x{label.shape[0]}; restore both files or leave this pair out"
        )
    return image, label


def _decoded(file: Path, convert: str | None = None) -> Image.Image:
    try:
        with Image.open(file) as opened:
            opened.load()
            return opened.convert(convert) if convert else opened.copy()
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"{file}: cannot be decoded ({error}); copy or unpack it again") from error


def fit(image: np.ndarray, size: tuple[int, int] | None, keep_ratio: bool) -> np.ndarray:
    """An image (H, W, 3) resized bilinearly to the test size (height, width).

    With `keep_ratio` the result is the largest one that fits inside; without a size, the image.
    """
    if size is None:
        return image
    height, width = size
    if keep_ratio:
        scale = min(height / image.shape[0], width / image.shape[1])
        height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


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
        self.pairs: list[tuple[Pair, np.ndarray]] = []
        for source in sources:
            table = load_card(source.card).label_table()
            self.pairs += [(pair, table) for pair in training_pairs(source, root)]
        self.augment, self.statistics, self.seed = augment, statistics, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return stream(self.seed, "order", epoch).permutation(len(self.pairs))

    def index(self, n: int) -> int:
        """Which pair sample n shows."""
        epoch, place = divmod(n, len(self.pairs))
        return int(self._order(epoch)[place])

    def __getitem__(self, n: int) -> dict[str, np.ndarray] | UserError:
        """Sample n: image float32 (3, crop, crop), label int64 (crop, crop)."""
        pair, table = self.pairs[self.index(n)]
        try:
            image, label = read_pair(pair, table)
        except UserError as error:
            return error
        rng = stream(self.seed, "augmentation", n)
        image, label = augmentation.training_sample(
            image, label, self.augment, self.statistics, rng
        )
        return {"image": image, "label": label}


def batches(protocol: Protocol, data_root: Path, seed: int, first: int = 0) -> Iterator[Batch]:
    """Training batches of the iterations `first`, `first` + 1, ... up to the last of the recipe.

    Yields:
        image float32 (B, 3, crop, crop), normalised; label int64 (B, crop, crop), 255 = ignore.

    Raises:
        UserError: a data folder or file is not as its card says.
    """
    recipe = protocol.recipe
    samples = TrainingSamples(
        protocol.source, Path(data_root), protocol.augment, protocol.input, seed
    )
    counters = range(first * recipe.batch, recipe.iterations * recipe.batch)
    return _loaded(samples, counters, recipe.batch, recipe.loader_workers)


class EvaluationSamples(Dataset):
    """The scored images of one domain, resized to its test size; ground truth is never resized."""

    def __init__(self, domain: Domain, root: Path, statistics: Input) -> None:
        self.domain, self.statistics = domain, statistics
        self.pairs = evaluation_pairs(domain, root)
        self.table = load_card(domain.card).label_table()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        """image float32 (3, h, w) at test size; label uint8 (H, W) at its own; domain, name."""
        pair = self.pairs[index]
        try:
            image, label = read_pair(pair, self.table)
        except UserError as error:
            return error
        image = fit(image, self.domain.size, self.domain.keep_ratio)
        image = torch.from_numpy(augmentation.normalise(image, self.statistics))
        return {
            "image": image,
            "label": label,
            "domain": self.domain.domain,
            "name": pair.name,
        }


def evaluation_samples(
    protocol: Protocol, data_root: Path, domain: Domain
) -> Iterator[dict[str, Any]]:
    """The samples of one domain in name order.

    Raises:
        UserError: a data folder or file is not as its card says.
    """
    samples = EvaluationSamples(domain, Path(data_root), protocol.input)
    return _loaded(samples, range(len(samples)), None, protocol.recipe.loader_workers)


def _loaded(samples: Dataset, order: range, batch: int | None, workers: int) -> Iterator[Any]:
    """Items (or batches) in the given order; UserErrors that came in place of samples are raised.

    The loader gets a generator of its own: it would draw from torch's global one at its start.
    """
    loader = DataLoader(
        samples,
        sampler=order,
        batch_size=batch,
        num_workers=workers,
        collate_fn=_collate if batch else _whole,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available() and batch is not None,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _collate(samples: list[dict[str, np.ndarray] | UserError]) -> Batch | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return {
        key: torch.from_numpy(np.stack([sample[key] for sample in samples]))
        for key in ("image", "label")
    }


def _whole(sample: dict[str, Any] | UserError) -> dict[str, Any] | UserError:
    return sample
