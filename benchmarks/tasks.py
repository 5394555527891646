"""What a task is to the rest of the suite: its protocol, and what it can do.

A task is a module with the functions of `Task`: `benchmarks.segmentation.task` or
`benchmarks.detection.task`. Between a protocol and its record this is the only place that knows
which tasks there are. Importing it brings no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from benchmarks import yaml_files
from benchmarks.detection.settings import DetectionProtocol
from benchmarks.errors import UserError, closest
from benchmarks.protocol import FOLDER, Domain, Protocol
from benchmarks.record import Result
from benchmarks.segmentation.settings import SegmentationProtocol

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.distributed import Batch, Shard


class Task(Interface):
    """The functions of a task's module."""

    def build(self, protocol: Protocol) -> nn.Module:
        """The model before a method adapts it: pretrained weights in, head freshly initialised.

        The head draws from torch's global generator, which the caller seeds. The model maps a batch
        to a dict of losses in training, and has its ViT as the attribute `backbone`.

        Raises:
            UserError: a backbone, card or size that does not fit.
        """

    def check_data(self, protocol: Protocol, data_root: Path) -> None:
        """Look at every file that training or evaluation will read: header, end, and size.

        Annotations of boxes are read whole; pixels are not decoded.

        Raises:
            UserError: a data folder or file is not as its card says.
        """

    def batches(
        self, protocol: Protocol, data_root: Path, seed: int, first: int, shard: Shard
    ) -> Iterator[Batch]:
        """Training batches of the iterations `first`, `first` + 1, ... to the recipe's last one.

        Raises:
            UserError: a data folder or file is not as its card says.
        """

    def evaluate(
        self, model: nn.Module, protocol: Protocol, data_root: Path, domain: Domain, shard: Shard
    ) -> Result:
        """Score a model on one domain.

        The model is put into evaluation mode and back into the mode that it was in. Of several
        processes each scores its `shard`, and all return the whole.

        Raises:
            UserError: a data folder or file is not as its card says; nothing to be found in it.
        """


def task_of(protocol: Protocol) -> Task:
    """The module of a protocol's task; brings torch."""
    if protocol.task == "segmentation":
        from benchmarks.segmentation import task
    else:
        from benchmarks.detection import task
    return task


PROTOCOLS: dict[str, type[Protocol]] = {
    "segmentation": SegmentationProtocol,
    "detection": DetectionProtocol,
}


def load_protocol(name: str | Path) -> Protocol:
    """A protocol by its name in `benchmarks/protocols`, or by a path that ends in .yaml.

    Raises:
        UserError: unknown name, unreadable file, unknown key, wrong value, or more than one level
            of `extends`.
    """
    path = find(name)
    data = yaml_files.read(path)
    if "extends" in data:
        base = yaml_files.read(find(str(data.pop("extends")), path))
        if "extends" in base:
            raise UserError(f"{path}: extends: the base extends another file; one level is allowed")
        data = yaml_files.merge(base, data)
    task = str(data.get("task", "segmentation"))
    if task not in PROTOCOLS:
        raise UserError(f"{path}: task: no such task {task!r}{closest(task, PROTOCOLS)}")
    protocol = yaml_files.validate(PROTOCOLS[task], data, str(path))
    if protocol.name != path.stem:
        raise UserError(f"{path}: name: {protocol.name!r} differs from the file's name; use one")
    if path.parent != FOLDER:
        _check_data_sets(protocol, path)
    return protocol


def _check_data_sets(protocol: Protocol, path: Path) -> None:
    """Refuse a data set or split that there is not, by the field that names it."""
    from benchmarks.data.cards import load_card

    for field in ("source", *protocol.roles.values()):
        for index, domain in enumerate(getattr(protocol, field)):
            try:
                load_card(domain.card, protocol.ground_truth).split(domain.split)
            except UserError as error:
                raise UserError(f"{path}: {field}.{index}: {error}") from None


def find(name: str | Path, asked_by: Path | None = None) -> Path:
    """The file of a protocol.

    Raises:
        UserError: no such protocol.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        path = FOLDER / f"{name}.yaml"
    if not isfile(path):  # Path.is_file raises where a name is too long to be one
        where = f"{asked_by}: extends: " if asked_by else ""
        known = closest(str(name), (file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"{where}no protocol {str(name)!r}{known}")
    return path
