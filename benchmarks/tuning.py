"""Choosing learning rate and weight decay of methods on held-out source data, on one grid for all.

Every method gets the same trials, with seeds that no table uses and all blocks adapted, under its
protocol without the domains that are tested on: those are neither read nor scored. A placement that
adapts fewer blocks takes the rates that are chosen so.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import filelock
from tabulate import tabulate

from benchmarks import methods, trials
from benchmarks.cell import Cell, make_cell
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record, write_atomically
from benchmarks.report import statistics
from benchmarks.report.compare import in_words
from benchmarks.report.table import mean_of_role, select
from benchmarks.sweep import finished
from benchmarks.trials import Trial
from soma.method import Method


def source_only(protocol: Protocol) -> Protocol:
    """The protocol without its test domains, `<name>_source`.

    Raises:
        UserError: it holds no source data out.
    """
    if not protocol.validation:
        raise UserError(
            f"{protocol.name}: no validation domain to choose on; hold source images out"
        )
    tested = set(protocol.roles.values()) - {"validation"}
    changes = {"name": f"{protocol.name}_source", **dict.fromkeys(tested, ())}
    return protocol.model_copy(update=changes)


def cells(
    held_out: Protocol,
    method: str,
    rates: Sequence[float],
    decays: Sequence[float],
    seeds: Sequence[int],
) -> list[Cell]:
    """The runs of the trials of one method, on data still to be named.

    Args:
        held_out: what `source_only` gives.
        method: as for `make_cell`.
        rates: of the backbone, absolute; not used where nothing of it learns.
        decays: weight decays; none for the protocol's own.
        seeds: of every trial.

    Raises:
        UserError: a seed of the protocol's tables, or an unknown method or a value that does not
            fit.
    """
    for seed in set(seeds) & set(held_out.seeds):
        # Trials on a table's seed would choose by its luck.
        raise UserError(f"--seeds {seed}: a seed of the tables; choose another for the trials")
    own = held_out.recipe_for(method, "controlled").weight_decay
    made = make_cell(held_out, method, seed=0).make_method()
    # The one that begins first: all blocks.
    placement = min(held_out.placements, key=held_out.placements.__getitem__)
    # Of a frozen backbone every rate is the same run.
    changes = [{"backbone_lr": rate} for rate in rates] if _adapts(made) else [{}]
    # What the protocol says anyway is no change, so that it is one cell however it is asked for.
    return [
        make_cell(
            held_out,
            method,
            seed=seed,
            placement=placement,
            changes={"recipe": change if decay == own else change | {"weight_decay": decay}},
        )
        for change in changes
        for decay in decays or (own,)
        for seed in seeds
    ]


def _adapts(method: Method) -> bool:
    """Whether something of the backbone learns."""
    kind = type(method)
    return kind.attach is not Method.attach or kind.trains is not Method.trains


def update(
    path: Path, protocol: Protocol, run: Sequence[Cell], out: Path
) -> tuple[list[Trial], dict[str, str]]:
    """Write the trials of some methods into the summary at `path`; rows of other methods stay.

    Args:
        path: of the summary; a new one where there is none.
        protocol: whose sources the trials were run on.
        run: cells of the trials, each with its record below `out`.
        out: folder of the records.

    Returns:
        The runs of the trials that were chosen, and why for methods without any, by label.

    Raises:
        UserError: the summary cannot be read or written, or a record cannot be read.
    """
    records = [finished(cell, out) for cell in run]
    made = [_trial(protocol, cell, record) for cell, record in zip(run, records, strict=True)]
    made = trials.choose(made)
    labels = dict.fromkeys(trial.method for trial in made)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be adding its methods.
    with filelock.FileLock(f"{path}.lock"):
        held = trials.read(path, protocol.metric)[0] if path.exists() else []
        kept = [trial for trial in held if trial.method not in labels]
        text = trials.render([*kept, *made], protocol.metric)
        write_atomically(path, lambda file: file.write(text.encode()))
    chosen = [trial for trial in made if trial.chosen]
    reasons = {trial.method: record.reason for trial, record in zip(made, records, strict=True)}
    for trial in chosen:
        # One trial that ended is enough to choose from.
        reasons.pop(trial.method, None)
    return chosen, reasons


def _trial(protocol: Protocol, cell: Cell, record: Record) -> Trial:
    recipe, score = cell.protocol.recipe, None
    if record.status == "done":
        evaluation = select(record.evaluations, protocol.selection, protocol.metric)
        score = mean_of_role(evaluation, "validation", protocol.metric)
    return Trial(
        method=methods.label(cell.method),
        backbone_lr=recipe.backbone_lr if _adapts(cell.make_method()) else None,
        weight_decay=recipe.weight_decay,
        score=score,
        protocol=protocol.name,
        version=protocol.version,
        domain=", ".join(domain.domain for domain in protocol.validation),
        seed=cell.seed,
    )


def judged(summary: Sequence[Trial], metric: str) -> str:
    """What the other trials of each method score beside its chosen one, as a table in text.

    The intervals hold together for all pairs of trials of a method, so that they hold for the best
    of them, which the same scores chose.

    Args:
        summary: trials of one protocol; their noise is estimated from all of them together.
        metric: its name.
    """
    values: dict[tuple[str, float | None, float], dict[int, float]] = {}
    for trial in summary:
        scores = values.setdefault((trial.method, trial.backbone_lr, trial.weight_decay), {})
        if trial.score is not None:
            scores[trial.seed] = trial.score
    chosen = {t.method: (t.method, t.backbone_lr, t.weight_decay) for t in summary if t.chosen}
    pairs = [
        (b, a) if chosen.get(a[0]) == a else (a, b)
        for a, b in combinations(values, 2)
        if a[0] == b[0]
    ]
    differences = statistics.judge(values, pairs).differences
    rows = []
    for setting, scores in values.items():
        method, rate, decay = setting
        best = chosen.get(method)
        words = in_words(differences.get((setting, best))) if setting != best else ["", "chosen"]
        mean = f"{fmean(scores.values()):.2f}" if scores else "-"
        rows.append([method, "-" if rate is None else f"{rate:g}", f"{decay:g}", mean, *words])
    headings = ["trials of", "backbone_lr", "weight_decay", metric, "minus the chosen [95 %]", ""]
    return tabulate(rows, headings, disable_numparse=True)
