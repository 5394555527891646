"""The command `export`: a trained adapter for use elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import UserError, closest


def export(
    record: Annotated[Path, typer.Argument(help="A record (.json), its weights beside it.")],
    destination: Annotated[Path, typer.Argument(help="Folder (peft) or file (folded).")],
    to: Annotated[str, typer.Option(help="peft or folded.")],
    protocol: Annotated[str, typer.Option(help="Path of its protocol, if not built in.")] = "",
    method: Annotated[str, typer.Option(help="path/to/file.py:Class, if not built in.")] = "",
) -> None:
    """Write what RECORD trained as a LoRA that peft loads, or as plain backbone weights."""
    from safetensors import SafetensorError

    from benchmarks.artifacts import load_trained
    from soma.export import NotExportable, export_folded, export_peft
    from soma.method import NotFoldable

    if to not in ("peft", "folded"):
        raise UserError(f"--to {to}: no such format{closest(to, ('peft', 'folded'))}")
    trained = load_trained(record, protocol, method)
    try:
        if to == "peft":
            export_peft(trained.vit, trained.plain, destination)
        else:
            export_folded(trained.method, trained.vit, destination)
    except NotExportable as error:
        instead = "plain weights may do: --to folded"
        raise UserError(f"{trained.record.label}: no LoRA for peft: {error}; {instead}") from None
    except NotFoldable as error:
        raise UserError(f"{trained.record.label}: no plain weights: {error}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{destination}: cannot be written ({error})") from None
    print(destination)
