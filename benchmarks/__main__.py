"""The command line: `python -m benchmarks --help`.

Heavy modules are imported inside the commands that need them, so that `table` and `list` are quick.
Exit codes: 0 well, 1 a cell failed, 2 the user has to fix something, 130 interrupted.
"""

# ruff: noqa: E402 - an interrupt is heard before the heavy part of the imports

import os
import signal
import sys
import traceback


def _interrupted(number: int, frame: object) -> None:
    # While modules are imported nothing has begun: a traceback would only frighten.
    os.write(2, b"interrupted; the same command resumes\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupted)

import typer

from benchmarks.commands import bench, mini
from benchmarks.commands.check import check
from benchmarks.commands.compare import compare
from benchmarks.commands.download import download
from benchmarks.commands.export import export
from benchmarks.commands.import_ import import_
from benchmarks.commands.list import list_
from benchmarks.commands.pictures import pictures
from benchmarks.commands.run import run
from benchmarks.commands.sweep import sweep
from benchmarks.commands.table import table
from benchmarks.commands.tune import tune
from benchmarks.commands.verify import verify
from benchmarks.errors import UserError
from benchmarks.methods import code_of

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
for command in (run, sweep, table, check, compare, tune, export, pictures, verify, download):
    app.command()(command)
app.command(name="import")(import_)
app.command(name="list")(list_)
app.add_typer(mini.mini, name="mini")
app.add_typer(bench.bench, name="bench")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; what a user can fix is one line."""
    code_of.cache_clear()  # a user's file is read once per command
    try:
        code = app(argv, prog_name="python -m benchmarks", standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:  # a wrong flag or a missing argument
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    except SystemExit as error:
        if isinstance(error.code, int) and error.code > 128:  # a signal ended it
            raise
        if isinstance(error.__context__, BrokenPipeError):  # as of `table table1 | head`
            return 1
        at = traceback.extract_tb(error.__traceback__)[-1]
        print(f"error: {at.filename} line {at.lineno}: leaves with {error!r}", file=sys.stderr)
        return 2
    if code == 130:
        print("interrupted; the same command resumes", file=sys.stderr)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
