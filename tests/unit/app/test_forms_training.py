"""Files that a person sends or names: checked before anything is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import forms_training, services
from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.inspection.instructions import InstructionCard
from qpruner_core.store import uploads
from qpruner_core.store.records import RunStore

ONE = b'{"instruction": "Name a colour.", "output": "Blue."}\n'


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    store = RunStore(tmp_path)
    monkeypatch.setattr(services, "store", lambda: store)
    return store.create(RunSpec(model=ModelSpec(source="demo"))).run_id


def kept(run_id: str) -> tuple[Path, ...]:
    return uploads.listed(services.store().folder(run_id))


def test_a_good_file_is_kept(run_id):
    files = tuple(forms_training.keep_file(run_id, name, ONE) for name in ("a.jsonl", "b.txt"))
    assert kept(run_id) == files


@pytest.mark.parametrize("name", ["model.pkl", "a.jsonl.exe", "jsonl"])
def test_another_kind_of_file_is_refused(run_id, name):
    with pytest.raises(BadInputError, match="is no training file"):
        forms_training.keep_file(run_id, name, ONE)
    assert kept(run_id) == ()


def test_a_file_that_is_too_large_is_refused_with_both_sizes(run_id, monkeypatch):
    monkeypatch.setattr(forms_training, "MOST_MEGABYTES", 1)
    with pytest.raises(BadInputError, match=r"2\.00 MiB, more than the 1\.00 MiB"):
        forms_training.keep_file(run_id, "a.txt", b"x" * (2 << 20))
    assert kept(run_id) == ()


def test_an_empty_file_is_refused_by_its_name(run_id):
    with pytest.raises(DataTooShortError, match=r"'a\.txt' is 0 bytes"):
        forms_training.keep_file(run_id, "a.txt", b"")
    assert kept(run_id) == ()


def test_a_file_is_read_again_once_it_has_changed(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(ONE)
    first = forms_training.card_of(str(path))
    path.write_bytes(ONE * 3)
    second = forms_training.card_of(str(path))
    assert isinstance(first, InstructionCard)
    assert isinstance(second, InstructionCard)
    assert (first.n_examples, second.n_examples) == (1, 3)


def test_a_file_that_is_gone_is_said_so(tmp_path):
    with pytest.raises(BadInputError, match="not a file that exists"):
        forms_training.card_of(str(tmp_path / "gone.txt"))
