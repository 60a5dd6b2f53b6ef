"""What the browser side sees of a study."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import optuna
import pytest

from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search import rows
from qpruner_core.search.reading import TrialReader, storage_url
from qpruner_core.search.study import Study


@pytest.fixture
def storage(tmp_path):
    return str(tmp_path / "study.db")


@pytest.fixture
def open_study(storage, make_space):
    spec = SearchSpec(strategy="random", n_trials=4)
    return lambda: Study.open(storage, "s", make_space(), spec, 10**9)


def test_a_missing_database_is_an_empty_study_and_stays_missing(tmp_path):
    assert TrialReader(str(tmp_path / "none.db"), "s").read() == ()
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_studies_or_without_this_one_is_empty(open_study, storage, tmp_path):
    with closing(sqlite3.connect(tmp_path / "bare.db")) as bare:
        bare.execute("CREATE TABLE something (x)")
    assert TrialReader(str(tmp_path / "bare.db"), "s").read() == ()
    open_study().close()
    assert TrialReader(storage, "another").read() == ()


def test_a_database_whose_tables_are_still_being_made_is_empty(open_study, storage):
    open_study().close()
    with closing(sqlite3.connect(storage)) as half:
        half.execute("DROP TABLE alembic_version")
        half.execute("DROP TABLE study_user_attributes")
    assert TrialReader(storage, "s").read() == ()


def test_readers_see_what_the_study_says_in_every_state(open_study, storage, make_space, measure):
    space = make_space()
    with open_study() as study:
        first, second = study.claim("one", 9), study.claim("two", 9)
        study.record(first.number, measure(space, first.plan))
        study.fail(second.number, "out of memory, 'quoted' and\nbroken")
        study.claim("one", 9)
        assert TrialReader(storage, "s").read() == TrialReader(f"sqlite:///{storage}", "s").read()
        assert TrialReader(storage, "s").read() == study.trials()
        assert [trial.state for trial in study.trials()] == ["complete", "failed", "running"]
        assert study.trials()[0].metrics == measure(space, first.plan)


def test_a_kept_reader_follows_the_study_and_notices_a_new_one(
    open_study, storage, make_space, measure
):
    space, reader = make_space(), TrialReader(storage, "s")
    assert reader.read() == ()
    with open_study() as study:
        for _ in range(3):
            proposal = study.claim("one", 9)
            assert reader.read() == study.trials()
            study.record(proposal.number, measure(space, proposal.plan))
            assert reader.read() == study.trials()
        optuna.delete_study(study_name="s", storage=study._storage)
    assert reader.read() == ()
    with open_study() as study:
        study.claim("one", 9)
        assert reader.read() == study.trials()


def test_metrics_survive_the_storage_to_the_last_bit(make_space, measure):
    space = make_space()
    metrics = measure(space, space.decode((0, 1, 2, 0, 1, 2)))
    assert rows.metrics_from_text(rows.metrics_to_text(metrics)) == metrics
    with pytest.raises(TypeError, match="surprise"):
        rows.metrics_from_text('{"surprise": 1, "tasks": {}}')


def test_postgres_addresses_go_through_the_driver_we_install():
    assert storage_url("postgresql://u@h/d") == "postgresql+psycopg://u@h/d"
    assert storage_url("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"


def test_ten_thousand_trials_are_read_within_the_time_of_a_rerun(
    open_study, storage, make_space, measure
):
    space = make_space()
    with open_study() as study:
        proposal = study.claim("one", 9)
        study.record(proposal.number, measure(space, proposal.plan))
    with closing(sqlite3.connect(storage)) as database:
        database.execute(
            "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) SELECT i FROM n"
        )
        database.execute(
            "INSERT INTO trials (trial_id, number, study_id, state) "
            "SELECT 1000 + i, i, t.study_id, t.state FROM n, trials t WHERE t.number = 0"
        )
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT 1000 + i, a.key, a.value_json FROM n, trial_user_attributes a"
        )
        database.commit()
    reader = TrialReader(storage, "s")
    assert len(reader.read()) == 10_000
    start = time.perf_counter()
    assert len(reader.read()) == 10_000
    assert time.perf_counter() - start < 0.1
