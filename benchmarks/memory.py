"""The most memory that a piece of work held, on Linux, above what was there before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Peak:
    """Filled when the work is done."""

    bytes: int = 0
    """Highest resident memory during the work minus that before it."""


def resident_bytes(field: str = "VmRSS") -> int:
    """Return a memory field of this process: ``VmRSS`` now, ``VmHWM`` at its highest."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure what runs inside. The kernel's high-water mark is set back first."""
    gc.collect()
    # Freed memory that the allocator keeps would be used again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5", encoding="ascii")  # proc(5): resets the peak resident set size
    before = resident_bytes()
    peak = Peak()
    yield peak
    peak.bytes = max(0, resident_bytes("VmHWM") - before)
