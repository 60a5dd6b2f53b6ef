from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from qpruner_core.errors import OutputExistsError, StorageFullError
from qpruner_core.export.folder import new_folder
from qpruner_core.export.hf_mixed import EXPORTER


def test_the_folder_appears_only_when_it_is_filled(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out", 1) as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def fill_while_another_takes_the_name() -> None:
        with new_folder(folder, 1) as partial:
            (partial / "file").write_text("x")
            folder.mkdir()

    with pytest.raises(OutputExistsError, match="there already"):
        fill_while_another_takes_the_name()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list(folder.iterdir()) == []


def test_a_disk_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=2**30, used=0, free=2**20)
    monkeypatch.setattr("qpruner_core.export.folder.shutil.disk_usage", lambda _: usage)
    with (
        pytest.raises(StorageFullError, match=r"needs about 3\.00 MiB.* has 1\.00 MiB"),
        new_folder(tmp_path / "out", 3 * 2**20),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_while_writing_leaves_nothing(
    sample: Callable[..., Any],
    failure: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, home = sample(), tmp_path / "home"

    def full(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("qpruner_core.models.tensor_file.save_file", full)
    with pytest.raises(StorageFullError, match="or choose a folder on another disk"):
        EXPORTER.export(given.packed, None, given.facts, home / "out")
    assert list(home.iterdir()) == []


def test_other_failures_of_the_system_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), new_folder(tmp_path / "out", 1):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert list(tmp_path.iterdir()) == []
