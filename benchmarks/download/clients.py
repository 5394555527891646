"""The well-kept clients of other services, each into a folder that keeps what it began.

None of them is handed a password: csDownload asks for it itself, the others need none.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2

from benchmarks.data.download_source import Source
from benchmarks.download.transfer import Unreachable
from benchmarks.errors import UserError

NEEDED = {  # kind -> what has to be there, how to get it
    "hub": ("huggingface_hub", "pip install huggingface_hub"),
    "drive": ("gdown", "pip install gdown"),
    "cityscapes": ("csDownload", "pip install cityscapesscripts"),
}


def check_installed(source: Source) -> None:
    """See that the client of a source is there, before anything is fetched.

    Raises:
        UserError: it is missing.
    """
    if source.kind not in NEEDED:
        return
    name, fix = NEEDED[source.kind]
    installed = _csdownload() if source.kind == "cityscapes" else importlib.util.find_spec(name)
    if not installed:
        raise UserError(f"{source.url}: needs {name}, which is not installed: {fix}")


def hub_bytes(source: Source) -> int:
    """Size of the files of a data set on the hub that fit the card's patterns.

    Raises:
        UserError: the hub refuses or is not reached.
    """
    from huggingface_hub import dataset_info
    from huggingface_hub.utils import filter_repo_objects

    try:
        files = dataset_info(source.repository, files_metadata=True).siblings or []
    except (httpx2.HTTPError, OSError) as error:
        raise _failed(source, error) from None
    wanted = filter_repo_objects(
        files, allow_patterns=_patterns(source), key=lambda file: file.rfilename
    )
    return sum(file.size or 0 for file in wanted)


def from_hub(source: Source, folder: Path) -> None:
    """Fetch the files of a data set on the Hugging Face hub that fit the card's patterns.

    Raises:
        UserError: the hub refuses or is not reached, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot_download(
            source.repository,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=_patterns(source),
        )
    except (httpx2.HTTPError, OSError) as error:
        raise _failed(source, error) from None


def from_drive(source: Source, folder: Path) -> None:
    """Fetch all files of a folder on Google Drive.

    Raises:
        UserError: Google refuses (a quota, often) or is not reached, or the disk is full.
    """
    import gdown

    quiet = not sys.stderr.isatty()
    try:
        files = gdown.download_folder(url=source.url, output=str(folder), quiet=quiet, resume=True)
    except Exception as error:  # noqa: BLE001 - gdown's errors differ between its versions
        raise _failed(source, error) from None
    if not files:
        raise UserError(f"{source.url}: gdown brought no file; open the page in a browser")


def from_cityscapes(names: list[str], folder: Path) -> None:
    """Fetch packages with csDownload, which asks for the user's own account on the terminal.

    Raises:
        UserError: it fails; its words stand above.
    """
    done = subprocess.run([_csdownload(), "-r", "-d", str(folder), *names], check=False)
    if done.returncode:
        raise UserError(
            f"csDownload ends with code {done.returncode}, its words stand above; "
            f"run the same command again to go on, after removing {folder} if a file is damaged"
        )


def _patterns(source: Source) -> list[str]:
    return [archive.name for archive in source.archives()]


def _csdownload() -> str:
    """Its path: on PATH or beside this Python; "" if it is not installed."""
    beside = Path(sys.executable).parent
    return shutil.which("csDownload") or shutil.which("csDownload", path=beside) or ""


def _failed(source: Source, error: Exception) -> UserError:
    # A library's words may end with the address that it was sent to, a signature in it.
    words = " ".join(str(error).split()).partition(" for url")[0]
    kind = Unreachable if isinstance(error, httpx2.TransportError) else UserError
    return kind(
        f"{source.url}: {type(error).__name__}: {words:.200}; run the same command again to go on"
    )
