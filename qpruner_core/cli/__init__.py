"""The command line: all that the pages do, for scripts and clusters.

Exit codes: 0 done, 2 the person can fix it (one sentence on stderr), 1 our bug (traceback). With
``--json`` one JSON document stands on stdout and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qpruner_core.cli.commands import run_command
from qpruner_core.cli.parser import build_parser
from qpruner_core.errors import QPrunerError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = build_parser().parse_args(arguments)
    try:
        run_command(parsed)
    except QPrunerError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt as stopped:
        usual = (
            "Stopped. What was finished is kept: 'qpruner runs' names the run, and "
            "'qpruner export RUN_ID' goes on with it."
        )
        sys.stderr.write(f"{str(stopped) or usual}\n")
        return 130
    return 0
