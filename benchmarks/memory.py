"""Peak memory of the phases of a run: what training needs, what evaluation needs.

On CUDA this is what torch allocated at most (`torch.cuda.max_memory_allocated`). On the CPU it is
the high-water mark of the resident set of the whole process, interpreter and libraries included.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"  # proc_pid_clear_refs(5)
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_LARGE = 2**20


class PeakMemory:
    """Bytes used at most in each named phase; `None` where the system cannot tell.

    Phases nest: the inner one's peak is not counted in the outer one. A phase that is entered
    several times keeps its largest peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, int | None] = {}
        self._phase: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as the phase `name`."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str | None) -> str | None:
        """Close the running phase, open `name`; returns the phase that was running."""
        # The mark is one for the whole process: the outer peak is read before the inner phase
        # resets it.
        closed = self._phase
        if closed is not None:
            peak, before = high_water_mark(self.device), self.peaks.get(closed, 0)
            self.peaks[closed] = None if peak is None or before is None else max(before, peak)
        if name is not None and not reset_high_water_mark(self.device):
            self.peaks[name] = None
        self._phase = name
        return closed


def give_back_freed_blocks() -> None:
    """Have glibc give large blocks back to the system when they are freed.

    By itself it comes to keep blocks of up to 32 MiB, between which freed memory lies idle: on the
    CPU almost half of what a training step of a ViT-L takes. Another allocator stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def high_water_mark(device: torch.device) -> int | None:
    """Bytes in use at most since the last reset; `None` where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * kibibytes[0] if kibibytes else None


def reset_high_water_mark(device: torch.device) -> bool:
    """Start counting again from what is in use now; False where the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text(_RESET_HIGH_WATER_MARK)
    except OSError:
        return False
    return True
