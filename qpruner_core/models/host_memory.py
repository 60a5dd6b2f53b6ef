"""Memory of this process and of this machine: what streaming keeps small and says afterwards."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 2**20
_LARGEST_BYTES = 2**25
"""Where the bound of glibc ends up in a process that freed large blocks; most it can be set to."""


@contextmanager
def keeping_small() -> Iterator[None]:
    """Inside, the C library gives large blocks back to the system as soon as they are freed.

    It otherwise raises its own bound with every large block that is freed, and later tensors then
    lie in heaps that never shrink. A bound that was set never moves by itself again: afterwards
    it is set to where it would have gone, so that later work of the process allocates as before.
    Nothing happens where the C library is not glibc.
    """
    _set(_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:
        _set(_MMAP_THRESHOLD, _LARGEST_BYTES)
        _set(_TRIM_THRESHOLD, 2 * _LARGEST_BYTES)  # as glibc itself ties the two


def _set(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(parameter, value)


def release() -> None:
    """Give back what was freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> bool:
    """Let `peak_resident_bytes` count from what is held now; whether the system allows that.

    Linux does, by writing 5 to ``/proc/self/clear_refs``.
    """
    if _field(Path("/proc/self/status"), "VmHWM:") is None:
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Return the most memory that this process held, since it started or since the last
    `reset_peak` that could do so; resident bytes, libraries included.
    """
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
