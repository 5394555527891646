"""The state of an unfinished run, in memory and on disk.

On disk it is written whole or not at all, and resumed by the cell that wrote it only.
"""

import logging
import pickle
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch
from lightning_fabric.plugins import Precision
from torch import nn

from benchmarks.errors import UserError
from benchmarks.recipe import AdamW, Average
from benchmarks.record import write_atomically

WARM_STEPS = 3  # first steps of a process, in which memory is allocated and kernels are chosen
_LOG = logging.getLogger(__name__)


@dataclass
class History:
    """What a run has done so far.

    Attributes:
        iteration: steps done. losses, seconds: of each step; the time of a step holds the wait for
            its batch, and neither evaluation nor checkpoint. evaluations: iteration -> result.
    """

    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    evaluations: dict[int, Any] = field(default_factory=dict)

    def add(self, loss: float, seconds: float) -> None:
        """Count a step."""
        self.iteration += 1
        self.losses.append(loss)
        self.seconds.append(seconds)

    @property
    def seconds_per_step(self) -> float | None:
        """Median time of a step, the first few left out where there are more; None of no step."""
        return median(self.seconds[WARM_STEPS:] or self.seconds) if self.seconds else None


@dataclass
class State:
    """Everything that changes while training. Random numbers need no state, see `seeding`."""

    model: nn.Module
    optimizer: AdamW
    average: Average | None
    precision: Precision  # of the fabric: holds the loss scale of 16-bit training
    history: History = field(default_factory=History)

    def averaged(self) -> AbstractContextManager[None]:
        """The model holds the averaged weights inside, if they are averaged at all."""
        return self.average.swapped_in() if self.average else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it can be loaded without unpickling code."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values if self.average else [],
            "precision": self.precision.state_dict(),
            "history": asdict(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        self.history = History(**state["history"])
        if self.average:
            self.average.load(state["average"])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file of the cell with this digest."""

    path: Path
    digest: str

    def save(self, state: State) -> None:
        """Replace the file.

        Raises:
            UserError: it cannot be written; the file before it is still there.
        """
        content = {"digest": self.digest, "state": state.state_dict()}

        def write(file: IO[bytes]) -> None:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's name for a full disk
                raise OSError("torch could not write the whole file") from error

        write_atomically(self.path, write)

    def restore(self, state: State) -> None:
        """Bring `state` to where the file was written; without a file that can be read, leave it.

        A file that cannot be read costs only time, so the run starts anew and says so. One of
        another cell is refused: to go on would overwrite what may be days of work.

        Raises:
            UserError: the checkpoint was written by a cell with another digest.
        """
        if not self.path.exists():
            return
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            digest, saved = content["digest"], content["state"]
        except (
            OSError,
            EOFError,
            RuntimeError,
            KeyError,
            TypeError,
            pickle.UnpicklingError,
        ) as error:
            _LOG.warning(
                "%s: cannot be read (%s), the run starts anew", self.path, type(error).__name__
            )
            return
        if digest != self.digest:
            raise UserError(
                f"{self.path}: is the checkpoint of another cell (digest {digest[:12]}, here "
                f"{self.digest[:12]}); delete it or choose another --out"
            )
        state.load_state_dict(saved)

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)
