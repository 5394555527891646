"""The words below a table: what is missing, how well it discriminates, and what the numbers are."""

from collections import Counter
from collections.abc import Sequence

from benchmarks import trials
from benchmarks.environment import Environment
from benchmarks.errors import UserError
from benchmarks.protocol import MARGIN, Protocol, Recipe
from benchmarks.record import Record
from benchmarks.report.spec import TableSpec
from benchmarks.report.statistics import (
    CONFIDENCE,
    WITHIN,
    WORDS,
    Discrimination,
    Judgement,
    verdict,
)

# One wording for tables, `compare` and the page: different words would pass for another test.
HOW = (
    "rows and seeds fitted by least squares, noise of all rows together, moderated per row (Smyth "
    "2004), intervals that hold together (Dunnett 1955); better, worse (bold) = it excludes 0, "
    f"{WITHIN} = it contains 0 and lies within ±{MARGIN:g}, cannot tell = neither"
)


def completeness(labels: Sequence[str], seeds: Sequence[int], records: Sequence[Record]) -> str:
    """One line such as "23/24 cells, 1 failed: soma seed 2: loss not finite at step 12"."""
    recorded = {(record.label, record.seed): record for record in records}
    wanted = [(label, seed) for label in labels for seed in seeds]
    here = [recorded[key] for key in wanted if key in recorded]
    parts = [f"{sum(r.status == 'done' for r in here)}/{len(wanted)} cells"]
    failed = [f"{r.label} seed {r.seed}: {r.reason}" for r in here if r.status == "failed"]
    if failed:
        parts.append(f"{len(failed)} failed: {'; '.join(failed)}")
    refused = [r for r in here if r.status == "not_applicable"]
    if refused:
        # Every seed of a method is refused for the same reason: said once.
        reasons = dict.fromkeys(f"{r.label}: {r.reason}" for r in refused)
        parts.append(f"{len(refused)} not applicable: {'; '.join(reasons)}")
    missing = [key for key in wanted if key not in recorded]
    if missing:
        by_label: dict[str, list[str]] = {}
        for label, seed in missing:
            by_label.setdefault(label, []).append(str(seed))
        rows = [f"{label} seed {', '.join(numbers)}" for label, numbers in by_label.items()]
        parts.append(f"{len(missing)} missing: {'; '.join(rows)}")
    return ", ".join(parts)


def discrimination(figures: Discrimination | None) -> str:
    """One line: spread of method means over seed noise, and rank agreement between seeds."""
    if figures is None:
        return "discrimination on Avg: - (fewer than two methods with records)"
    spread = f"spread of method means {figures.spread:.2f}"
    noise = "-" if figures.seed_sd is None else f"{figures.seed_sd:.2f}"
    ratio = "-" if figures.ratio is None else f"{figures.ratio:.1f}"
    of = f" (mean of {figures.pairs} pairs of seeds)"
    tau = "-" if figures.tau is None else f"{figures.tau:.2f}{of}"
    return (
        f"discrimination on Avg: {spread} / median seed sd {noise} = {ratio}; "
        f"Kendall tau between rankings of single seeds {tau}"
    )


def comparisons(judged: Judgement, what: str) -> str:
    """One line: what a set of differences came to, and what their intervals rest on."""
    tested = [result for result in judged.differences.values() if result and result.low is not None]
    counts = Counter(map(verdict, tested))
    words = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    without = len(judged.differences) - len(tested)
    if without:
        words = ", ".join([*filter(None, [words]), f"{without} without two seeds in common"])
    if not tested:
        return f"{what}: {words or '-'}"
    return (
        f"{what}: {words}; the {CONFIDENCE * 100:g} % intervals of {len(tested)} comparisons hold "
        f"together ({judged.confidence * 100:.1f} % each), noise of {judged.rows} rows with "
        f"{judged.freedom} degrees of freedom"
    )


def notes(
    protocol: Protocol,
    spec: TableSpec,
    mode: str,
    rules: Sequence[str],
    records: Sequence[Record],
    left_out: int,
) -> list[str]:
    """What a reader has to know about the numbers, one line each.

    `records` are those shown; `left_out` is how many others of this protocol are not.
    """
    lines = [protocol.note] if protocol.note else []
    lines.append(f"protocol {protocol.name} version {protocol.version}: {protocol.title}")
    lines.append(
        f"{spec.metric} in percent: mean ± sample standard deviation over n seeds, Avg per seed "
        f"first; differences: {HOW}"
    )
    if spec.sources:
        lines.append(
            f"Avg is over the {len(spec.domains)} unseen domains; the average that includes "
            f"{', '.join(spec.sources.values())} stands apart"
        )
    sized = (*protocol.scored.get("source", ()), *protocol.targets, *protocol.extra)
    lines.append(f"test size (height x width): {', '.join(_size(d) for d in sized)}")
    if protocol.extra:
        again = ", ".join(domain.domain for domain in protocol.extra)
        lines.append(f"scored a second time, in no average: {again}")
    engines = {made.cell["engine"]: None for made in records if "engine" in made.cell}
    if engines:
        lines.append(f"engine of the detector: {', '.join(engines)}")
    # Always named: a score that was picked on the test domains looks like any other.
    rule = f"model selection: {', '.join(rules)}"
    if "target-oracle" in rules:
        rule += " (target-oracle picks on the test domains: an upper bound, not a result)"
    lines.append(rule)
    lines.append(f"recipe mode: {mode}; {_differences(protocol, records)}")
    lines += [*_budgets(records), *_trials(protocol)]
    heads = sorted({record.parameters.head for record in records if record.parameters})
    if heads:
        sizes = ", ".join(f"{head:,}" for head in heads)
        lines.append(f"head: {sizes} parameters, trained in every row, not counted as trainable")
    lines += _excluded(records)
    lines += _machines(records)
    if left_out:
        lines.append(f"{left_out} other records of this protocol (seed or method) are not shown")
    return lines


def _excluded(records: Sequence[Record]) -> list[str]:
    """How many images of each domain were left out, as the records say."""
    counts = {
        domain["domain"]: len(domain["exclude"])
        for record in records
        for group in record.cell.get("protocol", {}).values()
        if isinstance(group, list)
        for domain in group
        if isinstance(domain, dict) and domain.get("exclude")
    }
    parts = ", ".join(f"{count} of {domain}" for domain, count in counts.items())
    return [f"images left out, by name: {parts}"] if parts else []


def _size(domain: object) -> str:
    size = f"{domain.size[0]}x{domain.size[1]}" if domain.size else "native"
    halved = {None: "", "pixels": " (halved first)", "jpeg": " (halved first, as JPEG)"}
    stretched = "" if domain.keep_ratio else " (stretched)"
    return f"{domain.domain} {size}{stretched}{halved[domain.halve]}"


def _differences(protocol: Protocol, records: Sequence[Record]) -> str:
    """Where the recipe of a row, as recorded, differs from the protocol's, and on what ground."""
    # Fields that came later are left out of dumps where they have their default.
    defaults = {k: field.default for k, field in Recipe.model_fields.items() if field.exclude_if}
    common = defaults | protocol.recipe.model_dump(mode="json")
    by_label: dict[str, list[str]] = {}
    for record in records:
        recipe = defaults | record.cell.get("recipe", {})
        changed = [k for k in Recipe.model_fields if k in recipe and common.get(k) != recipe[k]]
        changed = [f"{k} {recipe[k]}" for k in changed]
        own = protocol.changes_for(record.method, record.recipe)
        fields = record.cell["method"]["fields"]
        names = dict.fromkeys([*own.fields, *_changed_fields(record, records)])
        changed += [f"{name} {fields[name]}" for name in names if name in fields]
        if own.source:
            changed = [f"{', '.join(changed) or 'none'} ({own.source})"]
        if changed:
            by_label[record.label] = changed
    if not by_label:
        return "the same recipe in every row"
    by_change: dict[str, list[str]] = {}
    for label, changed in by_label.items():
        by_change.setdefault(", ".join(changed), []).append(label)
    rows = (f"{', '.join(labels)}: {change}" for change, labels in by_change.items())
    return f"differences between rows: {'; '.join(rows)}"


def _changed_fields(record: Record, records: Sequence[Record]) -> list[str]:
    """Fields in which a row made with --set differs from the method's own row.

    All but the placement's where that row is not shown.
    """
    if "+" not in record.label:
        return []
    fields = record.cell["method"]["fields"]
    # Labels of rows made with --set begin with the method's own, up to a plus.
    plain = record.label.partition("+")[0]
    own = next((r.cell["method"]["fields"] for r in records if r.label == plain), {})
    return [name for name in fields if name != "start_block" and fields[name] != own.get(name)]


def _budgets(records: Sequence[Record]) -> list[str]:
    """The trials that chose the recipes, and of which rows."""
    rows: dict[str, dict[str, None]] = {}
    for record in records:
        if record.budget:
            rows.setdefault(str(record.budget), {})[record.label] = None
    return [f"recipe chosen from {words}: {', '.join(rows[words])}" for words in rows]


def _trials(protocol: Protocol) -> list[str]:
    """How many trials every method has had, of those that are kept, and under which version."""
    try:
        kept = trials.summary_of(protocol)
    except UserError as error:
        # A table does not fail for a summary of trials that cannot be read.
        return [f"trials: {error}"]
    if kept is None:
        return []
    file, runs = kept
    methods: dict[int, list[str]] = {}
    for tried in trials.tried(runs):
        methods.setdefault(tried.trials, []).append(tried.method)
    counts = "; ".join(f"{count}: {', '.join(names)}" for count, names in methods.items())
    versions = " and ".join(map(str, sorted({run.version for run in runs})))
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    return [f"trials per method, {file}, version {versions}, seed {seeds}: {counts}"]


def _machines(records: Sequence[Record]) -> list[str]:
    """Processors and commits behind the records."""
    # Records of failures say nothing about where the numbers come from.
    done = [record.environment for record in records if record.status == "done"]
    if not done:
        return []
    machines = sorted({f"{e.gpu or e.cpu}, {e.threads or '?'} thread(s)" for e in done})
    commits = sorted({(e.commit or "unknown")[:10] for e in done})
    line = f"records made on {' and '.join(machines)}, at commit {', '.join(commits)}"
    dirty = sum(bool(e.dirty) for e in done)
    line += f", {dirty} of {len(done)} with uncommitted changes" if dirty else ""
    return [line, *_packages(done), *_kernels(done)]


def _packages(made: Sequence[Environment]) -> list[str]:
    """Packages of which the records name several versions, and how many records have which."""
    parts = []
    for package in sorted({name for environment in made for name in environment.packages}):
        versions = Counter(environment.packages.get(package, "none") for environment in made)
        if len(versions) > 1:
            counts = " and ".join(f"{version} ({count})" for version, count in versions.items())
            parts.append(f"{package} {counts}")
    return [f"packages differ between records: {'; '.join(parts)}"] if parts else []


def _kernels(made: Sequence[Environment]) -> list[str]:
    """Instruction sets of records from CPUs, where they differ: digits do then, a little."""
    sets = Counter(
        ", ".join(f"{name} {value}" for name, value in environment.instruction_set.items())
        for environment in made
        if environment.gpu is None
    )
    if len(sets) < 2:
        return []
    counts = " and ".join(f"{words or 'not recorded'} ({count})" for words, count in sets.items())
    return [f"instruction sets differ between records: {counts}"]
