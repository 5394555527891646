"""Pre-trains the mini backbone on scenes in a very broad range of appearances.

It stands in for a vision foundation model: what it has seen is wider than any benchmark domain, it
has never seen a class or a category named, and the benchmark's own styles are never drawn. Signals
of an image: log depth, segment edges, and agreement of patch features between two styles of one
scene. A backbone that is told categories has little left to learn in the task (measured:
results/mini/README.md).
"""

from __future__ import annotations

import csv
import math
import time
from errno import EISDIR
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.distributed import make_fabric
from benchmarks.errors import UserError
from benchmarks.worlds.appearance import render
from benchmarks.worlds.scenes import sample_scene
from benchmarks.worlds.styles import pretraining

ARCHITECTURE = {"img_size": 96, "patch_size": 8, "embed_dim": 128, "depth": 9, "num_heads": 4}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP, CELL = 96, 2  # pixels per side of an input; pixels per side of a predicted cell
PATCHES = 32  # of a pair of images, whose agreement is asked for among those of all pairs of a step
RATE = 1e-3  # of learning, at its peak
_STREAM = 0x9E3779B9  # keeps these scenes apart from every benchmark domain's


class TwoStyles(Dataset):
    """Sample n: one scene in two styles, cropped alike.

    Images (2, 3, 96, 96); log depth and edges (48, 48).
    """

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, n: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng([_STREAM, self.seed, n])
        scene = sample_scene(rng)
        views = [render(scene, pretraining(rng), rng) for _ in range(2)]
        # Even in the logarithm, as befits a ratio of sizes.
        height = round(CROP * 2 ** rng.uniform(-0.3, 1.0))
        size = (round(height * scene.depth.shape[1] / scene.depth.shape[0]), height)
        views = [cv2.resize(v, size, interpolation=cv2.INTER_LINEAR) for v in views]
        maps = [
            cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
            for m in (scene.depth, scene.segments)
        ]
        stack = np.concatenate([*views, np.stack(maps, axis=2)], axis=2).astype(np.float32)
        short = max(CROP - height, 0)
        stack = np.pad(stack, ((0, short), (0, max(CROP - size[0], 0)), (0, 0)), mode="reflect")
        top, left = (
            rng.integers(0, stack.shape[0] - CROP + 1),
            rng.integers(0, stack.shape[1] - CROP + 1),
        )
        stack = stack[top : top + CROP, left : left + CROP]
        if rng.random() < 0.5:
            stack = stack[:, ::-1]
        images = stack[..., :6].reshape(CROP, CROP, 2, 3).transpose(2, 3, 0, 1) / 255
        images = (images - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        depth, segments = np.moveaxis(stack[::CELL, ::CELL, 6:], 2, 0)
        edges = np.zeros(depth.shape, dtype=np.float32)
        edges[1:] = segments[1:] != segments[:-1]
        edges[:, 1:] = np.maximum(edges[:, 1:], segments[:, 1:] != segments[:, :-1])
        sample = (images.astype(np.float32), np.log(depth + 1) / 5, edges)
        return tuple(torch.from_numpy(part) for part in sample)


class Pretext(nn.Module):
    """The backbone with linear read-outs of its last layer, thrown away after pre-training."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **ARCHITECTURE
        )
        width, patch = ARCHITECTURE["embed_dim"], ARCHITECTURE["patch_size"] // CELL
        self.maps = nn.Linear(width, 2 * patch * patch)
        self.unfold = nn.PixelShuffle(patch)
        self.project = nn.Linear(width, 64)

    def forward(
        self, images: torch.Tensor, depth: torch.Tensor, edges: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses for images (B, 2, 3, H, W) and maps (B, H/2, W/2)."""
        pairs = len(images)
        tokens = self.backbone.forward_features(images.transpose(0, 1).flatten(0, 1))[:, 1:]
        side = CROP // ARCHITECTURE["patch_size"]
        maps = self.unfold(self.maps(tokens).transpose(1, 2).unflatten(2, (side, side)))
        depth, edges = (torch.cat([t, t]) for t in (depth, edges))
        return {
            "depth": 2.0 * F.l1_loss(maps[:, 0], depth),
            "edges": 0.5 * F.binary_cross_entropy_with_logits(maps[:, 1], edges),
            "contrast": self._contrast(tokens[:pairs], tokens[pairs:]),
        }

    def _contrast(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        chosen = torch.randperm(one.shape[0] * one.shape[1])[: PATCHES * len(one)].to(one.device)
        one, other = (
            F.normalize(self.project(t.flatten(0, 1)[chosen]), dim=1) for t in (one, other)
        )
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(chosen), device=chosen.device))


def pretrain(
    out: Path,
    steps: int = 3800,
    pairs: int = 32,
    seed: int = 2026,
    device: str = "cpu",
    workers: int = 1,
) -> None:
    """Train; write the backbone to `out` (safetensors) and its losses beside it (.csv).

    Args:
        out: of the weights.
        steps: of the optimizer.
        pairs: scenes of a step, each in two styles.
        seed: of everything that is drawn.
        device: of the model; on a GPU a run need not give the same bits twice.
        workers: processes that render; the scenes do not depend on how many there are.

    Raises:
        UserError: nothing can be written there; there is no such device.
    """
    place = make_fabric(device, "32-true").device
    try:
        if out.is_dir():
            raise OSError(EISDIR, "is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_suffix(".partial").open("wb"):
            pass
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; give another --out") from None
    torch.set_num_threads(1)  # the order of sums, and with it every bit, depends on the threads
    torch.manual_seed(seed)
    model = Pretext().to(place)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=RATE
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    loader = DataLoader(
        TwoStyles(seed, steps * pairs), batch_size=pairs, num_workers=workers, prefetch_factor=8
    )
    log, sums, start = [], {}, time.monotonic()
    for step, batch in enumerate(track(loader, "pre-training", total=steps), start=1):
        losses = model(*(part.to(place) for part in batch))
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        sums = {name: sums.get(name, 0.0) + loss.item() for name, loss in losses.items()}
        if step % 100 == 0 or step == steps:
            every = step - (int(log[-1]["step"]) if log else 0)
            log.append(
                {
                    "step": step,
                    **{n: f"{s / every:.4f}" for n, s in sums.items()},
                    "seconds": f"{time.monotonic() - start:.0f}",
                }
            )
            sums = {}
            _write(out, model, log)


def _write(out: Path, model: Pretext, log: list[dict]) -> None:
    temporary = out.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in model.backbone.state_dict().items()}, temporary)
    temporary.replace(out)
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=log[0])
        writer.writeheader()
        writer.writerows(log)
