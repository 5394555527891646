"""Commands about the mini worlds and their backbone: `mini render`, `sheet`, `pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.arguments import Device
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError

mini = typer.Typer(no_args_is_help=True, help="The mini worlds and their backbone.")


@mini.command()
def render(
    root: Annotated[Path, typer.Option()] = REPOSITORY / "data" / "mini",
    table: Annotated[
        list[str], typer.Option(help="Only what the mini protocol of this table reads; repeatable.")
    ] = [],  # noqa: B006 (typer copies it)
) -> None:
    """Render the mini worlds below ROOT, in the layouts of the real data sets."""
    from benchmarks.report.spec import load_table
    from benchmarks.worlds.worlds import read_by, render_worlds

    protocols = [load_table(name).protocol("mini") for name in table]
    domains = [domain for p in protocols for domain in (*p.source, *p.scored_domains)]
    render_worlds(root, names=read_by(domains) if table else None)


@mini.command()
def sheet(
    root: Annotated[Path, typer.Option()] = REPOSITORY / "data" / "mini",
    out: Annotated[Path, typer.Option()] = REPOSITORY / "results" / "mini",
) -> None:
    """Write contact sheets, class_share.csv and boxes.csv of the worlds rendered below ROOT."""
    from benchmarks.worlds import worlds

    if missing := worlds.everything().difference(worlds.read_manifest(root).worlds):
        way = f"python -m benchmarks mini render --root {root}"
        raise UserError(f"{root}: {min(missing)} is not rendered; {way} adds it")
    print(*worlds.contact_sheets(out), worlds.class_shares(root, out), sep="\n")
    print(worlds.weather_contact_sheet(out), worlds.boxes(root, out), sep="\n")


@mini.command()
def pretrain(
    out: Annotated[Path, typer.Option()] = Path("benchmarks/worlds/backbone.safetensors"),
    steps: Annotated[int, typer.Option(min=1)] = 3800,
    seed: Annotated[int, typer.Option(min=0)] = 2026,
    pairs: Annotated[int, typer.Option(min=1, help="Scenes of a step, each in two styles.")] = 32,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes that render scenes.")] = 1,
) -> None:
    """Pre-train a mini backbone; results/mini/README.md says how the shipped one was made."""
    from benchmarks.worlds.pretrain import pretrain as make

    make(out, steps, pairs, seed=seed, device=device, workers=workers)
