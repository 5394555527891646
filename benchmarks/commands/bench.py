"""Commands that measure: `bench`, `bench startup`, `bench costs`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest

bench = typer.Typer()


@bench.callback(invoke_without_command=True)
def speed(
    context: typer.Context,
    data_root: Annotated[Path, typer.Option()] = REPOSITORY / "data" / "mini",
    protocol: Annotated[str, typer.Option(help="Of segmentation, name or path.")] = "mini_gtav",
) -> None:
    """Measure rendering, batches, training steps and evaluation on the worlds in DATA_ROOT."""
    if context.invoked_subcommand is None:
        from benchmarks import bench as benchmark

        benchmark.main(data_root, protocol)


@bench.command()
def startup(
    method: str,
    backbone: Annotated[str, typer.Option(help="timm's name.")] = "vit_large_patch14_dinov2",
    threads: Annotated[int, typer.Option(min=1, help="Decompositions side by side.")] = 2,
) -> None:
    """Measure how long METHOD takes to be put on BACKBONE, first and with its splits cached."""
    from benchmarks.bench import print_startup

    print_startup(method, backbone, threads)


@bench.command()
def costs(
    profile: Annotated[str, typer.Option(help="mini; vit-s; paper: a block of ViT-L.")] = "mini",
    methods: Annotated[str, typer.Option(help="Rows such as soma,hf:LoRA; default: all.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 15,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    read: Annotated[
        Path | None, typer.Option(help="Folder: print the costs kept there, measure nothing.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Folder for .json, .md, .csv, .tex.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, md, csv, tex or json.")] = "text",
) -> None:
    """Table 5: parameters, adapter, start-up, step, memory and evaluation of every method."""
    from benchmarks import console
    from benchmarks.commands import arguments
    from benchmarks.report import costs as report

    if form not in report.FORMATS:
        raise UserError(f"--format {form}: no such format{closest(form, report.FORMATS)}")
    if read is not None:
        print(report.render(report.load(read, profile), form), end="")
        return
    from benchmarks import costs as measuring

    measured = measuring.measure(profile, rounds, arguments.names(methods), device, console.say)
    print(report.render(measured, form), end="")
    for path in measuring.write(measured, write) if write else ():
        console.say(str(path))
