"""Print how many source files one smoke cell enters: those with a function that is called.

Usage: .venv/bin/python scripts/count_entered_files.py DATA_ROOT
"""

import inspect
import sys
import tempfile
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))


def main(data_root: str) -> None:
    """Run the cell and print the number, then the names."""
    entered: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        # The bodies of modules and classes run at import, and are no functions.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            entered.add(frame.f_code.co_filename)

    from benchmarks.__main__ import main as command

    with tempfile.TemporaryDirectory() as out:
        sys.setprofile(note)
        command(["run", "smoke_gtav", "soma", "--data-root", data_root, "--out", out])
        sys.setprofile(None)
    ours = [Path(name).relative_to(REPOSITORY) for name in entered if _is_ours(name)]
    print(len(ours), *sorted(map(str, ours)), sep="\n")


def _is_ours(name: str) -> bool:
    path = Path(name)
    packages = ("soma", "baselines", "benchmarks")
    return path.is_relative_to(REPOSITORY) and path.relative_to(REPOSITORY).parts[0] in packages


if __name__ == "__main__":
    main(sys.argv[1])
