"""Names of runs and of files in a run, checked on every way in: no path leaves the home folder."""

from __future__ import annotations

import re
import secrets
from datetime import datetime

from qpruner_core.errors import BadInputError

_RUN_ID = re.compile(r"\d{8}-\d{6}-[a-z0-9]+(?:-[a-z0-9]+)*-[0-9a-f]{4}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_LONGEST_SLUG = 24


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id, such as ``20261124-101500-demo-3f2a``."""
    return len(text) <= 64 and _RUN_ID.fullmatch(text) is not None


def check_run_id(text: str) -> str:
    """Return the text if it has the form of a run's id.

    Raises:
        BadInputError: It has not.
    """
    if not is_run_id(text):
        raise BadInputError(
            f"{text!r} is no run: a run's id looks like 20261124-101500-demo-3f2a. Choose "
            f"one on the Runs page or of 'qpruner runs'."
        )
    return text


def check_plain(text: str) -> str:
    """Return the text if it can name a file inside a run's folder.

    Raises:
        BadInputError: It holds separators or other characters that could lead elsewhere.
    """
    if _PLAIN.fullmatch(text) is None:
        raise BadInputError(
            f"{text!r} is no plain file name. Use letters, digits, dots, dashes and underscores, "
            f"and begin with a letter or digit."
        )
    return text


def new_run_id(words: str, now: datetime) -> str:
    """Return an id for a new run from what it is called, the time in UTC and chance."""
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:_LONGEST_SLUG].strip("-") or "run"
    return f"{now:%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(2)}"
