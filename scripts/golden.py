"""The digits of a tiny cell here, beside those in tests/data/golden.json.

Prints how far they lie apart; with --write the file is made again, which is due where the suite
computes something else on purpose, or with another version of torch:

    python scripts/golden.py [--write]
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cell import make_cell, prepare  # noqa: E402
from benchmarks.data.cards import load_card  # noqa: E402
from benchmarks.run import run_cell  # noqa: E402
from benchmarks.tasks import load_protocol  # noqa: E402
from benchmarks.worlds import stand_in  # noqa: E402

PROTOCOL = ROOT / "tests" / "data" / "golden.yaml"
GOLDEN = PROTOCOL.with_suffix(".json")
SIZE, IMAGES = (96, 160), 8


def main(write: Annotated[bool, typer.Option("--write")] = False) -> None:
    """Run the cell, and print what differs or write the file."""
    with tempfile.TemporaryDirectory() as folder:
        here = measure(Path(folder))
    if write:
        GOLDEN.write_text(json.dumps(here, indent=1) + "\n")
    # After writing too: this reads the file as the test will.
    lines = differences(here, json.loads(GOLDEN.read_text()))
    print("\n".join(lines) or f"every digit is that of {GOLDEN.name}")


def measure(folder: Path) -> dict[str, Any]:
    """Render images below `folder`, run the cell on them, and return its digits.

    "made_on" names what kernels are chosen by: where it is the same, all else is. "losses" holds
    one per step, "scores" what was scored at the end.
    """
    protocol = load_protocol(str(PROTOCOL))
    for domain in (*protocol.source, *protocol.targets):
        stand_in.write_split(load_card(domain.card), folder, domain.split, SIZE, IMAGES)
    pixels = hashlib.sha256()
    for file in sorted(folder.rglob("*.png")):
        # Pixels and not files: another zlib packs the same image in other bytes.
        pixels.update(np.asarray(Image.open(file)).tobytes())
    (cell,) = prepare([make_cell(protocol, "soma", seed=0)], folder, folder / "out")
    record = run_cell(cell, folder / "out", folder)
    environment = record.environment
    return {
        "made_on": {
            "processor": _processor(),
            "instruction_set": environment.instruction_set,
            "torch": environment.packages["torch"],
        },
        "images": pixels.hexdigest(),
        "losses": [point.loss for point in record.losses],
        "scores": record.evaluations[-1].domains["cityscapes"].metrics,
    }


def _processor() -> str:
    """Vendor, family and model (names such as "AMD EPYC" span several), and what a host may hide.

    MKL looks for AVX-512 where it does not know MKL_CBWR's value; oneDNN's blocks depend on caches.
    """
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    pairs = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
    # Backwards, so that the first processor's values are those that stay.
    first = {key.strip(): value.strip() for key, value in reversed(pairs)}
    words = [first.get(key, "?") for key in ("vendor_id", "cpu family", "model", "cache size")]
    return " ".join([*words, *{"avx512f"}.intersection(first.get("flags", "").split())])


def differences(here: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """A line for each part of two measurements that differs, with the size of the difference."""
    lines = [
        f"{name} {here['made_on'].get(name)} instead of {value}"
        for name, value in golden["made_on"].items()
        if here["made_on"].get(name) != value
    ]
    if here["images"] != golden["images"]:
        lines.append("the rendered images differ")
    losses = list(zip(here["losses"], golden["losses"], strict=True))
    if apart := [step for step, (one, two) in enumerate(losses) if one != two]:
        most = max(abs(one / two - 1) for one, two in losses)
        lines.append(f"losses differ from step {apart[0]} on, by up to {most:.1e} of their size")
    if here["scores"] != golden["scores"]:
        most = max(
            float(np.nanmax(np.abs(np.subtract(_numbers(here, name), _numbers(golden, name)))))
            for name in golden["scores"]
        )
        lines.append(f"scores differ by up to {most:.3g} points")
    return lines


def _numbers(measured: dict[str, Any], name: str) -> np.ndarray:
    # As floats null, a class that is not there, becomes NaN.
    return np.array(measured["scores"][name], dtype=float)


if __name__ == "__main__":
    typer.run(main)
