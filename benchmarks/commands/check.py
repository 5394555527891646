"""The command `check`: is a method implemented correctly?"""

import time
from collections import Counter
from typing import Annotated

import typer

COLOURS = {"pass": "green", "fail": "bold red", "n/a": "yellow"}


def check(
    method: Annotated[str, typer.Argument(help="A name, path/to/file.py:Class or hf:NAME.")],
    settings: Annotated[
        list[str], typer.Option("--set", help="method.FIELD=VALUE; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Check METHOD on small random backbones: one line per property, exit code 1 if one fails."""
    started = time.perf_counter()
    from rich.console import Console

    from benchmarks.cell import parse_changes
    from benchmarks.conformance.check import KINDS, check_method
    from benchmarks.errors import UserError
    from benchmarks.methods import HF, make_method

    if other := [setting for setting in settings if not setting.startswith("method.")]:
        raise UserError(f"--set {other[0]}: check has no recipe; expected method.FIELD=VALUE")
    made = make_method(method, parse_changes(settings)["method"])
    console = Console(highlight=False)
    counts: Counter[str] = Counter()
    refused = ""
    for kind in KINDS:
        console.print(f"{method} on a backbone with {kind}", style="bold", markup=False)
        for finding in check_method(made, kind):
            counts[finding.verdict] += 1
            refused = finding.measured
            line = f"  {finding.verdict:<5} {finding.property:<26} {finding.measured}"
            style = COLOURS[finding.verdict]
            console.print(line, style=style, markup=False, soft_wrap=True)
    if method.startswith(HF) and counts["fail"] == counts.total() == len(KINDS):
        # It came to no property: peft refuses the argument, whatever the backbone.
        raise UserError(f"{method}: {refused}; correct its arguments")
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS)
    seconds = time.perf_counter() - started
    console.print(f"{method}: {verdicts}; {seconds:.1f} s", markup=False)
    if counts["fail"] or not counts["pass"]:
        raise typer.Exit(1)
