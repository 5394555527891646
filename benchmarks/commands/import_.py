"""The command `import`: weights that others released, scored under a protocol of the suite."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks import console
from benchmarks.commands import arguments
from benchmarks.commands.arguments import RUNS, DataRoot, Device, Out
from benchmarks.environment import REPOSITORY, checkout_at_start, environment
from benchmarks.errors import UserError
from benchmarks.record import Imported, Score
from benchmarks.tasks import load_protocol, task_of
from benchmarks.yaml_files import digest_of

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.protocol import Protocol
    from benchmarks.released import Released


def import_(
    file: Annotated[Path, typer.Argument(help="A released file of SoMA or Rein (.pth).")],
    protocol: Annotated[str, typer.Option(help="Name or path of the protocol that scores it.")],
    data_root: DataRoot = None,
    device: Device = "cpu",
    out: Out = RUNS,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Score it under crops of another size too.")
    ] = False,
) -> None:
    """Score the weights that the authors of SoMA or Rein released; trains nothing.

    Tables show the record as a row of its own, outside of all differences.
    """
    from benchmarks import released as files
    from benchmarks.artifacts import write_results

    held_fixed = load_protocol(protocol)
    root = arguments.data_root(held_fixed, data_root)
    if not re.fullmatch(r"[\w.+-]{1,120}", file.stem, re.ASCII):
        raise UserError(f"{file}: letters, digits and . + - _ alone name a row; rename the file")
    released = files.read(file)
    files.require_scorable(released, held_fixed, any_size)
    record, arrays, predictions = score(released, held_fixed, root, device)
    write_results(out / record.path, arrays, predictions)
    record.write(out / record.path)
    print(f"{record.label} ({record.method}): released weights, {record.selection}")
    console.print_scores(record)
    print(out / record.path)


def score(
    released: Released, protocol: Protocol, data_root: Path, device: str
) -> tuple[Imported, dict[str, np.ndarray], dict[str, Callable[[Path], None]]]:
    """The record of a released file under a protocol, and what lies beside it: arrays and files.

    The same is kept as of a cell (see `artifacts.write_results`).
    No source image is read but those that the protocol scores.

    Raises:
        UserError: data, file and protocol do not fit.
    """
    import torch

    from baselines import METHODS
    from benchmarks.artifacts import parameters
    from benchmarks.cell import fingerprints, protocol_semantics
    from benchmarks.data.cards import classes_of
    from benchmarks.distributed import configure_process, make_fabric
    from benchmarks.methods import method_semantics
    from benchmarks.released import apply

    checkout_at_start(REPOSITORY)
    reads = protocol.model_copy(update={"source": ()})
    data, task = fingerprints(reads, data_root), task_of(protocol)
    task.check_data(reads, data_root)
    fabric = make_fabric(device, protocol.recipe.precision)
    configure_process(fabric, protocol.recipe.threads)
    model = task.build(protocol)
    placed = apply(released, model, protocol.name)
    model = fabric.to_device(model).eval()
    started, domains = time.perf_counter(), {}
    arrays: dict[str, np.ndarray] = {}
    files: dict[str, Callable[[Path], None]] = {}
    for domain in protocol.scored_domains:
        console.say(f"scoring {domain.domain}")
        with torch.no_grad(), fabric.autocast():
            result = task.evaluate(model, protocol, data_root, domain)
        domains[domain.domain] = Score(
            role=protocol.role(domain), metrics=result.metrics, images=result.images
        )
        for kind, array in result.arrays.items():
            key = domain.domain if kind == "confusion" else f"{domain.domain}.{kind}"
            arrays[key] = array
        files |= {f".{domain.domain}{ending}": write for ending, write in result.files.items()}
    seconds = time.perf_counter() - started
    name = next(name for name, kind in METHODS.items() if kind is type(placed))
    weights = {
        "file": released.file.name,
        "sha256": released.sha256,
        "state_dict": released.state_dict,
        "selection": released.selection,
        "base_checked": len(released.frozen),
    }
    cell = {
        "protocol": protocol_semantics(protocol),
        "method": method_semantics(name, placed),
        "weights": weights,
        "data": data,
    }
    record = Imported(
        cell=cell,
        digest=digest_of(cell),
        protocol=protocol.name,
        protocol_version=protocol.version,
        method=name,
        label=released.file.stem,
        **weights,
        rank=placed.rank,
        start_block=placed.start_block,
        parameters=parameters(model),
        domains=domains,
        evaluate_seconds=seconds,
        environment=environment(),
        data=data,
        classes=list(classes_of(protocol)),
    )
    return record, arrays, files
