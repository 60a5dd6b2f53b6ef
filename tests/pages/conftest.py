"""Pages are opened through `app/main.py`, on a home folder of hand-made runs and with a queue
that only remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sample_home
import streamlit as st
from fake_jobs import FakeJobs
from streamlit.testing.v1 import AppTest

from app import services
from qpruner_core.domain.record import RunRecord
from qpruner_core.store.records import RunStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunStore]:
    monkeypatch.setenv("QPRUNER_HOME", str(tmp_path / "home"))
    st.cache_resource.clear()
    yield RunStore(tmp_path / "home")
    st.cache_resource.clear()


@pytest.fixture
def jobs(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    fake = FakeJobs()
    monkeypatch.setattr(services, "jobs", lambda: fake)
    monkeypatch.setattr(services, "_card", lambda spec: sample_home.card_of(spec.source))
    return fake


@pytest.fixture
def open_page(jobs: FakeJobs) -> Callable[..., AppTest]:
    """Open a page of the app, with a run in the address."""

    def opened(key: str, record: RunRecord | None = None, **selections: str) -> AppTest:
        at = AppTest.from_file(ROOT / "app" / "main.py", default_timeout=20)
        if record is not None:
            at.query_params["run"] = record.run_id
        for name, value in selections.items():
            at.query_params[name] = value
        at.run()
        if key != "runs":
            if record is not None:
                at.query_params["run"] = record.run_id
            for name, value in selections.items():
                at.query_params[name] = value
            at.switch_page(f"../pages/{key}.py").run()
        assert not at.exception, at.exception[0].stack_trace
        return at

    return opened


@pytest.fixture
def run_at(store: RunStore) -> Callable[..., RunRecord]:
    """Make a run whose slots are filled up to a step."""

    def made(upto: str | None, **how: object) -> RunRecord:
        return sample_home.make_run(store, upto, **how)

    return made


def words(at: AppTest) -> str:
    """Return everything that a page says, in one text."""
    kinds = (
        "title",
        "subheader",
        "caption",
        "markdown",
        "info",
        "warning",
        "error",
        "success",
        "text",
        "code",
    )
    return "\n".join(str(element.value) for kind in kinds for element in at.get(kind))


@pytest.fixture
def compared(store: RunStore) -> Callable[[RunRecord], RunRecord]:
    """Give a run the measured comparison of its criteria."""
    return lambda record: sample_home.with_comparison(store, record)


@pytest.fixture
def said() -> Callable[[AppTest], str]:
    return words
