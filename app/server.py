"""The server: Streamlit's pages and, beside them, a route that streams downloads from disk.

`python -m app.server` from the repository root; `streamlit run app/main.py` works too, without
the route.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import streamlit as st

from app import addresses, downloads
from app.navigation import ROOT

SERVER_COMMAND: list[str] = [sys.executable, "-m", "app.server"]
"""Arguments that start the server; run them in the repository root, where `.streamlit/config.toml`
lies. ``--port`` and ``--address`` may follow; without them the environment variables
STREAMLIT_SERVER_PORT and STREAMLIT_SERVER_ADDRESS count, then the file.
"""

_LOG = logging.getLogger(__name__)


def say_it_is_a_bug(error: Exception) -> bool:
    """Show a sentence in place of a traceback, which goes to the server's log; return that it was
    shown.
    """
    _LOG.error("a page failed", exc_info=error)
    st.error(
        f"This page met an error of ours ({type(error).__name__}). Your runs are safe. Reload the "
        "page; if it "
        f"comes back, the server's log holds the details for a report.",
        icon=":material/bug_report:",
    )
    return True


app = st.App(
    ROOT / "app" / "main.py",
    routes=[downloads.route(), addresses.route()],
    on_script_error=say_it_is_a_bug,
)


def settings(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, object]:
    """Return Streamlit settings for what the command line, else the environment, asks."""
    parser = argparse.ArgumentParser(prog="python -m app.server", description=__doc__)
    parser.add_argument("--port", type=int, default=environment.get("STREAMLIT_SERVER_PORT"))
    parser.add_argument("--address", default=environment.get("STREAMLIT_SERVER_ADDRESS"))
    asked = parser.parse_args(arguments)
    found = {"server.port": asked.port, "server.address": asked.address}
    return {name: value for name, value in found.items() if value is not None}


if __name__ == "__main__":
    app.run(config=settings(sys.argv[1:], os.environ))
