"""What is kept of a run: the parts of its record, and the files beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from torch import nn

from benchmarks.checkpoint import History
from benchmarks.errors import UserError
from benchmarks.record import Evaluation, LossPoint, Parameters, write_atomically
from soma.checkpoint import save_adapter
from soma.method import Method

LOSS_POINTS = 20


def parameters(model: nn.Module) -> Parameters:
    """Counts of the backbone's parameters and of the rest of the model, the head."""
    backbone = list(model.backbone.parameters())
    total = sum(each.numel() for each in backbone)
    return Parameters(
        backbone_trainable=sum(each.numel() for each in backbone if each.requires_grad),
        backbone_total=total,
        head=sum(each.numel() for each in model.parameters()) - total,
    )


def evaluations(history: History) -> list[Evaluation]:
    """What was scored, in the order of the iterations."""
    items = sorted(history.evaluations.items())
    return [Evaluation(iteration=iteration, domains=domains) for iteration, domains in items]


def losses(history: History) -> list[LossPoint]:
    """At most `LOSS_POINTS` losses, evenly spaced, the first and the last among them."""
    if not history.losses:
        return []
    places = np.linspace(0, len(history.losses) - 1, LOSS_POINTS).round().astype(int)
    chosen = sorted(set(places.tolist()))
    return [LossPoint(iteration=place, loss=history.losses[place]) for place in chosen]


def write_results(
    path: Path, arrays: Mapping[str, np.ndarray], files: Mapping[str, Callable[[Path], None]]
) -> None:
    """Write beside the record at `path` what an evaluation keeps.

    Args:
        path: of the record.
        arrays: go into one .npz, if there are any.
        files: ending of the name, such as ".night.json.gz" -> function that writes the file.

    Raises:
        UserError: one of them cannot be written.
    """
    if arrays:
        write_arrays(path.with_suffix(".npz"), arrays)
    for ending, write in files.items():
        write(path.with_suffix(ending))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def write_weights(path: Path, model: nn.Module, method: Method) -> None:
    """Write a .safetensors: what differs from the pretrained backbone, and the head.

    `soma.load_adapter` reads the backbone's part; the head's names are those in the model.

    Raises:
        UserError: it cannot be written; nothing is left behind.
    """
    state = model.state_dict()
    head = {name: value for name, value in state.items() if not name.startswith("backbone.")}
    try:
        save_adapter(model.backbone, path, method, extra=head)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose --out") from None
