"""A record: what happened in one cell. Tables read records and nothing else."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from benchmarks.environment import Environment, Line
from benchmarks.errors import UserError
from benchmarks.protocol import Count, Index, NotNegative
from benchmarks.trials import Budget
from benchmarks.yaml_files import added_field, digest_of, problem

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Score(_Part):
    """One domain at one iteration.

    Attributes:
        role: held-out source ("validation"), test split of a source, unseen ("target"), or unseen
            and scored a second time ("extra").
        metrics: name -> percent (0..100) or percent per class in class order; null where a class
            does not occur.
        images: number of evaluated images.
    """

    role: Literal["validation", "source", "target", "extra"]
    metrics: dict[str, float | list[float | None] | None]
    images: int

    def values(self) -> Iterator[float]:
        """Every number among the metrics."""
        for value in self.metrics.values():
            yield from (v for v in (value if isinstance(value, list) else [value]) if v is not None)


class Evaluation(_Part):
    """All scored domains after `iteration` optimizer steps."""

    iteration: Index
    domains: dict[str, Score]

    def check(self, classes: Sequence[str]) -> None:
        """Refuse what no evaluation gives.

        Raises:
            ValueError: a number that is no percent, a list of another length than `classes`, where
                these are known, or a domain without an image.
        """
        for domain, score in self.domains.items():
            # A mean of hundreds may come out a rounding above 100.
            odd = [value for value in score.values() if not 0 <= value <= 100 + 1e-9]
            if odd:
                raise ValueError(f"iteration {self.iteration}, {domain}: {odd[0]} is no percent")
            lists = [value for value in score.metrics.values() if isinstance(value, list)]
            if classes and any(len(value) != len(classes) for value in lists):
                raise ValueError(f"{domain}: not one score for each of the classes")
            if score.images < 1:
                raise ValueError(f"iteration {self.iteration}, {domain}: no image")


class Parameters(_Part):
    """Numbers of parameters.

    Trainable and all of the adapted backbone, and the head's (all trained).
    """

    backbone_trainable: Index
    backbone_total: Index
    head: Index


class Cost(_Part):
    """Seconds, and peak bytes of memory while training and evaluating; null is not measured.

    Attributes:
        devices: on each of `nodes`, sharing every batch; the memory is that of the first.
        micro_batch: images of one forward pass on one device.
    """

    seconds_per_step: NotNegative | None = None
    train_seconds: NotNegative | None = None
    evaluate_seconds: NotNegative | None = None
    adapt_seconds: NotNegative | None = None
    peak_train_bytes: Index | None = None
    peak_evaluate_bytes: Index | None = None
    devices: Count = 1
    nodes: Count = 1
    micro_batch: Count | None = None


class LossPoint(_Part):
    """Training loss at one iteration; null where it was not finite."""

    iteration: Index
    loss: float | None


class _Kept(_Part):
    """What is kept as one JSON file; `again` says how it is made anew."""

    again: ClassVar[str] = "run its cell again"

    def write(self, path: Path) -> None:
        """Put the record at `path` as JSON, whole or not at all.

        Raises:
            UserError: the folder cannot be made or the disk is full; nothing is left behind.
        """
        text = self.model_dump_json(indent=1) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The record at `path`.

        Raises:
            UserError: unreadable, not JSON, or not of this schema.
        """
        try:
            content = path.read_bytes()
            return cls.model_validate_json(content)
        except OSError as error:
            raise UserError(
                f"{path}: record cannot be read: {error.strerror}; give a record's path (.json)"
            ) from None
        except ValidationError as error:
            if cls is Record and is_imported(content):
                raise UserError(
                    f"{path}: holds the scores of released weights, no run of this suite; `table`, "
                    "`show`, `pictures` and `verify` take it"
                ) from None
            raise UserError(
                f"{path}: not a record: {problem(error, cls)}; delete it and {cls.again}"
            ) from None


