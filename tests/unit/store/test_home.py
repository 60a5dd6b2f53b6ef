"""The home folder, and the folders that a path from the browser may name."""

from pathlib import Path

import pytest

from qpruner_core.errors import BadInputError
from qpruner_core.store import home as house
from qpruner_core.store.records import RunStore
from qpruner_core.store.studies import study_url


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QPRUNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QPRUNER_FOLDERS", raising=False)
    monkeypatch.delenv("QPRUNER_DATABASE", raising=False)


def test_the_home_folder_is_named_by_the_environment(tmp_path):
    assert house.home() == tmp_path / "home"


def test_without_the_environment_it_lies_in_the_users_folder(monkeypatch):
    monkeypatch.delenv("QPRUNER_HOME")
    assert house.home() == Path.home() / ".qpruner"


def test_paths_in_the_home_the_demo_and_named_folders_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("QPRUNER_FOLDERS", f"{tmp_path / 'models'}:{tmp_path / 'texts'}")
    for path in (
        tmp_path / "home" / "runs",
        house.demo_folder() / "model",
        tmp_path / "models" / "llama",
        tmp_path / "texts",
    ):
        assert house.check_allowed(path) == path.resolve()


@pytest.mark.parametrize("path", ["/etc/passwd", "~", "home/../../x"])
def test_other_paths_are_refused_with_a_sentence(path):
    with pytest.raises(BadInputError, match="QPRUNER_FOLDERS"):
        house.check_allowed(Path(path))


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "door").symlink_to("/etc")
    with pytest.raises(BadInputError, match="lies outside"):
        house.check_allowed(tmp_path / "home" / "door" / "passwd")


def test_the_demo_can_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("QPRUNER_DEMO", str(tmp_path / "demo"))
    assert house.demo_folder() == tmp_path / "demo"


def test_jobs_and_studies_lie_in_the_home_unless_a_database_is_named(tmp_path, monkeypatch):
    assert house.database_url(tmp_path) == f"sqlite:///{tmp_path / 'jobs.db'}"
    assert study_url(tmp_path) == f"sqlite:///{tmp_path / 'studies.db'}"
    monkeypatch.setenv("QPRUNER_DATABASE", "postgresql://me@server/q")
    assert house.database_url(tmp_path) == "postgresql://me@server/q"
    assert study_url(tmp_path) == "postgresql+psycopg://me@server/q"
    assert house.database_url(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"


def test_a_database_named_to_the_store_holds_the_studies_whatever_the_environment_says(
    tmp_path, monkeypatch
):
    store = RunStore(tmp_path, "postgresql://me@server/q")
    assert store.study_url() == "postgresql+psycopg://me@server/q"
    monkeypatch.setenv("QPRUNER_DATABASE", "postgresql://me@other/q")
    assert store.study_url() == "postgresql+psycopg://me@server/q"
    assert RunStore(tmp_path).study_url() == "postgresql+psycopg://me@other/q"
    assert RunStore(tmp_path, "sqlite:///x.db").study_url() == f"sqlite:///{tmp_path}/studies.db"
