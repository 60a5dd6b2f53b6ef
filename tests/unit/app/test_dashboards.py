"""optuna-dashboard is started for real, on a study of two trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import optuna
import pytest

from app import dashboards
from app.dashboards import Dashboards
from qpruner_core.errors import DashboardError

ROOT = Path(__file__).resolve().parents[3]
WAIT = 60
OPENER = """
import sys
from app.dashboards import Dashboards
opened = Dashboards()
sys.stdout.write(opened.open(sys.argv[1], "second") + "\\n")
sys.stdout.write(f"{opened.processes()[0]}\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("home") / "studies.db"
    url = f"sqlite:///{path}"
    kept = optuna.storages.RDBStorage(url)
    for name in ("first", "second"):
        study = optuna.create_study(study_name=name, storage=kept, directions=["minimize"] * 2)
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=2)
    kept.engine.dispose()
    return url


@pytest.fixture(scope="module")
def opened() -> Iterator[Dashboards]:
    made = Dashboards()
    yield made
    made.close()
    assert made.processes() == []


def answer(address: str) -> tuple[int, str]:
    with urlopen(address, timeout=WAIT) as reply:  # noqa: S310 - our own process
        return reply.status, reply.read().decode()


def test_the_link_leads_to_the_right_study(opened: Dashboards, storage: str) -> None:
    address = opened.open(storage, "second")
    status, page = answer(address)
    assert (status, "<html" in page.lower()) == (200, True)
    parts = urlparse(address)
    assert (parts.hostname, parts.path) == ("127.0.0.1", "/dashboard/studies/2")
    _, told = answer(f"http://{parts.netloc}/api/studies/2")
    assert json.loads(told)["name"] == "second"


def test_one_storage_has_one_process_however_it_is_written(
    opened: Dashboards, storage: str
) -> None:
    one = opened.open(storage, "first")
    other = opened.open(storage.removeprefix("sqlite:///"), "second")
    assert urlparse(one).netloc == urlparse(other).netloc
    assert len(opened.processes()) == 1
    assert opened.is_open(storage)


def test_a_study_that_is_not_there_is_named(opened: Dashboards, storage: str) -> None:
    with pytest.raises(DashboardError, match="no study 'third'"):
        opened.open(storage, "third")


def test_without_a_search_nothing_is_started_or_made(opened: Dashboards, tmp_path: Path) -> None:
    before = opened.processes()
    with pytest.raises(DashboardError, match="No search has begun"):
        opened.open(str(tmp_path / "none.db"), "first")
    assert opened.processes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_died_is_started_anew(opened: Dashboards, storage: str) -> None:
    opened.open(storage, "first")
    (before,) = opened.processes()
    os.kill(before, signal.SIGKILL)
    address = opened.open(storage, "first")
    assert opened.processes() != [before]
    assert answer(address)[0] == 200


def test_a_child_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.setattr(dashboards, "COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(DashboardError, match="did not start"):
        Dashboards().open(storage, "first")


def test_the_dashboard_ends_when_the_app_is_killed(storage: str) -> None:
    """Its process is no child of ours, so that its end shows by its address alone."""
    with subprocess.Popen(
        [sys.executable, "-c", OPENER, storage],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as app:
        address, pid = app.stdout.readline().strip(), int(app.stdout.readline())
        watched = os.pidfd_open(pid)
        assert answer(address)[0] == 200
        app.kill()
        ended = dashboards.selectors.DefaultSelector()
        ended.register(watched, dashboards.selectors.EVENT_READ)
        assert ended.select(WAIT), "the dashboard outlived the app"
        ended.close()
        os.close(watched)
