"""The frame around every page: menu, choice of run, workers, and errors as sentences."""

from __future__ import annotations

import streamlit as st

from app import navigation, services, state, widgets, widgets_standing
from qpruner_core.errors import QPrunerError

ASSETS = navigation.ROOT / "assets"


def frame() -> None:
    """Draw menu and sidebar, then the page that the address names."""
    st.set_page_config(
        page_title="QPruner Studio",
        page_icon=str(ASSETS / "icon.svg"),
        layout="wide",
        initial_sidebar_state=236,
    )
    st.logo(str(ASSETS / "logo.svg"), icon_image=str(ASSETS / "icon.svg"), size="large")
    chosen = st.navigation(
        [navigation.page(entry.key) for entry in navigation.PAGES], expanded=True
    )
    try:
        with st.sidebar:
            state.run_picker(services.store().list())
            widgets_standing.workers_line()
        state.keep_address()
        chosen.run()
    except QPrunerError as error:
        widgets.error_panel(str(error))


frame()
