"""The most memory that a piece of work held, above what was there before it; on Linux alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qpruner_core.models.host_memory import peak_resident_bytes, release, reset_peak


@dataclass(slots=True)
class Peak:
    """Filled when the work is done."""

    bytes: int = 0
    """Highest resident memory during the work minus that before it."""


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure what runs inside. The kernel's high-water mark is set back first."""
    gc.collect()
    release()  # freed memory that the allocator keeps would be used again unseen
    if not reset_peak():
        raise RuntimeError("the system does not set peaks back; this benchmark needs Linux")
    before = peak_resident_bytes()
    peak = Peak()
    yield peak
    peak.bytes = max(0, peak_resident_bytes() - before)
