"""The command line: `python -m benchmarks --help`.

Heavy modules are imported inside the commands that need them, so that `table` and `list` are quick.
Exit codes: 0 well, 1 a cell failed, 2 the user has to fix something, 130 interrupted.
"""

# ruff: noqa: E402 - an interrupt is heard before the heavy part of the imports

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise


def _interrupted(number: int, frame: object) -> None:
    # While modules are imported nothing has begun: a traceback would only frighten.
    os.write(2, b"interrupted; the same command resumes\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupted)

from typing import Annotated, Any

import typer
from typer.main import get_command

from benchmarks import __version__
from benchmarks.commands import bench, mini
from benchmarks.commands.accept import accept
from benchmarks.commands.check import check
from benchmarks.commands.collect import collect
from benchmarks.commands.compare import compare
from benchmarks.commands.download import download
from benchmarks.commands.export import export
from benchmarks.commands.import_ import import_
from benchmarks.commands.list import list_
from benchmarks.commands.pictures import pictures
from benchmarks.commands.report import report
from benchmarks.commands.run import run
from benchmarks.commands.show import show
from benchmarks.commands.status import status
from benchmarks.commands.sweep import sweep
from benchmarks.commands.table import table
from benchmarks.commands.tune import tune
from benchmarks.commands.verify import verify
from benchmarks.errors import UserError
from benchmarks.methods import code_of

# Panel of the help -> command -> what it is, and an example of its arguments.
COMMANDS = {
    "See results": {
        "table": (table, "table1 --columns avg,difference,verdict"),
        "show": (show, "results/reference/mini_gtav/last-two-thirds/soma/seed5.json"),
        "report": (report, "--records results/reference --records results/runs"),
        "compare": (compare, "path/to/my_method.py:MyMethod --table table1"),
        "list": (list_, "methods"),
    },
    "Train": {
        "run": (run, "mini_gtav soma --seed 5 --set method.rank=4"),
        "sweep": (sweep, "table1 --methods freeze,soma --workers 2"),
        "status": (status, "table1 --watch"),
        "collect": (collect, "node1/runs node2/runs --out results/runs"),
        "tune": (tune, "mini_gtav --methods lora --rates 1e-3,3e-3 --decays 0.05"),
    },
    "Check": {
        "accept": (accept, "path/to/submission"),
        "check": (check, "path/to/my_method.py:MyMethod"),
        "verify": (verify, "cityscapes --root /data"),
    },
    "Data and files": {
        "download": (download, "--dataset cityscapes --root /data"),
        "import": (import_, "soma.pth --protocol soma_gtav --data-root /data"),
        "export": (export, "soma/seed5.json adapter --to peft"),
        "pictures": (pictures, "soma/seed5.json full/seed5.json --out pictures"),
    },
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Which way of adapting a pretrained vision transformer holds up in unseen domains?",
    epilog="Exit codes: 0 well, 1 a cell failed, 2 something to fix, 130 interrupted.",
)
for panel, commands in COMMANDS.items():
    for name, (command, example) in commands.items():
        epilog = f"Example: `python -m benchmarks {name} {example}`"
        app.command(name=name, rich_help_panel=panel, epilog=epilog)(command)
example = "Example: `python -m benchmarks mini render --root data/mini`"
app.add_typer(mini.mini, name="mini", rich_help_panel="Data and files", epilog=example)
app.add_typer(bench.bench, name="bench", rich_help_panel="Check")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"soma-peft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print it.")
    ] = False,
) -> None: ...


def _command_line() -> Any:
    """The commands; help without types, which the words beside them say better."""
    group = get_command(app)
    todo = [group]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        for parameter in command.get_params(typer.Context(command)):
            parameter.display_type_rich = lambda ctx: None
    return group


def _usage(error: typer.TyperException, argv: Sequence[str]) -> str:
    """What is wrong with a command line: the flag with its value, and where its words are told."""
    words = " ".join(error.format_message().split()).rstrip(".")
    flag, invalid, reason = words.removeprefix("Invalid value for ").partition(": ")
    name = flag.strip("'")
    if words.startswith("Invalid value for ") and invalid:
        given = [after for flag, after in pairwise(argv) if flag == name]
        given += [word.partition("=")[2] for word in argv if word.startswith(f"{name}=")]
        reason = reason.removeprefix("Value error, ")
        words = f"{' '.join([name, *given[-1:]])}: {reason[:1].lower()}{reason[1:]}"
    where = getattr(getattr(error, "ctx", None), "command_path", "python -m benchmarks")
    return f"{words}; see {where} --help"


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; what a user can fix is one line."""
    code_of.cache_clear()  # a user's file is read once per command
    try:
        code = _command_line()(argv, prog_name="python -m benchmarks", standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:  # a wrong flag or a missing argument
        print(f"error: {_usage(error, argv or sys.argv[1:])}", file=sys.stderr)
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
