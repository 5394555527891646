"""Tables as people read them: a terminal of 80 columns, a page without scripts, a paper."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest
from paths import ROOT
from toy_records import build, toy_protocol, toy_record, toy_records

from benchmarks.errors import UserError
from benchmarks.record import Evaluation, Parameters, Record, Score
from benchmarks.report import table as tables
from benchmarks.report.costs import load
from benchmarks.report.costs import render as costs
from benchmarks.report.formats import Layout, latex, render
from benchmarks.report.spec import FOLDER, Published, TableSpec, load_table, published
from benchmarks.report.statistics import Difference
from benchmarks.report.table import Request, Table, one_placement, ordered

FAR = Difference(-16.0, -17.8, -14.2, 3, paired=True)
LONG = "my_method.AVeryLongNameOfAMethodThatSomebodyWrote+12ab34cd"


def rows_of(text: str) -> list[str]:
    """First words of the lines of rows."""
    lines = text.splitlines()
    (head,) = [place for place, line in enumerate(lines) if line.startswith("method")]
    return [line.split()[0] for line in lines[head + 1 :]]


def test_text_fits_a_terminal_and_keeps_the_order_that_is_asked_for(tmp_path: Path) -> None:
    table = build(tmp_path)
    text = render(ordered(table, "avg"), "text")
    assert max(map(len, text.splitlines())) <= 80
    assert rows_of(text)[:4] == ["lora", "soma", "freeze", "full"]  # 27.5, 25.65, 25.6, 23.2
    (soma,) = [line for line in text.splitlines() if line.startswith("soma")]
    assert re.fullmatch(
        r"soma +2 +74k +26.3 +25.0 +25.6 +\+0.1 \[-0.2, \+0.3\] +within 1 point", soma
    )
    assert "11/12 cells, 1 failed: soma seed 2: loss not finite at step 12" in text
    assert "toy profile: invented numbers" in text
    assert rows_of(render(ordered(table, "table"), "text"))[:2] == ["full", "freeze"]
    assert rows_of(render(ordered(table, "trainable"), "text"))[0] == "freeze"
    assert rows_of(render(ordered(table, "method"), "text"))[0] == "freeze"
    with pytest.raises(UserError, match="no column 'avgg' to sort by; did you mean 'avg'"):
        ordered(table, "avgg")


@pytest.mark.parametrize("name", ["table1", "table2", "table3a"])
def test_text_of_eight_rows_fits_one_small_screen(name: str) -> None:
    spec = load_table(name)
    protocol = spec.protocol("mini")
    table = tables.build(spec, protocol, [], Published({}, {}), Request())
    assert len(table.blocks[0].rows) == 8
    engines = {"engines": ("torchvision",)} if name == "table2" else {"engines": ()}
    held = replace(table, others=("last-two-thirds",))
    rows = [replace(row, n=3, trainable=176_256, difference=FAR) for row in held.blocks[0].rows]
    block = replace(held.blocks[0], rows=tuple(rows), completeness="24/24 cells")
    with patch.object(Table, "engines", engines["engines"]):
        lines = render(replace(held, blocks=(block,)), "text").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) + 1 <= 16  # and a line that names files
    assert rows_of("\n".join(lines))[:8] == [row.label for row in rows]
    assert "-16.0 [-17.8, -14.2]" in lines[-5]


def test_a_row_without_a_score_is_sorted_last_and_says_why(tmp_path: Path) -> None:
    failed = [
        toy_record("soma", seed, status="failed", reason="no memory", evaluations=[])
        for seed in (0, 1, 2)
    ]
    table = build(tmp_path, [r for r in toy_records() if r.label != "soma"] + failed)
    text = render(ordered(table, "avg"), "text")
    assert rows_of(text)[3] == "soma"
    assert next(t for t in text.splitlines() if t.startswith("soma")).count("failed") >= 4


def test_a_name_of_any_length_leaves_the_text_within_the_terminal(tmp_path: Path) -> None:
    record = toy_record("lora", 0).model_copy(update={"label": LONG, "seed": 1})
    table = build(tmp_path, [*toy_records(), record])
    text = render(table, "text")
    assert max(map(len, text.splitlines())) <= 80
    assert "my_metho" in text
    assert LONG in render(table, "text", Layout(wide=True))


def test_columns_are_those_that_are_asked_for(tmp_path: Path) -> None:
    table = build(tmp_path)
    for form, mark in (("text", "  "), ("md", "|"), ("html", "<"), ("tex", "&")):
        text = render(table, form, Layout(columns=("n", "avg", "verdict")))
        (line,) = [
            line for line in text.splitlines() if re.search(r"\blora\b.*\b3\b.*better", line)
        ]
        assert mark in line
        assert "28.7" not in line
    with pytest.raises(UserError, match="no column 'vrdict'; did you mean 'verdict'"):
        render(table, "md", Layout(columns=("vrdict",)))


def default_alone(folder: Path, records: Sequence[Record]) -> Table:
    return build(folder, records, placements=("all",))


def test_text_names_the_placement_that_it_does_not_show(tmp_path: Path) -> None:
    late, base, other = (
        toy_record(label, 0, placement="last-two-thirds") for label in ("lora", "freeze", "soma")
    )
    # The reference row, or two rows of four; a single other one is no table.
    for more, named in (([late], False), ([late, other], True), ([base], True)):
        records = [*toy_records(), *more]
        for table in (one_placement(build(tmp_path, records)), default_alone(tmp_path, records)):
            words = " ".join(render(table, "text").split())
            assert ("Recorded too: placement last-two-thirds (--placement both)" in words) == named
    only = one_placement(build(tmp_path, [late]))
    assert [block.placement for block in only.blocks] == ["last-two-thirds"]


def test_notes_hold_published_numbers_with_their_rows(tmp_path: Path) -> None:
    text = render(build(tmp_path), "text", Layout(notes=True))
    assert max(map(len, text.splitlines())) <= 80
    assert "Cityscapes / BDD100K: full 63.7 / 57.4, lora 65.2 / 58.3" in " ".join(text.split())


def test_text_counts_the_rows_that_agree_with_the_committed_records(tmp_path: Path) -> None:
    better = [r for r in toy_records() if r.label != "soma"]
    text = render(build(tmp_path, against=better), "text")
    assert "Against the committed records: 3 agree" in text


def test_every_row_says_which_records_are_behind_it(tmp_path: Path) -> None:
    table = build(tmp_path)
    lora = next(row for row in json.loads(render(table, "json")) if row["method"] == "lora")
    assert lora["seeds"] == [0, 1, 2]
    assert lora["digests"] == [toy_record("lora", seed).digest for seed in (0, 1, 2)]
    assert lora["records"][1] == "toy/all/lora/seed1.json"
    assert "lora  toy/all/lora/seed1.json" in render(table, "text", Layout(paths=True)).splitlines()


class Cells(HTMLParser):
    """The texts of table cells, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        assert tag != "script"
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_page_holds_the_cells_of_markdown_and_a_label_stays_text(tmp_path: Path) -> None:
    label = "m.<script>alert(1)</script>"
    record = toy_record("lora", 0).model_copy(update={"label": label})
    table = build(tmp_path, [*toy_records(), record])
    page = Cells()
    page.feed(render(table, "html"))
    lines = [line for line in render(table, "md").splitlines() if line.startswith("| ")]
    plain = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert page.rows == [[cell.replace("**", "") for cell in row] for row in plain]
    assert page.rows[-1][0] == label


