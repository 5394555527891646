"""Table 5, what every method costs: its record as a file, and the formats that it is shown in."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from tabulate import tabulate

from benchmarks.environment import Environment
from benchmarks.errors import UserError
from benchmarks.report.formats import rounded, tex
from benchmarks.yaml_files import Strict

FORMATS = ("text", "md", "csv", "tex", "json")
TITLE = "Table 5. What every method costs"
MIB = 2**20


class Cost(Strict):
    """One method on one backbone. Seconds are of processor time, on a GPU of the clock.

    Attributes:
        method: in the table.
        reason: why the method does not apply, "" where it does; then the other values are null.
        trainable: parameters that learn in the whole backbone.
        adapter_bytes: of all tensors in the adapter's file.
        startup: seconds that it takes to be put on the whole backbone, with an empty cache of
            decompositions.
        startup_cached: the same with the cache that this filled.
        step: forward and backward over the same of the frozen backbone, which hands the gradient
            on to its input.
        kept_bytes: what autograd keeps for backward, parameters left out.
        state_bytes: gradients and AdamW's two moments of what learns.
        evaluation: forward without gradient, the adapter in place, over the same of the plain
            backbone.
        folded: the same after folding; null for what does not fold.
        peak_bytes: of a step, measured on a GPU, of the blocks that were measured and no others.
    """

    method: str
    reason: str = ""
    trainable: int | None = None
    adapter_bytes: int | None = None
    startup: float | None = None
    startup_cached: float | None = None
    step: float | None = None
    kept_bytes: int | None = None
    state_bytes: int | None = None
    evaluation: float | None = None
    folded: float | None = None
    peak_bytes: int | None = None


class Costs(Strict):
    """The costs of all methods on the backbone of one profile.

    Attributes:
        profile: its name.
        fields: of the methods, in words: which protocol of which version sets them.
        backbone: in words.
        images: of one step.
        tokens: of one of its images.
        blocks: how many were measured; bytes and start-up are scaled up to all.
        depth: how many blocks there are.
        rounds: measurements that a median is of.
        step_seconds: of the frozen backbone.
        unit: "processor time" or "clock".
        environment: where it was measured.
        rows: in the order of the table. The reference of `kept` is the row that keeps most of what
            can be kept: full fine-tuning.
        reference: that row.
    """

    profile: str
    fields: str
    backbone: str
    images: int
    tokens: int
    blocks: int
    depth: int
    rounds: int
    step_seconds: float
    unit: str
    environment: Environment
    rows: tuple[Cost, ...]
    reference: str


def load(folder: Path, profile: str) -> Costs:
    """The costs that are kept in a folder.

    Raises:
        UserError: there are none, or the file is no such record.
    """
    path = folder / f"table5.{profile}.json"
    try:
        return Costs.model_validate_json(path.read_bytes())
    except OSError as error:
        how = f"python -m benchmarks bench costs --profile {profile} --write {folder}"
        raise UserError(f"{path}: {error.strerror}; `{how}` measures them") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: no record of costs: {where}: {first['msg']}") from None


def render(costs: Costs, form: str) -> str:
    """The text of a table in one of `FORMATS`, ending in a newline."""
    if form == "json":
        return costs.model_dump_json(indent=1) + "\n"
    if form == "csv":
        text = io.StringIO()
        names = ["profile", *Cost.model_fields]
        writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"profile": costs.profile} | row.model_dump() for row in costs.rows)
        return text.getvalue()
    title = f"{TITLE}: {costs.backbone}"
    if form == "tex":
        return _latex(costs, title)
    headings, rows = _cells(costs, short=form == "text")
    body = tabulate(
        rows,
        headings,
        tablefmt="pipe" if form == "md" else "plain",
        disable_numparse=True,
        colalign=("left", *("right",) * (len(headings) - 1)),
    )
    if form == "md":
        below = "\n".join(f"- {line}" for line in notes(costs))
        return f"# {title}\n\n{body}\n\n{below}\n"
    unit = "start-up in s, adapter, kept (with gradients and optimizer) in MiB"
    ratios = (
        "step: over a frozen backbone that passes the gradient on (freeze: no backward)\n"
        "eval, folded: over the plain backbone"
    )
    return f"{title}\n{body}\n{unit}\n{ratios}\n{_machine(costs)}\n"


def notes(costs: Costs) -> list[str]:
    """What a reader has to know about the numbers, one line each."""
    scaled = ""
    if costs.blocks < costs.depth:
        scaled = (
            f"; {costs.blocks} of {costs.depth} blocks measured, since the ratios are those of all "
            "(what blocks share is counted in each): bytes kept and "
            "start-up are multiplied, parameters and adapters are those of the whole backbone"
        )
    lines = [
        f"{costs.images} image(s) of {costs.tokens} tokens, float32, all blocks adapted, fields of "
        f"methods {costs.fields}{scaled}",
        f"step: forward and backward of the blocks ({costs.unit}, median of {costs.rounds} ratios, "
        "rows in turn) over the floor, the same with a frozen backbone that hands the gradient on "
        f"to its input, {costs.step_seconds:.3g} s; a backbone in which nothing learns needs no "
        "backward, and can be below it; the optimizer's update is not counted",
        "kept: bytes of all tensors that autograd holds between forward and backward, parameters "
        "left out (the same on every machine); gradients + AdamW: 12 bytes for each parameter that "
        "learns",
        "evaluation: forward without gradient over the plain backbone's, with the adapter in "
        "place / folded into the weights; - where no weight can hold what the method does",
        "start-up: putting the method on the backbone, its first time / with decompositions cached",
    ]
    if any(row.peak_bytes is not None for row in costs.rows):
        lines.append("peak: what torch allocates at most in a step of the measured blocks")
    lines.append(_machine(costs))
    return lines + [f"{row.method}: {row.reason}" for row in costs.rows if row.reason]


def _machine(costs: Costs) -> str:
    made = costs.environment
    dirty = ", with uncommitted changes" if made.dirty else ""
    kernels = made.instruction_set.get("torch", "")
    return (
        f"measured on {made.gpu or made.cpu}, {made.threads} thread(s){kernels and f', {kernels}'},"
        f" torch {made.packages.get('torch', '?')}, at commit {(made.commit or 'unknown')[:10]}"
        + dirty
    )


def _cells(costs: Costs, *, short: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and texts; `short` fits 80 columns."""
    whole = next((row.kept_bytes for row in costs.rows if row.method == costs.reference), None)
    gpu = any(row.peak_bytes is not None for row in costs.rows)
    headings = ["method", "params" if short else "trainable", "adapter", "start-up", "step"]
    if short:
        headings += ["kept", "eval", "folded"]
    else:
        headings += ["kept for backward", f"/ {costs.reference}", "gradients + AdamW"]
        headings += ["peak"] if gpu else []
        headings += ["evaluation", "folded", "folds"]
    rows = []
    for row in costs.rows:
        if row.reason:
            rows.append([row.method, "n/a", *[""] * (len(headings) - 2)])
            continue
        folds = row.folded is not None
        mib, times = ("", "") if short else (" MiB", "")
        start = f"{row.startup:.3g} / {row.startup_cached:.2g}{'' if short else ' s'}"
        cells = [
            row.method,
            rounded(row.trainable) if short else f"{row.trainable:,}",
            f"{_mib(row.adapter_bytes)}{mib}",
            f"{row.startup:.3g}" if short else start,
            f"{row.step:.2f}{times}",
        ]
        if short:
            cells.append(_mib(row.kept_bytes + row.state_bytes))
        else:
            share = "-" if not whole else f"{row.kept_bytes / whole:.2f}"
            cells += [f"{_mib(row.kept_bytes)} MiB", share, f"{_mib(row.state_bytes)} MiB"]
            cells += [f"{_mib(row.peak_bytes or 0)} MiB"] if gpu else []
        cells += [f"{row.evaluation:.2f}", f"{row.folded:.2f}" if folds else "-"]
        rows.append(cells if short else [*cells, "yes" if folds else "no"])
    return headings, rows


def _mib(count: int) -> str:
    """Bytes in MiB, three digits and never an exponent."""
    value = count / MIB
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _latex(costs: Costs, title: str) -> str:
    headings, rows = _cells(costs, short=True)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(tex, cells)) + r" \\"

    caption = (
        f"{title}. Adapter and kept memory (with gradients and optimizer) in MiB, start-up in s; "
        "step and evaluation as ratios to the frozen and to the plain backbone."
    )
    return "\n".join(
        [
            f"% {title}",
            "% \\usepackage{booktabs}",
            *(f"% {note}" for note in notes(costs)),
            "\\begin{table}[t]",
            "\\centering\\footnotesize\\setlength{\\tabcolsep}{2pt}",
            f"\\caption{{{tex(caption)}}}",
            f"\\label{{tab:table5-{costs.profile}}}",
            f"\\begin{{tabular}}{{@{{}}l{'r' * (len(headings) - 1)}@{{}}}}",
            "\\toprule",
            line(headings),
            "\\midrule",
            *map(line, rows),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )
