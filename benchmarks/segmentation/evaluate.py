"""Scoring a model on one domain: sliding windows, one confusion matrix per image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.data.cards import load_card
from benchmarks.distributed import WHOLE, Shard
from benchmarks.errors import UserError
from benchmarks.protocol import Domain, Protocol
from benchmarks.record import Result
from benchmarks.segmentation import metrics, predictions
from benchmarks.segmentation.data import evaluation_samples
from benchmarks.segmentation.heads import Segmenter
from benchmarks.segmentation.predictions import Prediction, thinned

WINDOWS_PER_FORWARD = 8


def evaluate(
    model: Segmenter, protocol: Protocol, data_root: Path, domain: Domain, shard: Shard = WHOLE
) -> Result:
    """Scores the images of a domain at its test size against the unresized ground truth.

    Metrics: {"mIoU": percent, "IoU": percent per class, None where undefined}. Arrays:
    {"confusion": int32 (images, classes, classes), rows ground truth; "names": text (images,), that
    of the file in the data set}. Files: the predictions of four images (see `predictions`).

    The model is put into evaluation mode and back into the mode that it was in. Of several
    processes each scores its `shard`, and all return the whole.

    Raises:
        UserError: a data folder or file is not as its card says; no labelled pixel.
    """
    classes = len(load_card(domain.card, "label").classes)
    training = model.training
    model.eval()
    try:
        samples = evaluation_samples(protocol, data_root, domain, shard)
        scored = [
            (
                sample["name"],
                metrics.confusion(sample["label"], prediction, classes),
                Prediction(sample["name"], thinned(prediction)) if sample["kept"] else None,
            )
            for sample, prediction in _predictions(model, samples, protocol)
        ]
    finally:
        model.train(training)
    names, matrices, kept = zip(*shard.gather(scored), strict=True)
    # Kept in a file for every image; one image has fewer pixels than 2^31, a domain may not.
    per_image = np.stack(matrices).astype(np.int32)
    try:
        scores = metrics.summary(per_image.sum(0, dtype=np.int64))
    except ValueError as error:
        raise UserError(f"{domain.domain}: {error}; check the labels of {domain.card}") from error
    arrays = {"confusion": per_image, "names": np.array(names, dtype=str)}
    write = partial(predictions.write, images=[one for one in kept if one])
    return Result(scores, arrays, len(per_image), {".png": write})


def _predictions(
    model: Segmenter, samples: Iterable[dict[str, Any]], protocol: Protocol
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Every sample with its prediction, in order; neighbours of one size run together."""
    device = next(model.parameters()).device
    window = protocol.window
    for (height, width), group in groupby(samples, key=lambda part: part["image"].shape[1:]):
        count = len(starts(height, window.size, window.stride)) * len(
            starts(width, window.size, window.stride)
        )
        together = max(WINDOWS_PER_FORWARD // count, 1)
        while chunk := list(islice(group, together)):
            images = torch.stack([part["image"] for part in chunk]).to(device)
            for part, scores in zip(
                chunk, slide(model, images, window.size, window.stride), strict=True
            ):
                yield part, predict(scores, part["label"].shape).cpu().numpy()


def starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis; the last window ends at the border."""
    count = max(length - size + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - size), 0) for index in range(count)]


def slide(model: Segmenter, images: Tensor, size: int, stride: int) -> Tensor:
    """Scores (B, classes, H, W) of images (B, 3, H, W): mean over the windows that see a pixel.

    A side shorter than the window is taken whole.
    """
    batch, _, height, width = images.shape
    corners = [
        (top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)
    ]
    if len(corners) == 1 and batch <= WINDOWS_PER_FORWARD:
        return model.score(images)
    crops = torch.cat([images[..., y : y + size, x : x + size] for y, x in corners])
    parts = torch.cat([model.score(part) for part in crops.split(WINDOWS_PER_FORWARD)])
    total = parts.new_zeros(batch, parts.shape[1], height, width)
    count = parts.new_zeros(1, 1, height, width)
    for (y, x), part in zip(corners, parts.split(batch), strict=True):
        total[..., y : y + size, x : x + size] += part
        count[..., y : y + size, x : x + size] += 1
    return total / count


def predict(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    """Class of every pixel (H, W): scores (classes, h, w) resized bilinearly to `shape`, arg-max.

    Of equals the first. Class by class where sizes differ: all classes at the size of a photograph
    take gigabytes.
    """
    if scores.shape[1:] == shape:
        # argmax over the first axis takes three times as long on a CPU.
        best, winner = scores.amax(0), torch.zeros(shape, dtype=torch.long, device=scores.device)
        # Backwards, so that of equal scores the first class stays, as with arg-max.
        for index in reversed(range(len(scores))):
            winner.masked_fill_(scores[index] == best, index)
        return winner
    best = torch.full(shape, -torch.inf, device=scores.device)
    winner = torch.zeros(shape, dtype=torch.long, device=scores.device)
    for index in range(len(scores)):
        resized = functional.interpolate(
            scores[None, index : index + 1], size=shape, mode="bilinear", align_corners=False
        )[0, 0]
        better = resized > best
        best = torch.where(better, resized, best)
        winner[better] = index
    return winner
