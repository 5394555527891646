"""Records to a table: rows with uncertainty, differences, published numbers and what is missing."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks import methods
from benchmarks.cell import protocol_semantics, settings_of
from benchmarks.errors import UserError, closest
from benchmarks.protocol import MARGIN, Protocol
from benchmarks.record import Evaluation, Imported, Record
from benchmarks.report import notes, statistics
from benchmarks.report.spec import (
    AVERAGE,
    AVERAGE_ALL,
    SOURCE,
    Published,
    TableSpec,
    factor_rows,
)
from benchmarks.report.statistics import (
    PROCESSOR_SPREAD,
    Difference,
    Judgement,
    Summary,
    average,
)

# Parts of a cell in which the seeds of a row may differ.
_OF_SEED = ("seed", "first_stage")


def check_alike(records: Sequence[Record], protocol: Protocol, table: str = "TABLE") -> None:
    """Refuse records that cannot stand in one table.

    Raises:
        UserError: another protocol version, other settings, another engine, other data, or one row
            from two different cells.
    """
    _check_engine(records, protocol, table)
    semantics = settings_of(protocol_semantics(protocol))
    data: dict[str, str] | None = None
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        who = f"record {record.protocol}/{record.placement}/{record.label}/seed{record.seed}"
        if record.protocol_version != protocol.version:
            raise UserError(
                f"{who}: made under {protocol.name} version {record.protocol_version}, which is at "
                f"version {protocol.version} now; tables never mix versions, run it again"
            )
        if settings_of(record.cell.get("protocol", {})) != semantics:
            raise UserError(
                f"{who}: made under other settings of {protocol.name} version {protocol.version}; "
                "run it again, and raise `version` with every edit of a protocol"
            )
        data = record.data if data is None else data
        if record.data != data:
            odd = sorted(k for k in data | record.data if data.get(k) != record.data.get(k))
            raise UserError(
                f"{who}: made from other data than the records before it ({', '.join(odd)}); "
                "tables never mix data, run it again"
            )
        cell = {key: value for key, value in record.cell.items() if key not in _OF_SEED}
        if rows.setdefault((record.placement, record.label), cell) != cell:
            raise UserError(f"{who}: its method or recipe differs from other seeds of this row")


def _check_engine(records: Sequence[Record], protocol: Protocol, table: str) -> None:
    """Refuse records of two engines: the rarer one has to be run again."""
    counts = Counter(record.cell.get("engine") for record in records)
    if len(counts) < 2:
        return
    kept = counts.most_common(1)[0][0]
    odd = [record for record in records if record.cell.get("engine") != kept]
    labels, seeds = (sorted({str(getattr(r, key)) for r in odd}) for key in ("label", "seed"))
    raise UserError(
        f"{protocol.name}: {counts[kept]} records were made with engine {kept}, {len(odd)} with "
        f"{', '.join(sorted({str(r.cell.get('engine')) for r in odd}))}; tables never mix engines: "
        f"say --engine {kept}, and run what is missing: python -m benchmarks sweep {table} "
        f"--engine {kept} --profile {protocol.profile} --methods {','.join(labels)} "
        f"--seeds {','.join(seeds)}"
    )


def comparable(
    against: Sequence[Record] | None, protocol: Protocol, records: Sequence[Record]
) -> tuple[list[Record], list[str]]:
    """The reference records that may be compared with `records`, and remarks for the table."""
    if against is None:
        return [], []
    same = [record for record in against if record.protocol_version == protocol.version]
    if not same:
        why = "of this protocol" if not against else f"of version {protocol.version}"
        return [], [f"agreement with the reference: no committed records {why}"]
    ours, theirs = ({r.cell.get("engine") for r in group} for group in (records, same))
    if ours and ours != theirs:
        made = ", ".join(sorted(map(str, theirs)))
        # A remark and no error: the table itself is sound without the comparison.
        return [], [f"agreement with the reference: the committed records have engine {made}"]
    lines = [
        "agreement with the reference: difference of Avg to the committed records over equal "
        "seeds, noise of all rows together, 95 % intervals that hold together (marked Welch, for "
        f"itself, where no two seeds are equal); agrees = it lies within {MARGIN:g} point of 0, "
        "differs = it does not and excludes 0, cannot tell = neither; it reaches "
        f"{PROCESSOR_SPREAD:g} further, as far as the same seed lies apart, where processors differ"
    ]
    if records and any(record.data != records[0].data for record in same):
        lines.append("the committed records were made from data with other fingerprints")
    if records and any(record.cell["protocol"] != records[0].cell["protocol"] for record in same):
        lines.append("the committed records were made under other settings of this version")
    return same, lines


RULES = ("last", "source-val", "target-oracle")


def select(evaluations: list[Evaluation], rule: str, metric: str) -> Evaluation | None:
    """The evaluation that a selection rule picks; the earliest of equals; None of none.

    Rules: `last` iteration; best mean over the held-out source domains (`source-val`); best mean
    over the target domains (`target-oracle`: an upper bound that no one could have chosen).

    Raises:
        UserError: unknown rule, or nothing to select by.
    """
    if not evaluations:
        return None
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.iteration)
    if rule == "last":
        return ordered[-1]
    if rule not in RULES:
        raise UserError(f"no selection rule {rule!r}{closest(rule, RULES)}")
    # The role decides: a rule that reads targets has to be named as one.
    role = "validation" if rule == "source-val" else "target"
    scores = [mean_of_role(evaluation, role, metric) for evaluation in ordered]
    known = [score for score in scores if score is not None]
    if not known:
        raise UserError(f"selection {rule}: no {role} domain with {metric} in the records")
    return ordered[scores.index(max(known))]


def mean_of_role(evaluation: Evaluation, role: str, metric: str) -> float | None:
    """Unweighted mean (percent) over the domains of a role; None where one is missing."""
    scores = [score for score in evaluation.domains.values() if score.role == role]
    values = [score.metrics.get(metric) for score in scores]
    return average([value if isinstance(value, float) else None for value in values])


def values_by_seed(
    records: Sequence[Record],
    rule: str,
    metric: str,
    targets: Collection[str],
    sources: Collection[str] = (),
    extras: Collection[str] = (),
) -> dict[str, dict[int, float]]:
    """Column key -> seed -> percent, for the done records of one row; averages per seed first.

    `targets` are averaged; `sources`, test splits of source domains, only in the average of all;
    `extras` in none.
    """
    averages = (AVERAGE, AVERAGE_ALL) if sources else (AVERAGE,)
    columns = (*sources, *targets, *averages, SOURCE, *extras)
    values: dict[str, dict[int, float]] = {key: {} for key in columns}
    for record in records:
        chosen = select(record.evaluations, rule, metric) if record.status == "done" else None
        if chosen is None:
            continue
        # A seed without a score is left out, so that it lowers n and never enters as a zero.
        for key, score in scores_of(chosen, metric, targets, sources, extras).items():
            if score is not None:
                values[key][record.seed] = score
    return values


def scores_of(
    evaluation: Evaluation,
    metric: str,
    targets: Collection[str],
    sources: Collection[str] = (),
    extras: Collection[str] = (),
) -> dict[str, float | None]:
    """Column key -> percent of one evaluation, as in `values_by_seed`; None where there is none."""
    scores: dict[str, float | None] = {}
    for name in (*sources, *targets, *extras):
        domain = evaluation.domains.get(name)
        value = domain.metrics.get(metric) if domain else None
        # Scores per class are lists under the same metrics, and no column.
        scores[name] = value if isinstance(value, float) else None
    # Per seed first: its deviation is then that of the average, not a mean of deviations.
    everywhere = statistics.average([scores[name] for name in (*sources, *targets)])
    scores[AVERAGE] = statistics.average([scores[target] for target in targets])
    if sources:
        scores[AVERAGE_ALL] = everywhere
    scores[SOURCE] = mean_of_role(evaluation, "validation", metric)
    return scores


@dataclass(frozen=True)
class Row:
    """One method in one block.

    Attributes:
        state: "done", "failed" (no seed ended well), "n/a" or "missing".
        n: seeds that count.
        trainable: parameters of the backbone that learn.
        scores: column key -> percent.
        difference: Avg minus that of the reference row, judged with those of the other rows; None
            in the reference row itself.
        paired: the same with the plain paired t interval.
        published: column key -> (number as printed, footnote letter).
        agreement: Avg minus that of the committed reference records.
        baseline: it is the row that differences are taken to.
        records: all there are of its seeds, in their order.
        released: the record of weights that others trained, which has no seed.
    """

    label: str
    state: str
    n: int
    trainable: int | None
    seconds_per_step: float | None
    scores: dict[str, Summary | None]
    difference: Difference | None
    paired: Difference | None
    published: dict[str, tuple[str, str]]
    agreement: Difference | None
    baseline: bool
    records: tuple[Record, ...] = ()
    released: Imported | None = None

    @property
    def kept(self) -> tuple[Record | Imported, ...]:
        """The records behind the row, of whatever kind."""
        return (self.released,) if self.released else self.records


@dataclass(frozen=True)
class Block:
    """The rows of one placement under one selection rule, with the lines that stand below them.

    Attributes:
        start: the first adapted block of every row; None where rows have their own.
        values: row -> column key -> seed -> percent.
        pairs: the differences between all rows, where they are asked for.
        factor: what the rows of a table of factors differ in.
        released: its rows are weights that others trained, and `selection` how those chose them.
    """

    placement: str
    start: int | float | None
    selection: str
    rows: tuple[Row, ...]
    completeness: str
    discrimination: str
    comparisons: str
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    pairs: Judgement | None
    factor: str = ""
    released: bool = False

    @property
    def name(self) -> str:
        """What tells the block from the others of its table."""
        return self.factor or (f"released, {self.selection}" if self.released else self.placement)


@dataclass(frozen=True)
class Table:
    """Everything a format needs.

    Attributes:
        headings: column key -> heading, in order.
        others: placements that have records, enough for a table, and no block here.
        places: digest -> where its record lies, as far as that is known.
    """

    name: str
    title: str
    headings: dict[str, str]
    reference: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    footnotes: dict[str, str]
    against: bool
    spec: TableSpec
    protocol: Protocol
    seeds: tuple[int, ...]
    others: tuple[str, ...] = ()
    places: Mapping[str, Path] = field(default_factory=dict)

    @property
    def engines(self) -> tuple[str, ...]:
        """Of the detector, as the records of the rows name it."""
        rows = (row for block in self.blocks for row in block.rows)
        made = (record.cell.get("engine") for row in rows for record in row.records)
        return tuple(dict.fromkeys(engine for engine in made if engine))


@dataclass(frozen=True)
class Request:
    """What of a table is asked for; None stands for what the table or protocol says.

    Attributes:
        placements: None is the default one and every other that has records.
        seeds: None is those of the protocol, and further ones that every row has in every one of
            the placements.
        selections: rules; target-oracle brings the protocol's own rule with it.
        pairs: judge every row against every other, too.
    """

    mode: str = "controlled"
    placements: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    reference: str | None = None
    selections: tuple[str, ...] = ()
    pairs: bool = False


def build(
    spec: TableSpec,
    protocol: Protocol,
    records: Sequence[Record],
    published: Published,
    request: Request,
    against: Sequence[Record] | None = None,
    places: Mapping[str, Path] | None = None,
) -> Table:
    """The table of a protocol from its records (of one recipe mode).

    `against` are committed reference records to compare row by row; None leaves the column out.
    `places` says where records lie, by digest.

    Raises:
        UserError: records of different protocol versions, settings or data; or an unknown name.
    """
    check_alike(records, protocol, spec.name)
    if spec.rows:
        made = _of_factors(spec, protocol, records, published, request, against)
        return replace(made, places=places or {})
    labels = [*dict.fromkeys(map(methods.label, request.methods or spec.methods))]
    known = {*map(methods.label, spec.methods), *(record.label for record in records)}
    for asked in (*(request.methods or ()), request.reference):
        # A user's own method may have no record yet.
        if asked and ":" not in asked and asked not in known:
            raise UserError(f"{spec.name}: no row {asked!r}{closest(asked, known)}")
    # Those of Table 4 vary one factor of a method: here they would stand as so many more methods,
    # and make the noise mostly that of this one method.
    varied = factor_rows(protocol, request.mode) - set(labels) - {request.reference}
    records = [record for record in records if record.label not in varied]
    if request.methods is None:
        # Rows of methods that the table does not name are shown too.
        labels += sorted({record.label for record in records} - set(labels))
    shown_in = _placements(request.placements, protocol, records)
    drawn = [r for r in records if r.placement in shown_in and r.label in labels]
    seeds = request.seeds or _seeds(protocol, drawn)
    extras = [domain.domain for domain in protocol.extra]
    reference = request.reference or spec.reference
    view = _View(spec, published, labels, seeds, reference, extras, request.pairs)
    committed, remarks = comparable(against, protocol, records)
    rules = _rules(request.selections, protocol)
    own = [protocol.changes_for(label, request.mode).fields for label in labels]
    same = not any("start_block" in fields for fields in own)
    blocks = []
    for name in shown_in:
        start = protocol.placement(name)["start_block"] if same else None
        here = [r for r in records if r.placement == name and r.seed in seeds]
        # Of all seeds: agreement picks those that both have.
        there = [r for r in committed if r.placement == name]
        for rule in rules:
            blocks.append(_block(view, rule, (name, start), here, there))
    shown = [r for r in records if r.seed in seeds and r.label in labels]
    others = {r.placement for r in records} & {*protocol.placements} - {*shown_in}
    recorded = {name: {r.label for r in records if r.placement == name} for name in others}
    left_out = len(records) - len(shown)
    return Table(
        name=spec.name,
        title=spec.title,
        headings=spec.headings | {domain: domain for domain in view.extras},
        reference=view.reference,
        blocks=tuple(blocks),
        notes=(
            *notes.notes(protocol, spec, request.mode, rules, shown, left_out),
            *remarks,
        ),
        footnotes=_used(published, labels),
        against=against is not None,
        spec=spec,
        protocol=protocol,
        seeds=tuple(seeds),
        others=tuple(sorted(k for k, own in recorded.items() if _enough(own, labels, reference))),
        places=places or {},
    )


def with_released(
    table: Table, imported: Sequence[Imported], methods: Collection[str], alone: bool = False
) -> Table:
    """The table with a block for each way in which released weights were chosen.

    Their rows stand in no difference, and say nothing about the noise of the others.

    Args:
        table: of the protocol, as `build` makes it.
        imported: what `import` made under it.
        methods: rows that are asked for; () for all.
        alone: without the blocks of the suite's own runs.

    Raises:
        UserError: made under another version, other settings or other data than the table's.
    """
    shown = [record for record in imported if not methods or record.label in methods]
    _check_released(table, shown)
    spec, several = table.spec, [record.label for record in shown]
    extras, groups = [domain.domain for domain in table.protocol.extra], {}
    for record in shown:
        # Two files of weights of one method: their digests tell them apart.
        unique = several.count(record.label) == 1
        label = record.label if unique else f"{record.label} {record.sha256[:8]}"
        scores = scores_of(
            record.evaluations[0], spec.metric, spec.domains, spec.sources, extras
        ).items()
        row = Row(
            label=label,
            state="done",
            n=0,
            trainable=record.parameters.backbone_trainable,
            seconds_per_step=None,
            scores={key: None if v is None else statistics.summarise([v]) for key, v in scores},
            difference=None,
            paired=None,
            published={},
            agreement=None,
            baseline=False,
            released=record,
        )
        groups.setdefault(record.selection, []).append(row)
    blocks = [
        Block(
            placement="released",
            start=None,
            selection=selection,
            rows=tuple(rows),
            completeness="No run of this suite: no seed, no recipe",
            discrimination="Outside of all differences",
            comparisons=f"Released weights, {selection}",
            values={row.label: {key: {} for key in row.scores} for row in rows},
            pairs=None,
            released=True,
        )
        for selection, rows in groups.items()
    ]
    return replace(table, blocks=(*(() if alone else table.blocks), *blocks))


def _check_released(table: Table, imported: Sequence[Imported]) -> None:
    protocol = table.protocol
    rows = (row for block in table.blocks for row in block.rows)
    data = next((record.data for row in rows for record in row.records), {})
    for record in imported:
        who = f"record {record.path}"
        if record.protocol_version != protocol.version:
            raise UserError(
                f"{who}: made under {protocol.name} version {record.protocol_version}, which is at "
                f"version {protocol.version} now; import the file again"
            )
        if settings_of(record.cell["protocol"]) != settings_of(protocol_semantics(protocol)):
            raise UserError(f"{who}: made under other settings of {protocol.name}; import it again")
        odd = sorted(key for key in data.keys() & record.data if data[key] != record.data[key])
        if odd:
            raise UserError(
                f"{who}: made from other data than the records of the table ({', '.join(odd)}); "
                "tables never mix data, import it again"
            )


def ordered(table: Table, key: str) -> Table:
    """The table with the rows of every block in the order of a column, "table" for the table's own.

    Scores and differences start with the highest, everything else with the lowest; rows without a
    value come last.

    Raises:
        UserError: no such column.
    """
    if key == "table":
        return table
    values: dict[str, Callable[[Row], float | None]] = {
        "n": lambda row: row.n,
        "trainable": lambda row: row.trainable,
        "s_per_step": lambda row: row.seconds_per_step,
        "difference": lambda row: -row.difference.mean if row.difference else None,
    }
    for name in table.headings:
        values[name] = lambda row, name=name: -row.scores[name].mean if row.scores[name] else None
    if key not in values and key != "method":
        known = ("table", "method", *values)
        raise UserError(f"no column {key!r} to sort by{closest(key, known)}")

    def place(row: Row) -> tuple[bool, float | str]:
        value = row.label if key == "method" else values[key](row)
        return value is None, 0 if value is None else value

    blocks = [replace(block, rows=tuple(sorted(block.rows, key=place))) for block in table.blocks]
    return replace(table, blocks=tuple(blocks))


def one_placement(table: Table) -> Table:
    """The table with the default placement alone, or the first that has records if it has none."""
    held = [block.placement for block in table.blocks if any(row.records for row in block.rows)]
    kept = table.protocol.default_placement
    kept = kept if kept in held or not held else held[0]
    blocks = tuple(block for block in table.blocks if block.released or block.placement == kept)
    others = dict.fromkeys(table.others)
    for block in table.blocks:
        own = {row.label for row in block.rows if row.records}
        labels = [row.label for row in block.rows]
        new = not block.released and block.placement != kept
        if new and _enough(own, labels, table.reference):
            others[block.placement] = None
    return replace(table, blocks=blocks, others=tuple(others))


def _enough(recorded: Collection[str], shown: Sequence[str], reference: str) -> bool:
    """Whether the rows that a placement has records of can be compared.

    A single one of another table, such as Table 4's, cannot.
    """
    return reference in recorded or 2 * len({*recorded} & {*shown}) >= len(shown)


def _of_factors(
    spec: TableSpec,
    protocol: Protocol,
    records: Sequence[Record],
    published: Published,
    request: Request,
    against: Sequence[Record] | None,
) -> Table:
    """A table with one block per factor. Its records get the labels of its rows."""
    first, *lines = spec.lines(protocol, request.mode)
    # Reversed, so that the first of two lines with one key names it: the reference before all
    # others.
    names = {line.key: line.label for line in reversed((first, *lines))}

    def renamed(those: Sequence[Record]) -> list[Record]:
        keyed = [(names.get((record.placement, record.label)), record) for record in those]
        return [record.model_copy(update={"label": name}) for name, record in keyed if name]

    held = renamed(records)
    seeds = request.seeds or _seeds(protocol, held)
    reference = request.reference or first.label
    if reference not in names.values():
        raise UserError(f"{spec.name}: no row {reference!r}{closest(reference, names.values())}")
    committed, remarks = comparable(against, protocol, records)
    here, there = [r for r in held if r.seed in seeds], renamed(committed)
    extras, rules = (
        [domain.domain for domain in protocol.extra],
        _rules(request.selections, protocol),
    )
    every, blocks = [*dict.fromkeys(names.values())], []
    for rule in rules:
        # In a table of factors `--methods` picks factors.
        for factor in request.methods or spec.rows:
            mine = {names[line.key]: line.label for line in lines if line.factor == factor}
            # Each block has the reference: its factor is one step away from it.
            labels = [*mine] if reference in mine else [reference, *mine]
            view = _View(spec, published, labels, seeds, reference, extras, request.pairs, every)
            block = _block(view, rule, (protocol.default_placement, None), here, there)
            rows, values = block.rows, block.values
            # Pairs speak of the rows by label, so there the labels stay.
            if not request.pairs:
                rows = tuple(replace(row, label=_both(row.label, mine)) for row in rows)
                values = {_both(label, mine): own for label, own in values.items()}
            blocks.append(replace(block, factor=factor, rows=rows, values=values))
    return Table(
        name=spec.name,
        title=spec.title,
        headings=spec.headings | {domain: domain for domain in extras},
        reference=reference,
        blocks=tuple(blocks),
        notes=(
            *_effects(blocks, reference),
            *notes.notes(protocol, spec, request.mode, rules, here, len(records) - len(here)),
            *remarks,
        ),
        footnotes=_used(published, every),
        against=against is not None,
        spec=spec,
        protocol=protocol,
        seeds=tuple(seeds),
    )


def _effects(blocks: Sequence[Block], reference: str) -> list[str]:
    """One line per selection rule: the factors in the order of their largest difference."""
    largest: dict[str, list[tuple[float, str]]] = {}
    for block in blocks:
        moved = [(row.difference.mean, row.label) for row in block.rows if row.difference]
        if moved:
            mean, label = max(moved, key=lambda item: abs(item[0]))
            words = f"{block.factor} {mean:+.1f} ({label})"
            largest.setdefault(block.selection, []).append((abs(mean), words))
    return [
        f"factors by the largest difference of Avg from {reference}, selection {rule}: "
        + ", ".join(words for _, words in sorted(those, reverse=True))
        for rule, those in largest.items()
    ]


def _both(label: str, words: Mapping[str, str]) -> str:
    """A row's name, with that of the reference where it is the same row."""
    own = words.get(label, label)
    return label if own == label else f"{own} ({label})"


