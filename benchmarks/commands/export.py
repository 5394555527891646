"""The command `export`: a trained adapter for use elsewhere."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import UserError, closest

FORMATS = ("peft", "folded", "mmseg")


def export(
    record: Annotated[Path, typer.Argument(help="A record (.json), its weights beside it.")],
    destination: Annotated[Path, typer.Argument(help="Folder (peft) or file (folded, mmseg).")],
    to: Annotated[str, typer.Option(help="peft, folded or mmseg.")],
    protocol: Annotated[str, typer.Option(help="Path of its protocol, if not built in.")] = "",
    method: Annotated[str, typer.Option(help="path/to/file.py:Class, if not built in.")] = "",
) -> None:
    """Write what RECORD trained for use elsewhere.

    As a LoRA that peft loads, as plain backbone weights, or, for mmseg, as the file of factors and
    head that the code of SoMA and Rein evaluates and `import` reads.
    """
    from safetensors import SafetensorError

    from benchmarks.artifacts import load_trained
    from soma.export import NotExportable, export_folded, export_peft
    from soma.method import NotFoldable

    if to not in FORMATS:
        raise UserError(f"--to {to}: no such format{closest(to, FORMATS)}")
    trained = load_trained(record, protocol, method)
    words = ""
    try:
        if to == "peft":
            export_peft(trained.vit, trained.plain, destination)
        elif to == "folded":
            export_folded(trained.method, trained.vit, destination)
        else:
            from benchmarks.released import export_mmseg

            words = export_mmseg(trained, record.with_suffix(".safetensors"), destination)
    except NotExportable as error:
        what = "no LoRA for peft" if to == "peft" else "not for mmseg"
        instead = "plain weights may do: --to folded"
        raise UserError(f"{trained.record.label}: {what}: {error}; {instead}") from None
    except NotFoldable as error:
        raise UserError(f"{trained.record.label}: no plain weights: {error}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{destination}: cannot be written ({error})") from None
    print(destination)
    if words:
        print(words, file=sys.stderr)
