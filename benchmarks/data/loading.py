"""What the data of every task share: the order of training samples, loader processes, decoding."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from benchmarks.errors import UserError
from benchmarks.seeding import stream

# The last two: from damaged EXIF.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
    *(TypeError, struct.error),
)


class Order:
    """Which of `count` items sample n of a run shows: epoch e is a permutation of all of them."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        # Two: a batch may begin in one epoch and end in the next.
        self._permuted = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return stream(self.seed, "order", epoch).permutation(self.count)

    def __call__(self, n: int) -> int:
        """The item of sample n, a pure function of (seed, n)."""
        epoch, place = divmod(n, self.count)
        return int(self._permuted(epoch)[place])


def loaded(
    samples: Dataset,
    order: Sequence[int],
    workers: int,
    batch: int | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Items in the given order, or batches of them; UserErrors that came in their place are raised.

    A data set returns the UserError of an unreadable file: a loader process would wrap a raised one
    into a traceback. The loader gets a generator of its own: it would draw from torch's global one
    at its start.

    Args:
        samples: the data set.
        order: numbers of the items.
        workers: loader processes; 0 loads in this one.
        batch: items per batch; without, they come one by one.
        collate: makes a batch of a list of items.
    """
    loader = DataLoader(
        samples,
        sampler=order,
        batch_size=batch,
        num_workers=workers,
        collate_fn=_Collate(collate) if batch else _whole,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available() and batch is not None,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


class _Collate:
    """The batch of a list of samples, or the first UserError among them."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        error = next((sample for sample in samples if isinstance(sample, UserError)), None)
        return error or self.collate(samples)


def _whole(sample: Any) -> Any:
    return sample


KEPT_BYTES = 128 * 2**20  # of decoded files in one process, those used last
LARGEST_KEPT = 2**20  # photographs would only push each other out


class Kept:
    """Decoded files, arrays of any shape, that are read again, as long as nothing has changed them.

    Rendered worlds fit whole, and are read in every epoch of every cell that a process trains.
    """

    def __init__(self, limit: int = KEPT_BYTES, largest: int = LARGEST_KEPT) -> None:
        self.limit, self.largest, self.bytes = limit, largest, 0
        self._entries: OrderedDict[Hashable, tuple[np.ndarray, ...]] = OrderedDict()

    def __call__(
        self,
        files: tuple[Path, ...],
        settings: Hashable,
        read: Callable[[], tuple[np.ndarray, ...]],
    ) -> tuple[np.ndarray, ...]:
        """What `read` makes of the files, from memory if it is there; read-only where it is kept.

        Args:
            files: all that the result is read from.
            settings: all else that decides the result.
            read: what it raises is raised, and nothing is kept.
        """
        try:
            stats = [file.stat() for file in files]
        except OSError:
            return read()  # says what is missing
        # The inode and its time of change too: a copy can keep size and time of the file it
        # replaces.
        state = tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)
        key = (files, state, settings)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        arrays = read()
        size = sum(array.nbytes for array in arrays)
        if size <= self.largest:
            for array in arrays:
                array.setflags(write=False)
            self._entries[key] = arrays
            self.bytes += size
        while self.bytes > self.limit:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= sum(array.nbytes for array in oldest)
        return arrays


_ENDS = {".png": b"IEND", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
_TAIL = 65536  # bytes at the end of a file in which its end mark is looked for


def _why(error: Exception) -> str:
    """In words that name no file a second time and no object of Python's."""
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def header_size(file: Path) -> tuple[int, int]:
    """(height, width) as the header of an image file says; one without its end is decoded whole.

    Raises:
        UserError: missing, no image, or cut off.
    """
    try:
        with file.open("rb") as opened:
            width, height = Image.open(opened).size
            opened.seek(max(0, opened.seek(0, 2) - _TAIL))
            ended = _ENDS.get(file.suffix.lower(), b"") in opened.read()
    except _UNREADABLE as error:
        raise UserError(
            f"{file}: cannot be decoded ({_why(error)}); copy or unpack it again"
        ) from error
    if not ended:
        decoded(file)
    return height, width


def decoded(file: Path, convert: str | None = None) -> Image.Image:
    """An image file, completely read.

    Args:
        file: any format that Pillow reads.
        convert: the 8-bit mode of a picture ("RGB"), turned upright as its EXIF says and, of 16-bit
            grey, the upper 8 bits: as OpenCV and with it the published code reads it. Without, the
            numbers are those of the file.

    Raises:
        UserError: missing, cut off, no image, or numbers that are no picture.
    """
    try:
        with Image.open(file) as opened:
            opened.load()
            if not convert:
                return opened.copy()
            ImageOps.exif_transpose(opened, in_place=True)
            if opened.mode.startswith("I;16"):
                # Pillow would cut off at 255, which makes nearly everything white.
                opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
            elif opened.mode in ("I", "F"):
                raise ValueError(f"mode {opened.mode}: 32-bit numbers are no picture")
            return opened.convert(convert)
    except _UNREADABLE as error:
        raise UserError(
            f"{file}: cannot be decoded ({_why(error)}); copy or unpack it again"
        ) from error