@dataclass(frozen=True)
class _View:
    """What all blocks of a table have in common.

    `compared` are the rows of all blocks where they are judged together.
    """

    spec: TableSpec
    published: Published
    labels: Sequence[str]
    seeds: Sequence[int]
    reference: str
    extras: Sequence[str]
    pairs: bool
    compared: Sequence[str] = ()

    def values(self, records: Sequence[Record], rule: str) -> dict[str, dict[int, float]]:
        spec = self.spec
        return values_by_seed(records, rule, spec.metric, spec.domains, spec.sources, self.extras)


def _block(
    view: _View,
    rule: str,
    placement: tuple[str, int | float | None],
    records: Sequence[Record],
    against: Sequence[Record],
) -> Block:
    # Rows that are not shown: the reference, and those that say more about the noise.
    labels = dict.fromkeys(
        [*view.labels, view.reference, *view.compared, *(r.label for r in records)]
    )
    mine = {label: [r for r in records if r.label == label] for label in labels}
    values = {label: view.values(own, rule) for label, own in mine.items()}
    averages = {label: row[AVERAGE] for label, row in values.items()}
    # Agreement and discrimination are said of the rows that are shown.
    shown = {label: averages[label] for label in view.labels}
    committed = {
        label: view.values([r for r in against if r.label == label], rule)[AVERAGE]
        for label in shown
    }
    again = statistics.repeated(shown, committed)
    for label, result in again.items():
        if result and _elsewhere(mine[label], [r for r in against if r.label == label]):
            again[label] = result.widened(PROCESSOR_SPREAD)
    compared = view.compared or view.labels
    versus = [(label, view.reference) for label in compared if label != view.reference]
    judged = statistics.judge(averages, versus)
    rows = []
    for label in view.labels:
        plain = statistics.paired(averages[label], averages[view.reference])
        done = [record for record in mine[label] if record.status == "done"]
        parameters = next((r.parameters for r in done if r.parameters), None)
        steps = [r.cost.seconds_per_step for r in done if r.cost.seconds_per_step is not None]
        row = Row(
            label=label,
            state=_state(mine[label]),
            n=len(done),
            trainable=parameters.backbone_trainable if parameters else None,
            seconds_per_step=statistics.average(steps),
            scores={k: statistics.summarise(list(v.values())) for k, v in values[label].items()},
            difference=judged.differences.get((label, view.reference)),
            paired=None if label == view.reference else plain,
            published=view.published.values.get(label, {}),
            agreement=again[label],
            baseline=label == view.reference,
            records=tuple(sorted(mine[label], key=lambda record: record.seed)),
        )
        rows.append(row)
    return Block(
        placement=placement[0],
        start=placement[1],
        selection=rule,
        rows=tuple(rows),
        completeness=notes.completeness(view.labels, view.seeds, records),
        discrimination=notes.discrimination(statistics.discrimination(shown)),
        comparisons=notes.comparisons(
            judged, f"Avg - {view.reference}{', all factors' if view.compared else ''}"
        ),
        values={label: values[label] for label in view.labels},
        pairs=statistics.judge(averages, [*combinations(shown, 2)]) if view.pairs else None,
    )


