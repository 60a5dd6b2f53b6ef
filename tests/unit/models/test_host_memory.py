from __future__ import annotations

import os
import subprocess
import sys

from qpruner_core.models.host_memory import available_bytes, peak_resident_bytes


def test_the_peak_is_at_least_what_is_held_and_what_is_free_is_not_more_than_there_is() -> None:
    assert peak_resident_bytes() > 2**20
    assert 0 < available_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_peak_counts_what_was_held_and_let_go() -> None:
    code = (
        "from qpruner_core.models.host_memory import keep_small, peak_resident_bytes, release\n"
        "keep_small()\n"
        "before = peak_resident_bytes()\n"
        "held = bytearray(b'x') * 50_000_000\n"
        "del held\n"
        "release()\n"
        "print(peak_resident_bytes() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert 45_000_000 < int(done.stdout) < 120_000_000
