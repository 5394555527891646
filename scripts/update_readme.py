"""Puts the committed Table 1, its picture and what it says into README.md: nothing typed by hand.

python scripts/update_readme.py
"""

import itertools
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.commands.arguments import REFERENCE  # noqa: E402
from benchmarks.report.findings import baseline, findings, gains  # noqa: E402
from benchmarks.report.formats import Layout, render  # noqa: E402
from benchmarks.report.page.charts import overview, vl_convert  # noqa: E402
from benchmarks.report.records import read_records  # noqa: E402
from benchmarks.report.spec import load_table, published  # noqa: E402
from benchmarks.report.table import Block, Request, Table, build, ordered  # noqa: E402

README = ROOT / "README.md"
PICTURE = ROOT / "docs/table1.svg"
# The line under the rows: from there on the README has its own words.
COUNT = re.compile(r"\d+/\d+ cells")


@cache
def committed() -> Table:
    """The table's own rows from the reference: default placement, seeds of the protocol."""
    spec = load_table("table1")
    protocol = spec.protocol("mini")
    held = read_records([ROOT / REFERENCE], protocol.name, "controlled").values()
    # Other rows would say more about the noise than `make reproduce-table1` knows.
    records = [record for record in held if record.label in spec.methods]
    request = Request(
        methods=tuple(spec.methods),
        placements=(protocol.default_placement,),
        # Further ones are recorded; `make reproduce-table1` does not train them.
        seeds=protocol.seeds,
    )
    return build(spec, protocol, records, published(spec.published), request)


def table() -> str:
    """The rows as `make reproduce-table1` prints them."""
    text = render(ordered(committed(), "avg"), "text", Layout())
    lines = itertools.takewhile(lambda line: not COUNT.match(line), text.splitlines())
    return "\n".join(["```", *lines, "```"])


def picture() -> str:
    """What rows gain on the source and on unseen domains, as SVG."""
    block = committed().blocks[0]
    return vl_convert().vegalite_to_svg(overview(gains(block), baseline(block)))


def sentences(block: Block) -> str:
    """What the records say, as a list; a line that says so where they say nothing."""
    lines = findings(block) or ["The records tell no row from another"]
    return "\n".join(f"- {line}." for line in lines)


def shown(block: Block) -> str:
    """The picture as README.md embeds it."""
    alt = (
        f"Every row's mIoU minus that of {baseline(block)}, with 95 % intervals: on held-out "
        "images of the source, and on unseen domains"
    )
    return f"![{alt}]({PICTURE.relative_to(ROOT).as_posix()})"


def updated() -> str:
    """README.md with the table of the committed records, their picture, and what they say."""
    block, text = committed().blocks[0], README.read_text()
    parts = {"table1": table(), "picture": shown(block), "findings": sentences(block)}
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        # By a function: in a replacement text the backslashes of a table would count as groups.
        text, count = pattern.subn(lambda match, new=content: f"{match[1]}{new}\n{match[2]}", text)
        if count != 1:
            raise SystemExit(f"README.md: {count} places marked {name}; it takes one")
    return text


if __name__ == "__main__":
    PICTURE.write_text(picture())
    README.write_text(updated())
