from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qpruner_core.models.tensor_file import write_tensors


def test_what_is_written_reads_back_and_is_as_open_as_its_folder(tmp_path: Path) -> None:
    tensors = {"x": torch.arange(6).reshape(2, 3)}
    write_tensors(tensors, tmp_path / "t.safetensors")
    assert torch.equal(load_file(tmp_path / "t.safetensors")["x"], tensors["x"])
    mode = (tmp_path / "t.safetensors").stat().st_mode & 0o777
    assert mode == tmp_path.stat().st_mode & 0o666


def test_an_error_of_the_system_keeps_its_number(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        write_tensors({"x": torch.ones(1)}, tmp_path / "missing" / "t.safetensors")


@pytest.mark.parametrize(
    ("words", "kind"),
    [("I/O error: No space left on device (os error 28)", OSError), ("odd", SafetensorError)],
)
def test_only_errors_of_the_system_are_translated(
    words: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(words)

    monkeypatch.setattr("qpruner_core.models.tensor_file.save_file", fail)
    with pytest.raises(kind) as raised:
        write_tensors({"x": torch.ones(1)}, tmp_path / "t.safetensors")
    assert getattr(raised.value, "errno", None) == (errno.ENOSPC if kind is OSError else None)