def tables_for_latex(folder: Path) -> dict[str, Table]:
    """A plain one, one with long names and signs, one against other records, one of pairs."""
    failed = toy_record(
        "lora", 1, status="failed", reason="50% of a_b & c ~ {x} # \\y", evaluations=[]
    )
    odd = toy_record("lora", 0).model_copy(update={"label": LONG})
    rest = [r for r in toy_records() if (r.label, r.seed) != ("lora", 1)]
    return {
        "plain": build(folder),
        "odd": build(folder, [*rest, failed, odd], against=toy_records()),
        "pairs": build(folder, pairs=True),
    }


def test_latex_is_a_float_with_caption_label_and_notes(tmp_path: Path) -> None:
    for name, table in tables_for_latex(tmp_path).items():
        text = latex(table)
        begun = re.findall(r"\\begin\{(.*?)\}", text)
        assert begun == ["table*", "threeparttable", "tabular", "tablenotes"], name
        assert sorted(re.findall(r"\\end\{(.*?)\}", text)) == sorted(begun)
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        assert r"\label{tab:toy_table-toy-all}" in text
        (columns,) = re.findall(r"tabular\}\{@\{\}(l?r+)@", text)
        body = text.partition("toprule")[2].partition("bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    asked = latex(build(tmp_path), Layout(columns=("avg", "difference")))
    assert r"\begin{table}[t]" in asked
    assert "% [a] Rein" in asked
    assert r"\item {[a] Rein" not in asked
    broad = Layout(columns=("avg", "agreement", "published", "source", "difference", "verdict"))
    assert "% left out, too wide or below: " in latex(build(tmp_path), broad)


def test_only_a_best_that_is_better_than_every_row_is_bold(tmp_path: Path) -> None:
    rows = [line.split(" & ") for line in latex(build(tmp_path)).splitlines() if " & " in line]
    bold = {(row[0], place) for row in rows for place, cell in enumerate(row) if "textbf" in cell}
    column = {heading: place for place, heading in enumerate(rows[0])}
    # lora leads every column by more than a point, at a noise of 0.2; differences as in Markdown.
    assert ("lora", column["Avg"]) in bold
    assert {name for name, place in bold if place == column["vs freeze [95 \\%]"]} == {
        "lora",
        "full",
    }
    near = [r for r in toy_records() if r.label in ("freeze", "soma")]
    rows = [
        line.split(" & ") for line in latex(build(tmp_path, near)).splitlines() if " & " in line
    ]
    assert not [row for row in rows if "textbf" in row[column["Avg"]]]


LATEX = shutil.which("pdflatex")


@pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("options", ["", "twocolumn"])
def test_latex_compiles_and_fits(options: str, tmp_path: Path) -> None:
    texts = {name: latex(table) for name, table in tables_for_latex(tmp_path).items()}
    narrow = latex(build(tmp_path), Layout(columns=("avg", "difference", "verdict")))
    texts["narrow"] = narrow.replace("tab:", "tab:narrow")
    assert compiled(texts, options, tmp_path) == []


@pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("options", ["", "twocolumn"])
def test_latex_of_every_table_compiles_and_fits(options: str, tmp_path: Path) -> None:
    """With their domains, rows and published numbers; Table 5 as it is committed."""
    files = [file for file in sorted(FOLDER.glob("*.yaml")) if not load_table(file).rows]
    texts = {file.stem: latex(every_row(load_table(file))) for file in files}
    texts |= {f"table5-{p}": costs(load(ROOT / "results/costs", p), "tex") for p in PROFILES}
    assert {"table1", "table2", "table3a", "table3d", "table5-paper"} <= {*texts}
    assert compiled(texts, options, tmp_path) == []


PROFILES = ("mini", "paper")


def every_row(spec: TableSpec) -> Table:
    """The rows of a table, three seeds in every domain, from records of the toy protocol."""
    domains = {
        name: Score(role=role, metrics={spec.metric: 34.56 + 10 * (role == "target")}, images=2)
        for role, names in (("validation", ("held",)), ("target", (*spec.sources, *spec.domains)))
        for name in names
    }
    records = [
        toy_record(
            label,
            seed,
            evaluations=[Evaluation(iteration=20, domains=domains)],
            parameters=Parameters(
                backbone_trainable=304_198_656, backbone_total=304_198_656, head=9
            ),
        )
        for label in spec.methods
        for seed in (0, 1, 2)
    ]
    return tables.build(spec, toy_protocol(), records, published(spec.published), Request())


def compiled(texts: Mapping[str, str], options: str, folder: Path) -> list[str]:
    """What pdflatex has to complain about in a paper that holds all of the tables."""
    for name, text in texts.items():
        (folder / f"{name}.tex").write_text(text)
    width = "" if options else r"\setlength\textwidth{397pt}"
    # Cleared after each, since LaTeX holds at most 18 floats that have no place yet.
    inputs = "".join(rf"\input{{{name}.tex}}\clearpage " for name in texts)
    (folder / "paper.tex").write_text(
        rf"\documentclass[{options}]{{article}}\usepackage{{booktabs,threeparttable}}"
        rf"{width}\begin{{document}}{inputs}\end{{document}}"
    )
    done = subprocess.run(
        [LATEX, "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return re.findall(r"Overfull.*|Float too large.*|LaTeX Error.*", done.stdout)
