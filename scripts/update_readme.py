"""Puts the committed Table 1 into README.md, so that no number in it is typed by hand.

python scripts/update_readme.py
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table1 -->\n).*?(<!-- /table1 -->)", re.DOTALL)


def table() -> str:
    """The rows of the default placement, as `table table1` prints them from the reference."""
    command = [sys.executable, "-m", "benchmarks", "table", "table1", "--placement", "all"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in printed.splitlines() if line.startswith("|"))


def updated() -> str:
    """README.md with the table of the committed records."""
    return BLOCK.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", README.read_text())


if __name__ == "__main__":
    README.write_text(updated())
