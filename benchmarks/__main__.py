"""The command line: `python -m benchmarks --help`.

Heavy modules are imported inside the commands that need them, so that `table` and `list` are quick.
Exit codes: 0 well, 1 a cell failed, 2 the user has to mend something, 130 interrupted.
"""

import sys

import typer

from benchmarks.commands import bench, data, methods, mini, records, run, sweep, tables
from benchmarks.commands.download import download
from benchmarks.errors import UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
for command in (
    *(run.run, sweep.sweep, tables.table),
    *(methods.check, methods.compare, methods.tune, records.export, records.pictures),
    *(data.verify, download),
):
    app.command()(command)
app.command(name="list")(tables.list_)
app.add_typer(mini.mini, name="mini")
app.add_typer(bench.bench, name="bench")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; what a user can mend is one line."""
    try:
        code = app(argv, prog_name="python -m benchmarks", standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:  # a wrong flag or a missing argument
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    if code == 130:
        print("interrupted; the same command resumes", file=sys.stderr)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
