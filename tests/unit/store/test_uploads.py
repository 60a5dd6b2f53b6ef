"""A file that a person gave: kept under a plain name once it is good, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.store import uploads
from qpruner_core.store.records import RunStore

SPEC = RunSpec(model=ModelSpec(source="demo"))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


def good(path: Path) -> None:
    assert path.read_bytes() == b"one\n"


def bad(path: Path) -> None:
    raise DataTooShortError(f"The file {path}:1 holds nothing. Give another one.")


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("alpaca.json", "alpaca.json"),
        ("C:\\My files\\my data (1).jsonl", "my-data-1-.jsonl"),
        ("../../etc/passwd.txt", "passwd.txt"),
        ("..\\.hidden.txt", "hidden.txt"),
        ("übung.txt", "bung.txt"),
        ("a" * 300 + ".txt", "a" * 120 + ".txt"),
    ],
)
def test_only_the_plain_part_of_a_name_is_used(stated, name):
    assert uploads.plain_name(stated) == name


@pytest.mark.parametrize("stated", ["", "/", "..", "日本", "\x00"])
def test_a_name_of_which_nothing_plain_is_left_is_refused(stated):
    with pytest.raises(BadInputError, match="plain file name"):
        uploads.plain_name(stated)


def test_a_good_file_lies_in_the_folder_of_its_run(store):
    run = store.create(SPEC).run_id
    path = uploads.keep(store.folder(run), "../one.txt", b"one\n", good)
    assert path.read_bytes() == b"one\n"
    assert path.is_relative_to(store.folder(run) / "uploads")
    assert uploads.listed(store.folder(run)) == (path,)


def test_the_same_file_given_twice_is_kept_once_and_another_of_its_name_beside_it(store):
    run = store.create(SPEC).run_id
    first = uploads.keep(store.folder(run), "one.txt", b"one\n", good)
    assert uploads.keep(store.folder(run), "one.txt", b"one\n", good) == first
    other = uploads.keep(store.folder(run), "one.txt", b"two\n", lambda path: None)
    assert set(uploads.listed(store.folder(run))) == {first, other}


def test_a_bad_file_leaves_nothing_behind_and_is_called_by_its_name(store):
    run = store.create(SPEC).run_id
    with pytest.raises(DataTooShortError, match=r"^The file one\.txt:1 holds nothing"):
        uploads.keep(store.folder(run), "one.txt", b"one\n", bad)
    assert uploads.listed(store.folder(run)) == ()
    assert [*(store.folder(run) / "uploads").iterdir()] == []


def test_a_copy_has_the_file_for_itself(store):
    record = store.create(SPEC)
    path = uploads.keep(store.folder(record.run_id), "one.txt", b"one\n", good)
    spec = replace(SPEC, recovery=RecoverySpec(training=str(path)))
    store.write(replace(record, spec=spec))
    copy = store.fork(record.run_id, "recover")
    source, target = store.folder(record.run_id), store.folder(copy.run_id)
    assert uploads.moved(spec, source, target) == copy.spec
    store.delete(record.run_id)
    own = Path(copy.spec.recovery.training)
    assert own.read_bytes() == b"one\n"
    assert uploads.listed(store.folder(copy.run_id)) == (own,)


def test_a_file_elsewhere_stays_where_it_is(tmp_path):
    spec = replace(SPEC, recovery=RecoverySpec(training=str(tmp_path / "mine.txt")))
    assert uploads.moved(spec, tmp_path / "run", tmp_path / "copy") == spec


def test_a_run_that_was_given_nothing_has_no_files(store):
    assert uploads.listed(store.folder(store.create(SPEC).run_id)) == ()


def test_a_run_that_is_gone_is_not_made_again_by_a_file(store):
    run = store.create(SPEC).run_id
    store.delete(run)
    with pytest.raises(BadInputError, match="no run"):
        uploads.keep(store.folder(run), "one.txt", b"one\n", good)
    assert not store.folder(run).exists()