def _elsewhere(ours: Sequence[Record], theirs: Sequence[Record]) -> bool:
    """Whether the processor or its instruction set is not the same for all these records."""
    environments = [r.environment for r in (*ours, *theirs) if r.status == "done"]
    return len({(e.gpu or e.cpu, *sorted(e.instruction_set.items())) for e in environments}) > 1


def _state(records: Sequence[Record]) -> str:
    # One seed that ended well makes a row of numbers; the line below the block names the others.
    for status, state in (("done", "done"), ("failed", "failed"), ("not_applicable", "n/a")):
        if any(record.status == status for record in records):
            return state
    return "missing"


def _placements(
    asked: tuple[str, ...] | None, protocol: Protocol, records: Sequence[Record]
) -> list[str]:
    for name in asked or ():
        # Refuses an unknown name, before it gives an empty block.
        protocol.placement(name)
    if asked:
        return list(asked)
    present = {protocol.default_placement, *(record.placement for record in records)}
    return [name for name in protocol.placements if name in present]


def _seeds(protocol: Protocol, records: Sequence[Record]) -> tuple[int, ...]:
    """Those of the protocol, and what every row that has records has besides.

    A further seed of some rows alone would make means of different seeds stand side by side.
    """
    rows: dict[tuple[str, str], set[int]] = {}
    for record in records:
        rows.setdefault((record.placement, record.label), set()).add(record.seed)
    shared = set.intersection(*rows.values()) if rows else set()
    return (*protocol.seeds, *sorted(shared - set(protocol.seeds)))


def _rules(asked: tuple[str, ...], protocol: Protocol) -> tuple[str, ...]:
    """Selection rules to show; the oracle never stands alone."""
    rules = asked or (protocol.selection,)
    if set(rules) == {"target-oracle"}:
        rules = (protocol.selection, "target-oracle")
    return tuple(dict.fromkeys(rules))


def _used(published: Published, labels: Sequence[str]) -> dict[str, str]:
    letters = {note for label in labels for _, note in published.values.get(label, {}).values()}
    return {letter: text for letter, text in published.footnotes.items() if letter in letters}
