"""Puts the committed Table 1 into README.md, so that no number in it is typed by hand.

python scripts/update_readme.py
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report.spec import load_table  # noqa: E402

README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table1 -->\n).*?(<!-- /table1 -->)", re.DOTALL)


def table() -> str:
    """The table's own rows as `make reproduce-table1` prints them, from the reference."""
    rows = ",".join(load_table("table1").methods)
    command = [sys.executable, "-m", "benchmarks", "table", "table1", "--placement", "default"]
    command += ["--methods", rows]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in printed.splitlines() if line.startswith("|"))


def updated() -> str:
    """README.md with the table of the committed records."""
    return BLOCK.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", README.read_text())


if __name__ == "__main__":
    README.write_text(updated())
