"""A quick stand-in for `run_cell` that gives any method scores, for tests of `compare`."""

from pathlib import Path

from toy_records import SCORES, evaluation, toy_record

from benchmarks.cell import Cell
from benchmarks.record import Evaluation, Record, Score

GAIN = {0: 2.9, 1: 3.0, 2: 3.1}  # on every domain, over the baseline with the highest Avg


def scored(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    """A done record that is better than `lora` by `GAIN`; leaves a line in `<data_root>/log`."""
    with (data_root / "log").open("a") as log:
        log.write(f"{cell.seed} {cell.label}\n")
    scores = [score + GAIN[cell.seed] for score in SCORES["lora"][cell.seed]]
    return toy_record(
        cell.label,
        cell.seed,
        placement=cell.placement,
        digest=cell.digest,
        cell=cell.resolved,
        evaluations=[evaluation(20, *scores)],
    )


def breaks(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    raise RuntimeError("no such head")


def detected(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    """A done detection record with 60 percent on every domain that its protocol scores."""
    scores = {
        domain.domain: Score(role=role, metrics={"AP50_voc07": 60.0 + cell.seed}, images=160)
        for role, group in cell.protocol.scored.items()
        for domain in group
    }
    return cell.record(
        "done", evaluations=[Evaluation(iteration=cell.protocol.recipe.iterations, domains=scores)]
    )
