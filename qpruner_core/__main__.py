"""``python -m qpruner_core`` is the same as ``qpruner``."""

import sys

from qpruner_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
