"""Scoring a detector on one domain: detections at test size, metrics in pixels of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.data.cards import load_card
from benchmarks.detection import metrics, predictions
from benchmarks.detection.data import evaluation_samples
from benchmarks.detection.predictions import Detections
from benchmarks.detection.settings import DetectionProtocol
from benchmarks.distributed import WHOLE, Shard
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.record import Result

IMAGES_PER_FORWARD = 8


def evaluate(
    model: nn.Module,
    protocol: DetectionProtocol,
    data_root: Path,
    domain: Domain,
    shard: Shard = WHOLE,
) -> Result:
    """Scores the images of a domain at its test size against the boxes in its files.

    Metrics: those of `metrics.scores`. Files: the detections of all images, in COCO's format. The
    model is put into evaluation mode and back into the mode that it was in. Of several processes
    each scores its `shard`, and all return the whole.

    Raises:
        UserError: a data folder or file is not as its card says; no object to be found.
    """
    training = model.training
    model.eval()
    try:
        samples = evaluation_samples(protocol, data_root, domain, shard)
        scored = shard.gather(_detected(model, samples))
    finally:
        model.train(training)
    names = [sample["name"] for sample, _ in scored]
    truth = [sample["objects"] for sample, _ in scored]
    detections = [detected for _, detected in scored]
    classes = load_card(domain.card, "boxes").classes
    scores = metrics.scores(truth, detections, classes)
    if scores[protocol.metric] is None:
        raise UserError(
            f"{domain.domain}: no object to be found in {len(names)} images; check the boxes of "
            f"{domain.card}"
        )
    write = partial(predictions.write, names=names, detections=detections)
    return Result(scores, {}, len(names), {".json.gz": write})


def _detected(
    model: nn.Module, samples: Iterable[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Detections]]:
    """Every sample with what is found in it, in pixels of its file; neighbours run together."""
    device = next(model.parameters()).device
    for _, group in groupby(samples, key=lambda sample: sample["image"].shape):
        while chunk := list(islice(group, IMAGES_PER_FORWARD)):
            images = torch.stack([sample["image"] for sample in chunk]).to(device)
            sizes = [sample["size"] for sample in chunk]
            for sample, detections in zip(chunk, model.detect(images, sizes), strict=True):
                yield _without_image(sample), in_file(detections, sample["scale"])


def _without_image(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a sample until its domain is scored; pixels would fill the memory."""
    return {key: value for key, value in sample.items() if key != "image"}


def in_file(detections: Detections, scale: tuple[float, float]) -> Detections:
    """Detections in pixels of the test size, in pixels of the file.

    Args:
        detections: of one image.
        scale: test size / file size, vertical and horizontal.
    """
    vertical, horizontal = scale
    # Two factors: sides are rounded to pixels one by one.
    factors = np.array([horizontal, vertical, horizontal, vertical])
    return Detections(detections.boxes / factors, detections.scores, detections.labels)
