"""Workers of one search share a run's lock; whoever wants it alone is let in between trials."""

import multiprocessing

import pytest

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.store.records import RunStore
from qpruner_core.store.workers import is_gone, kept_gone, registered

SPEC = RunSpec(model=ModelSpec(source="demo"))
N_EVENTS = 200


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "home")


def is_refused(store, run_id, *, shared=False):
    try:
        with store.writing(run_id, shared=shared):
            return False
    except NotReadyError:
        return True


def test_those_who_share_keep_a_writer_out_and_no_other_who_shares(store):
    run_id = store.create(SPEC).run_id
    with store.writing(run_id, shared=True):
        assert not is_refused(store, run_id, shared=True)
        assert is_refused(store, run_id)
    with store.writing(run_id):
        assert is_refused(store, run_id, shared=True)
    assert not is_refused(store, run_id)


def test_while_a_writer_is_next_nobody_shares_anew(store):
    run_id = store.create(SPEC).run_id
    with store.writing(run_id, shared=True), store.next_to_write(run_id) as is_next:
        assert is_next
        assert is_refused(store, run_id, shared=True)
        with store.next_to_write(run_id) as is_next_too:
            assert not is_next_too
    assert not is_refused(store, run_id, shared=True)
    with store.next_to_write(run_id):
        assert not is_refused(store, run_id)


def append_many(home, run_id, name):
    store = RunStore(home)
    for number in range(N_EVENTS):
        words = name * 2000
        store.append_event(run_id, Progress(step="search", done=number, total=9, message=words))


def test_events_of_several_processes_stay_whole(store):
    run_id = store.create(SPEC).run_id
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=append_many, args=(store.home, run_id, name)) for name in "abc"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [event.progress for event in store.events(run_id)]
    assert len(found) == 3 * N_EVENTS
    assert {len(set(progress.message)) for progress in found} == {1}
    for name in "abc":
        mine = [progress.done for progress in found if progress.message[0] == name]
        assert mine == list(range(N_EVENTS))


def test_a_worker_that_ended_cannot_come_back_while_its_jobs_are_taken_over(tmp_path, monkeypatch):
    with registered(tmp_path, "cpu", "cpu") as info, kept_gone(tmp_path, info.name) as has_ended:
        assert not has_ended
    monkeypatch.setattr("qpruner_core.store.workers._TRIES", 2)
    with kept_gone(tmp_path, info.name) as has_ended:
        assert has_ended
        assert is_gone(tmp_path, info.name)
        with (
            pytest.raises(BadInputError, match="already running"),
            registered(tmp_path, "cpu", "cpu"),
        ):
            pass
    with registered(tmp_path, "cpu", "cpu"), kept_gone(tmp_path, "elsewhere/cpu") as has_ended:
        assert not has_ended
