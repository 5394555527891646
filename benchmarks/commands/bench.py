"""Commands that measure: `bench`, `bench startup`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.environment import REPOSITORY

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
