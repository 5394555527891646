"""Records to a table: rows with uncertainty, differences, published numbers and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import method_names
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Protocol
from benchmarks.record import Record
from benchmarks.reporting import statistics, table_notes
from benchmarks.reporting.comparable import check_alike, comparable
from benchmarks.reporting.statistics import Difference, Summary
from benchmarks.reporting.table_spec import AVERAGE, Published, TableSpec
from benchmarks.reporting.table_values import values_by_seed


@dataclass(frozen=True)
class Row:
    """One method in one block.

    Attributes:
        state: "done", "failed" (no seed ended well), "n/a" or "missing". n: seeds that count.
        trainable: parameters of the backbone that learn. scores: column key -> percent.
        difference: Avg minus that of the reference row; None in the reference row itself.
        published: column key -> (number as printed, footnote letter).
        agreement: Avg minus that of the committed reference records.
    """

    label: str
    state: str
    n: int
    trainable: int | None
    seconds_per_step: float | None
    scores: dict[str, Summary | None]
    difference: Difference | None
    published: dict[str, tuple[str, str]]
    agreement: Difference | None


@dataclass(frozen=True)
class Block:
    """The rows of one placement under one selection rule, with the lines that stand below them.

    `start` is the first adapted block of every row; None where rows have their own.
    """

    placement: str
    start: int | float | None
    selection: str
    rows: tuple[Row, ...]
    completeness: str
    discrimination: str


@dataclass(frozen=True)
class Table:
    """Everything a format needs; `headings` is column key -> heading, in order."""

    name: str
    title: str
    headings: dict[str, str]
    reference: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    footnotes: dict[str, str]
    against: bool


@dataclass(frozen=True)
class Request:
    """What of a table is asked for; None stands for what the table or protocol says.

    Attributes:
        placements: None is the default one and every other that has records. selections: rules;
            target-oracle brings the protocol's own rule with it.
    """

    mode: str = "controlled"
    placements: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    reference: str | None = None
    selections: tuple[str, ...] = ()


def build(
    spec: TableSpec,
    protocol: Protocol,
    records: Sequence[Record],
    published: Published,
    request: Request,
    against: Sequence[Record] | None = None,
) -> Table:
    """The table of a protocol from its records (of one recipe mode).

    `against` are committed reference records to compare row by row; None leaves the column out.

    Raises:
        UserError: records of different protocol versions, settings or data; or an unknown name.
    """
    check_alike(records, protocol, spec.name)
    labels = [method_names.label(method) for method in request.methods or spec.methods]
    if request.methods is None:
        labels += sorted({record.label for record in records} - set(labels))
    if request.reference and request.reference not in labels:
        known = closest(request.reference, labels)
        raise UserError(f"{spec.name}: no row {request.reference!r}{known}")
    seeds = request.seeds or protocol.seeds
    extras = [domain.domain for domain in protocol.extra]
    view = _View(spec, published, labels, seeds, request.reference or spec.reference, extras)
    committed, remarks = comparable(against, protocol, records)
    rules = _rules(request.selections, protocol)
    own = [protocol.changes_for(label, request.mode).fields for label in labels]
    same = not any("start_block" in fields for fields in own)
    blocks = []
    for name in _placements(request.placements, protocol, records):
        start = protocol.placements[name] if same else None
        here = [r for r in records if r.placement == name and r.seed in seeds]
        there = [r for r in committed if r.placement == name]
        for rule in rules:
            blocks.append(_block(view, rule, (name, start), here, there))
    shown = [r for r in records if r.seed in seeds and r.label in labels]
    left_out = len(records) - len(shown)
    return Table(
        name=spec.name,
        title=spec.title,
        headings=spec.headings | {domain: domain for domain in view.extras},
        reference=view.reference,
        blocks=tuple(blocks),
        notes=(
            *table_notes.notes(protocol, spec, request.mode, rules, shown, left_out),
            *remarks,
        ),
        footnotes=_used(published, labels),
        against=against is not None,
    )


@dataclass(frozen=True)
class _View:
    """What all blocks of a table have in common."""

    spec: TableSpec
    published: Published
    labels: Sequence[str]
    seeds: Sequence[int]
    reference: str
    extras: Sequence[str]

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
    mine = {label: [r for r in records if r.label == label] for label in view.labels}
    values = {label: view.values(own, rule) for label, own in mine.items()}
    averages = {label: row[AVERAGE] for label, row in values.items()}
    rows = []
    for label in view.labels:
        committed = view.values([r for r in against if r.label == label], rule)[AVERAGE]
        versus = statistics.paired(averages[label], averages.get(view.reference, {}))
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
            difference=None if label == view.reference else versus,
            published=view.published.values.get(label, {}),
            agreement=statistics.difference(averages[label], committed),
        )
        rows.append(row)
    return Block(
        placement=placement[0],
        start=placement[1],
        selection=rule,
        rows=tuple(rows),
        completeness=table_notes.completeness(view.labels, view.seeds, records),
        discrimination=table_notes.discrimination(statistics.discrimination(averages)),
    )


def _state(records: Sequence[Record]) -> str:
    for status, state in (("done", "done"), ("failed", "failed"), ("not_applicable", "n/a")):
        if any(record.status == status for record in records):
            return state
    return "missing"


def _placements(
    asked: tuple[str, ...] | None, protocol: Protocol, records: Sequence[Record]
) -> list[str]:
    for name in asked or ():
        if name not in protocol.placements:
            raise UserError(f"no placement {name!r}{closest(name, protocol.placements)}")
    if asked:
        return list(asked)
    present = {protocol.default_placement, *(record.placement for record in records)}
    return [name for name in protocol.placements if name in present]


def _rules(asked: tuple[str, ...], protocol: Protocol) -> tuple[str, ...]:
    """Selection rules to show; the oracle never stands alone."""
    rules = asked or (protocol.selection,)
    if set(rules) == {"target-oracle"}:
        rules = (protocol.selection, "target-oracle")
    return tuple(dict.fromkeys(rules))


def _used(published: Published, labels: Sequence[str]) -> dict[str, str]:
    letters = {note for label in labels for _, note in published.values.get(label, {}).values()}
    return {letter: text for letter, text in published.footnotes.items() if letter in letters}
