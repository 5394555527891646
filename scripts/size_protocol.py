"""What a candidate of a small protocol costs for what it tells: processor seconds to a half width.

python scripts/size_protocol.py OUT DATA_ROOT PROTOCOL... --methods freeze,full,lora --seeds 100,101

Runs the cells that OUT lacks, in turn, and prints for every candidate (a protocol's name or file):
processor seconds of a cell; the residual deviation of the unseen average after method and seed; the
seconds after which two rows are told to 1 point (half width of a 95 % interval of their difference,
t = 2: 8 s^2 cells' worth); the spread of the rows over that deviation; the frozen backbone and full
fine-tuning against the mean of the other rows, unseen and on the held-out source. The criteria name
no other method. Seeds from 100 on: those of a table stay fresh.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.record import Record
from benchmarks.tasks import PROTOCOLS, load_protocol
from benchmarks.yaml_files import digest_of

HEADINGS = (
    "candidate",
    "s a cell",
    "deviation",
    "s to 1 point",
    "spread / deviation",
    "freeze unseen",
    "full unseen",
    "others unseen",
    "freeze source",
    "full source",
    "others source",
)


def run(protocol: str, method: str, seed: int, out: Path, data_root: Path) -> dict[str, float]:
    """Unseen and source mIoU (or AP50) and processor seconds of a cell; run where OUT has none.

    Raises:
        subprocess.CalledProcessError: the cell fails.
    """
    # By content: a file that was edited in between is another candidate under the same name.
    settings = digest_of(load_protocol(protocol).model_dump(mode="json"))[:8]
    kept = out / "sizes" / f"{Path(protocol).stem}.{settings}.{method}.{seed}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    # Processor seconds of the child: the clock says what else the machine had to do.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "benchmarks", "run", protocol, method, f"--seed={seed}"]
    subprocess.run(
        [*command, f"--data-root={data_root}", f"--out={out}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (path,) = (out / Path(protocol).stem).glob(f"*/{method}/seed{seed}.json")
    record = Record.model_validate_json(path.read_text())
    last = record.evaluations[-1].domains.values()
    metric = PROTOCOLS[record.cell["protocol"]["task"]].metric
    scores = {
        role: [score.metrics[metric] for score in last if score.role == role]
        for role in ("target", "validation")
    }
    value = {
        "unseen": float(np.mean(scores["target"])),
        "source": float(np.mean(scores["validation"])),
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(value))
    return value


def describe(name: str, methods: list[str], cells: np.ndarray) -> list[str | float]:
    """A line of the table from `cells` (M, S, 3): unseen, source and processor seconds.

    M methods, S seeds.
    """
    unseen = cells[..., 0]
    rest = unseen - unseen.mean(0) - unseen.mean(1, keepdims=True) + unseen.mean()
    # What is left of all cells once every method and every seed has its mean.
    freedom = (unseen.shape[0] - 1) * (unseen.shape[1] - 1)
    deviation = float(np.sqrt((rest**2).sum() / freedom))
    seconds = float(cells[..., 2].mean())
    means = dict(zip(methods, cells.mean(1), strict=True))
    others = np.mean([means[m] for m in methods if m not in ("freeze", "full")], axis=0)
    line = [name, seconds, deviation, 8 * deviation**2 * seconds]
    line += [float(unseen.mean(1).std(ddof=1)) / deviation]
    return line + [
        float(values[column])
        for column in (0, 1)
        for values in (means["freeze"], means["full"], others)
    ]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("protocols", nargs="+")
    parser.add_argument("--methods", default="freeze,full,lora")
    parser.add_argument("--seeds", default="100,101")
    args = parser.parse_args()
    methods, seeds = args.methods.split(","), [int(seed) for seed in args.seeds.split(",")]
    if not {"freeze", "full"} < set(methods) or min(seeds) < 100 or len(seeds) < 2:
        parser.error("give freeze, full and another method, and two or more seeds from 100 on")
    lines = []
    for protocol in args.protocols:
        values = [
            [[*run(protocol, method, seed, args.out, args.data_root).values()] for seed in seeds]
            for method in methods
        ]
        lines.append(describe(Path(protocol).stem, methods, np.array(values)))
        # After every candidate: a run of hours may be stopped, and has said what it knows.
        print(tabulate(lines, HEADINGS, floatfmt=".2f"), flush=True)


if __name__ == "__main__":
    main()
