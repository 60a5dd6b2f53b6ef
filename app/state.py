"""The only file that names session keys; the run and the selection live in the page's address."""

from __future__ import annotations

from typing import NoReturn

import streamlit as st

from app import navigation, services
from app.glossary import tip
from qpruner_core.domain.record import RunRecord

_RUN = "chosen_run"
_PICKER = "run_picker"
MODEL = "model_looked_at"


def run_id() -> str | None:
    """Return the chosen run: the address first, then what was chosen on another page."""
    chosen = st.query_params.get("run") or st.session_state.get(_RUN)
    return str(chosen) if chosen else None


def choose_run(chosen: str | None) -> None:
    """Make a run the chosen one, here and in the address; selections of the run before are
    dropped.
    """
    if chosen != st.session_state.get(_RUN):
        for name in ("trial", "plan", "other", "layer", "criterion", "module"):
            st.query_params.pop(name, None)
    st.session_state[_RUN] = chosen
    if chosen:
        st.query_params["run"] = chosen
    else:
        st.query_params.pop("run", None)


def keep_address() -> None:
    """Write the chosen run back into the address, as changing the page empties it."""
    chosen = run_id()
    if chosen:
        st.session_state[_RUN] = chosen
        st.query_params["run"] = chosen


def selection(name: str) -> str | None:
    """Return a selection from the address, such as ``trial``; None when it is not there."""
    return st.query_params.get(name)


def select(name: str, value: object) -> None:
    """Write a selection into the address; None removes it."""
    if value is None:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(value)


def picked(chart_key: str) -> str | None:
    """Return what was clicked in a chart (the point's ``customdata``); None when the click
    cleared it.
    """
    found = all_picked(chart_key)
    if not found:
        return None
    data = found[0]
    return str(data[0] if isinstance(data, list | tuple) else data)


def all_picked(chart_key: str) -> list[object]:
    """Return the ``customdata`` of every point that was clicked or selected in a chart; empty when
    the selection was cleared.
    """
    event = st.session_state.get(chart_key)
    found = event["selection"]["points"] if event else []
    return [point["customdata"] for point in found if "customdata" in point]


def set_widget(key: str, value: object) -> None:
    """Set a widget's value from a callback, before it is drawn again."""
    st.session_state[key] = value


def widget(key: str) -> object:
    """Return a widget's value inside its own callback."""
    return st.session_state.get(key)


def run_picker(runs: list[RunRecord]) -> None:
    """Draw the choice of run in the sidebar."""
    names = {record.run_id: run_name(record) for record in runs}
    chosen = run_id()
    options = list(names)
    st.session_state[_PICKER] = chosen if chosen in names else None
    st.selectbox(
        "Run",
        options,
        format_func=lambda key: names.get(key, key),
        key=_PICKER,
        on_change=lambda: choose_run(st.session_state[_PICKER]),
        help=tip("run"),
        placeholder="No run chosen",
    )


def run_name(record: RunRecord) -> str:
    """Return a run's name for a person: what it was called, else its model, with the end of its
    id.
    """
    return f"{record.spec.name or record.spec.model.source} · {record.run_id[-4:]}"


def require_run() -> RunRecord:
    """Return the chosen run, or say what is missing and stop the page."""
    chosen = run_id()
    known = {record.run_id for record in services.store().list()}
    if chosen in known and chosen is not None:
        return services.store().read(chosen)
    if chosen is None:
        st.info(
            "No run is chosen yet. Open the Runs page and start one, or choose one in the sidebar."
        )
    else:
        st.warning(
            f"There is no run {chosen!r} in this home folder; it may have been deleted. "
            f"Choose another one in the sidebar or start one on the Runs page."
        )
    st.page_link(navigation.page("runs"), label="Go to Runs", help=tip("run"))
    st.stop()


def open_page(key: str, **selections: str) -> NoReturn:
    """Go to another page with the chosen run and a selection in its address."""
    st.switch_page(navigation.page(key), query_params=address_of(**selections))


def address_of(**selections: object) -> dict[str, str]:
    """Return what an address carries: the chosen run, and those selections that are not None."""
    carried = {"run": run_id(), **selections}
    return {name: str(value) for name, value in carried.items() if value is not None}


def remember(key: str, value: object) -> None:
    """Keep something for this browser session, such as the job of a prompt."""
    st.session_state[f"kept/{key}"] = value


def remembered(key: str) -> object:
    """Return what was kept for this browser session; None when nothing was."""
    return st.session_state.get(f"kept/{key}")


def select_widget(name: str, key: str) -> None:
    """Write a widget's new value into the address; for use as its callback."""
    select(name, st.session_state.get(key))
