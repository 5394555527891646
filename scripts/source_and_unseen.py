"""Is full fine-tuning best on the source and behind on unseen domains, and does adapting help?

python scripts/source_and_unseen.py [RECORDS]

Three differences of Table 1 with plain paired 95 % t intervals over its seeds: each is one question
asked beforehand, where the table judges all rows together. Which row is the best of the others is
read from the same scores, so that the first two intervals are too favourable to it.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report.records import read_records  # noqa: E402
from benchmarks.report.spec import AVERAGE, SOURCE, load_table, published  # noqa: E402
from benchmarks.report.statistics import Difference, paired  # noqa: E402
from benchmarks.report.table import Request, build  # noqa: E402

Seeds = Mapping[int, float]


def questions(values: Mapping[str, Mapping[str, Seeds]]) -> dict[str, Difference | None]:
    """Question -> difference; `values` are row -> column -> seed -> percent."""
    peft = [label for label in values if label not in ("full", "freeze")]
    best = {
        column: max(peft, key=lambda label, column=column: fmean(values[label][column].values()))
        for column in (SOURCE, AVERAGE)
    }
    mean = {
        seed: fmean(values[label][AVERAGE][seed] for label in peft)
        for seed in values["freeze"][AVERAGE]
    }
    full, freeze = values["full"], values["freeze"]
    return {
        f"held-out source: full - {best[SOURCE]}": paired(
            full[SOURCE], values[best[SOURCE]][SOURCE]
        ),
        f"unseen: full - {best[AVERAGE]}": paired(full[AVERAGE], values[best[AVERAGE]][AVERAGE]),
        "unseen: mean of the others - freeze": paired(mean, freeze[AVERAGE]),
    }


def main(folder: Path) -> None:
    """Print a line for each."""
    spec = load_table("table1")
    protocol = spec.protocol("mini")
    records = [*read_records([folder], protocol.name, "controlled").values()]
    request = Request(methods=tuple(spec.methods), placements=(protocol.default_placement,))
    table = build(spec, protocol, records, published(spec.published), request)
    for question, made in questions(table.blocks[0].values).items():
        print(f"{question:<40} {made.mean:+.2f} [{made.low:+.2f}, {made.high:+.2f}]")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "reference")
