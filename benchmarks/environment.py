"""Where a record was made: commit of the suite, versions, processors."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from benchmarks import INSTRUCTION_SET, __version__

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("torch", "timm", "transformers", "lightning-fabric", "numpy", "scipy", "pydantic"),
    *("opencv-python-headless", "opencv-python", "safetensors", "torchvision", "pycocotools"),
    "detectron2",
)


# A control character in a label could rewrite the terminal that a table is printed on.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]


class Environment(BaseModel):
    """Where a record was made: commit of the suite, versions, processors; no host names, no paths.

    Attributes:
        suite: version of the suite.
        date: day of the record, UTC, as YYYY-MM-DD.
        commit: null outside a git checkout.
        dirty: something differs from the commit, or changed while the process ran; what runs write
            under results/ is not counted. Null outside a git checkout.
        threads: torch threads of the process.
        instruction_set: what torch says that its own kernels use, and the variables that limit
            torch, oneDNN and MKL, as far as they are set (see `benchmarks.INSTRUCTION_SET`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: Line | None = None
    date: Line | None = None
    commit: Line | None = None
    dirty: bool | None = None
    python: Line
    packages: dict[Line, Line] = Field(default_factory=dict)
    system: Line = ""
    cpu: Line = ""
    gpu: Line | None = None
    threads: int | None = None
    instruction_set: dict[Line, Line] = Field(default_factory=dict)


def environment() -> Environment:
    """The environment of this process, as records keep it."""
    torch = sys.modules.get("torch")  # asked only where the run has imported it
    cuda = torch is not None and torch.cuda.is_available()
    commit, changes = checkout_at_start(REPOSITORY)
    if (commit, changes) != _checkout(REPOSITORY):
        changes = "changed while the process ran"
    return Environment(
        suite=__version__,
        date=datetime.now(UTC).date().isoformat(),
        commit=commit,
        dirty=None if changes is None or commit is None else bool(changes),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu(),
        gpu=torch.cuda.get_device_name() if cuda else None,
        threads=torch.get_num_threads() if torch is not None else None,
        instruction_set=instruction_set(),
    )


def instruction_set() -> dict[str, str]:
    """What chooses the kernels of this process, by name; "torch" only where it is imported."""
    torch = sys.modules.get("torch")
    used = {"torch": torch.backends.cpu.get_cpu_capability()} if torch is not None else {}
    variables = {name: os.environ[name] for name in INSTRUCTION_SET if name in os.environ}
    return used | {name: " ".join(value.split()) for name, value in variables.items()}


def _checkout(folder: Path) -> tuple[str | None, str | None]:
    """The commit, and what differs from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    return commit, _git(folder, "status", "--porcelain", "--", ".", ":!results")


# What a process runs is what it has imported, not what is on disk when its record is written: a run
# asks at its start, and the first answer stays.
checkout_at_start = cache(_checkout)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def knows_commit(folder: Path, commit: str) -> bool:
    """Whether the git checkout at `folder` holds a commit."""
    return _git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def _version(package: str) -> str | None:
    """Its version, and the commit where it was installed from a repository."""
    try:
        installed = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    commit = _origin_commit(json.loads(installed.read_text("direct_url.json") or "{}"))
    return f"{installed.version} ({commit})" if commit else installed.version


def _origin_commit(origin: dict[str, Any]) -> str | None:
    """What pip noted of a git address, or the present commit of a checkout installed with -e."""
    if origin.get("dir_info", {}).get("editable"):
        return _git(Path(unquote(urlsplit(origin["url"]).path)), "rev-parse", "HEAD")
    return origin.get("vcs_info", {}).get("commit_id")


def _cpu() -> str:
    """Name of the processor model."""
    # On Linux `platform.processor` gives the architecture, or nothing.
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
