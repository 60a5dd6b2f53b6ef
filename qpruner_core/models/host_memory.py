"""Memory of this process and of this machine: what streaming keeps small and says afterwards."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_MMAP_THRESHOLD = -3
_LARGE_BYTES = 2**20


def keep_small() -> None:
    """Let the C library give large blocks back to the system as soon as they are freed.

    It otherwise raises its own bound with every large block that is freed, and later tensors then
    lie in heaps that never shrink. Nothing happens where the C library is not glibc.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def release() -> None:
    """Give back what was freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_resident_bytes() -> int:
    """Return the most memory that this process ever held; bytes."""
    status = _field(Path("/proc/self/status"), "VmHWM:")
    if status is not None:
        return status
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int:
    """Return the memory that can still be taken on this machine; bytes.

    Limits of a container (cgroup version 2) count where they are lower.
    """
    free = _field(Path("/proc/meminfo"), "MemAvailable:")
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = (_number(Path(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _field(path: Path, name: str) -> int | None:
    """Return a line such as ``VmHWM: 123 kB`` in bytes; None where there is none."""
    with suppress(OSError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None