class Record(_Kept):
    """The outcome of one cell.

    Attributes:
        cell: the resolved cell.
        digest: its SHA-256.
        recipe: recipe mode.
        reason: one line, for every status but done.
        data: domain -> fingerprint, and that of weights without a stated hash.
        losses: a few points.
        classes: names in the order of metrics per class; older records have none.
        budget: the trials that chose the recipe, if any did.
    """

    schema_version: Literal[1] = 1
    cell: dict[str, Any]
    digest: Sha256
    protocol: Line
    protocol_version: int
    method: Line
    label: Line
    placement: Line
    recipe: Line
    seed: int
    status: Literal["done", "failed", "not_applicable"]
    reason: Line = ""
    evaluations: list[Evaluation] = Field(default_factory=list)
    parameters: Parameters | None = None
    cost: Cost = Cost()
    environment: Environment
    data: dict[str, str] = Field(default_factory=dict)
    losses: list[LossPoint] = Field(default_factory=list)
    budget: Budget | None = added_field(None)
    classes: list[Line] = added_field([])

    def check(self) -> None:
        """Refuse what was edited after the run, as far as the record itself can tell.

        Raises:
            ValueError: the digest is not that of the cell, a field differs from the cell's, or the
                status does not fit the scores.
        """
        if digest_of(self.cell) != self.digest:
            raise ValueError("its digest is not that of its cell")
        for part in ("protocol", "recipe", "method"):
            if not isinstance(self.cell.get(part), dict):
                raise ValueError(f"its cell has no {part}")
        protocol = self.cell["protocol"]
        for name, value, in_cell in (
            ("protocol", self.protocol, protocol.get("name")),
            ("protocol_version", self.protocol_version, protocol.get("version")),
            ("placement", self.placement, self.cell.get("placement")),
            ("recipe", self.recipe, self.cell.get("recipe_mode")),
            ("seed", self.seed, self.cell.get("seed")),
            ("data", self.data, self.cell.get("data")),
        ):
            if value != in_cell:
                raise ValueError(f"{name} is {value!r:.60}, its cell says {in_cell!r:.60}")
        named = "hf" if self.method.startswith("hf:") else self.method
        if named != self.cell["method"].get("name"):
            raise ValueError(f"method is {named!r:.60}, not that of its cell")
        row = self.label.partition("+")[0]
        if not (row == self.method or row.endswith(f".{self.method}") or named == "hf"):
            raise ValueError(f"label {self.label!r:.60} is not of its method {self.method!r:.60}")
        self._check_outcome()

    def _check_outcome(self) -> None:
        if (self.status == "done") == bool(self.reason):
            raise ValueError(f"status {self.status} with reason {self.reason!r:.60}")
        last = self.cell["recipe"].get("iterations", 0)
        for what in (self.evaluations, self.losses):
            iterations = [entry.iteration for entry in what]
            if iterations != sorted({*iterations}) or max(iterations, default=0) > last:
                raise ValueError(f"iterations {iterations[-3:]} that do not rise up to {last}")
        ended = any(evaluation.iteration == last for evaluation in self.evaluations)
        if (self.status == "done") != ended:
            raise ValueError(f"status {self.status}, {'' if ended else 'not '}scored at the end")
        for evaluation in self.evaluations:
            evaluation.check(self.classes)

    @property
    def path(self) -> Path:
        """Where the record belongs, relative to the folder of records (see `Cell.path`)."""
        mode = "" if self.recipe == "controlled" else f"+{self.recipe}"
        folder = Path(self.protocol) / f"{self.placement}{mode}"
        return folder / self.label / f"seed{self.seed}.json"

    @property
    def title(self) -> str:
        """Row and seed, for pictures."""
        return f"{self.label} seed {self.seed}"

    @property
    def circumstances(self) -> str:
        """What titles of pictures say beside the protocol."""
        return self.placement


