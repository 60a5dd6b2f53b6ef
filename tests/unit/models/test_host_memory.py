from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qpruner_core.models.host_memory import available_bytes, peak_resident_bytes, reset_peak


def test_the_peak_is_at_least_what_is_held_and_what_is_free_is_not_more_than_there_is() -> None:
    assert peak_resident_bytes() > 2**20
    assert 0 < available_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_peak_counts_what_was_held_and_let_go() -> None:
    code = (
        "from qpruner_core.models.host_memory import keeping_small, peak_resident_bytes\n"
        "from qpruner_core.models.host_memory import release, reset_peak\n"
        "with keeping_small():\n"
        "    before = peak_resident_bytes()\n"
        "    held = bytearray(b'x') * 50_000_000\n"
        "    del held\n"
        "    release()\n"
        "print(peak_resident_bytes() - before)\n"
        "print(peak_resident_bytes() - before if reset_peak() else -1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    held, afterwards = map(int, done.stdout.split())
    assert 45_000_000 < held < 120_000_000
    # What was held before the count begins anew is no part of a later peak.
    assert afterwards < 25_000_000


def test_where_the_count_cannot_begin_anew_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    assert not reset_peak()
