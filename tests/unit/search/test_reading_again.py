"""A reader kept between reruns: the same answer while nothing changes, and little read anew."""

from __future__ import annotations

from threading import Thread

import pytest

from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search import reading
from qpruner_core.search.reading import TrialReader
from qpruner_core.search.study import Study

N_TRIALS = 6


@pytest.fixture
def storage(tmp_path):
    return str(tmp_path / "study.db")


@pytest.fixture
def study(storage, make_space):
    spec = SearchSpec(strategy="random", n_trials=N_TRIALS)
    with Study.open(storage, "s", make_space(), spec, 10**9) as opened:
        yield opened


@pytest.fixture
def finish(study, make_space, measure):
    """Measure the next trial of somebody."""
    space = make_space()

    def done(owner: str) -> int:
        proposal = study.claim(owner, N_TRIALS)
        study.record(proposal.number, measure(space, proposal.plan))
        return proposal.number

    return done


def test_while_nothing_changes_the_answer_is_the_same_tuple(storage, study, finish):
    reader = TrialReader(storage, "s")
    finish("first")
    study.claim("second", N_TRIALS)
    answer = reader.read()
    assert reader.read() is answer
    finish("first")
    assert reader.read() is not answer
    assert reader.read() == study.trials()


def test_a_trial_left_behind_does_not_have_all_after_it_read_again(
    storage, study, finish, monkeypatch
):
    study.claim("gone", N_TRIALS)
    numbers = [finish("here") for _ in range(3)]
    reader = TrialReader(storage, "s")
    reader.read()
    asked: list[list[int]] = []
    known = reading._neighbours

    def watched(wanted):
        asked.append(sorted(wanted))
        return known(wanted)

    monkeypatch.setattr(reading, "_neighbours", watched)
    last = finish("here")
    assert reader.read() == study.trials()
    assert asked == [[0, last]]
    assert set(numbers).isdisjoint(asked[0])
    assert finish("gone") == 0
    assert [trial.state for trial in reader.read()] == ["complete"] * 5


def test_threads_that_share_a_reader_see_every_trial_once(storage, finish):
    for _ in range(N_TRIALS):
        finish("one")
    reader, seen = TrialReader(storage, "s"), []
    threads = [Thread(target=lambda: seen.append(reader.read())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[trial.number for trial in answer] for answer in seen] == [list(range(N_TRIALS))] * 8