class Imported(_Kept):
    """The scores of weights that others trained and released, under a protocol of the suite.

    No run of the suite made them: there is no seed, recipe or cost of training to state.

    Attributes:
        cell: all that decides the scores: protocol, method with its fields, file, data.
        digest: its SHA-256.
        label: the file's name without its ending.
        file: its name, with `sha256` of its content.
        state_dict: key under which the file holds the weights that were read; "" for none.
        rank: of the factors or tokens in the file.
        start_block: first adapted block.
        base_checked: tensors of the file that did not learn, each equal to the base backbone's.
        selection: how the file was chosen among the weights of its training.
        parameters: counted as in a cell of the same method.
        data: domain -> fingerprint.
    """

    again: ClassVar[str] = "import the file again"

    schema_version: Literal[1] = 1
    kind: Literal["imported"] = "imported"
    cell: dict[str, Any]
    digest: Sha256
    protocol: Line
    protocol_version: int
    method: Line
    label: Line
    file: Line
    sha256: Sha256
    state_dict: Line
    rank: Count
    start_block: Index
    base_checked: Index
    selection: Line
    parameters: Parameters
    domains: dict[str, Score]
    evaluate_seconds: NotNegative
    environment: Environment
    data: dict[str, str]
    classes: list[Line]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The scores as those of a record, after no step of the suite's."""
        return [Evaluation(iteration=0, domains=self.domains)]

    @property
    def path(self) -> Path:
        """Where it belongs, relative to the folder of records."""
        return Path(self.protocol) / "imported" / self.label / f"{self.sha256[:16]}.json"

    @property
    def title(self) -> str:
        """As `Record.title`; nothing was drawn from a seed."""
        return self.label

    @property
    def circumstances(self) -> str:
        """As `Record.circumstances`."""
        return f"released weights, {self.selection}"

    def check(self) -> None:
        """Refuse what was edited since, as far as this can tell by itself.

        Raises:
            ValueError: the digest is not that of the cell, a field differs from the cell's, or a
                score is none.
        """
        if digest_of(self.cell) != self.digest:
            raise ValueError("its digest is not that of its cell")
        protocol, method, weights = (self.cell.get(k) for k in ("protocol", "method", "weights"))
        if not (isinstance(protocol, dict) and isinstance(method, dict)):
            raise ValueError("its cell has no protocol or method")
        stated = {"file": self.file, "sha256": self.sha256, "state_dict": self.state_dict}
        stated |= {"selection": self.selection, "base_checked": self.base_checked}
        for name, value, in_cell in (
            ("protocol", self.protocol, protocol.get("name")),
            ("protocol_version", self.protocol_version, protocol.get("version")),
            ("method", self.method, method.get("name")),
            ("rank", self.rank, method.get("fields", {}).get("rank")),
            ("start_block", self.start_block, method.get("fields", {}).get("start_block")),
            (", ".join(stated), stated, weights),
            ("label", self.label, Path(self.file).stem),
            ("data", self.data, self.cell.get("data")),
        ):
            if value != in_cell:
                raise ValueError(f"{name} is {value!r:.60}, its cell says {in_cell!r:.60}")
        for evaluation in self.evaluations:
            evaluation.check(self.classes)


def load_kept(path: Path) -> Record | Imported:
    """What lies at `path`: the record of a cell, or of released weights.

    Raises:
        UserError: unreadable, or neither.
    """
    try:
        imported = is_imported(path.read_bytes())
    except OSError:
        imported = False  # `load` says why
    return Imported.load(path) if imported else Record.load(path)


def is_imported(content: bytes) -> bool:
    """Whether JSON says that it is what `import` made."""
    try:
        held = from_json(content)
    except ValueError:
        return False
    return isinstance(held, dict) and held.get("kind") == "imported"


@dataclass(frozen=True)
class Result:
    """What the evaluation of a model on one domain gives, in every task.

    Attributes:
        metrics: name -> percent, or percent per class; None where undefined.
        arrays: name -> array with one entry per image, kept in one .npz beside the record.
        images: number of scored images.
        files: ending of a file's name -> function that writes that file, kept beside the record
            too.
    """

    metrics: dict[str, float | list[float | None] | None]
    arrays: dict[str, np.ndarray]
    images: int
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Make the file `path` with what `write` puts into the given binary file, whole or not at all.

    Raises:
        UserError: the system refuses (no space left, no permission); no temporary file stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            # Beside the target: only within one file system is a rename atomic.
            dir=path.parent,
            prefix=f".{path.name}.",
            delete=False,
        ) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            # The content before the name: after a power cut the new name must not stand for an
            # empty file.
            os.fsync(file.fileno())
        # Temporary files are for their owner alone; records are read by others in a shared folder.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        why = (error.strerror or str(error)).lower().removesuffix(" on device")
        raise UserError(f"{why} while writing {path}; make room or choose another folder") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
