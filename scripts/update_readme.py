"""Puts the committed Table 1, and what it tells apart, into README.md: nothing typed by hand.

python scripts/update_readme.py
"""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report.spec import load_table  # noqa: E402
from benchmarks.report.statistics import WORDS  # noqa: E402

README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table1 -->\n).*?(<!-- /table1 -->)", re.DOTALL)
COUNT = re.compile(r"\d+/\d+ cells")  # the line under the rows
SENTENCE = re.compile(r"(<!-- verdicts -->).*?(<!-- /verdicts -->)", re.DOTALL)


def printed(*options: str) -> str:
    """What `table` prints of the table's own rows, from the reference."""
    rows = ",".join(load_table("table1").methods)
    command = [sys.executable, "-m", "benchmarks", "table", "table1", "--placement", "default"]
    command += ["--methods", rows, *options]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def table() -> str:
    """The table's own rows as `make reproduce-table1` prints them."""
    lines = itertools.takewhile(lambda line: not COUNT.match(line), printed().splitlines())
    return "\n".join(["```", *lines, "```"])


def verdicts(rows: list[dict[str, str | None]], reference: str) -> str:
    """Which rows differ from the reference, in words; `rows` as `--format json` has them."""
    by_word = {word: [r["method"] for r in rows if r["verdict"] == word] for word in WORDS}
    *told, unknown = by_word.values()
    parts = [
        f"{_listed(labels)} {'is' if len(labels) == 1 else 'are'} {word}"
        for word, labels in zip(WORDS, told, strict=False)
        if labels
    ]
    if unknown:
        parts.append(f"of {_listed(unknown)} they cannot tell")
    return f"on Avg against {reference} the records say: {'; '.join(parts) or 'nothing'}"


def _listed(labels: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))


def updated() -> str:
    """README.md with the table of the committed records, and what it tells apart."""
    words = verdicts(json.loads(printed("--format", "json")), load_table("table1").reference)
    text = BLOCK.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", README.read_text())
    return SENTENCE.sub(lambda match: f"{match[1]}{words}{match[2]}", text)


if __name__ == "__main__":
    README.write_text(updated())
