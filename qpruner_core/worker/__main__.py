"""``python -m qpruner_core.worker``: exit code 2 and a sentence when the person can fix it."""

import sys

from qpruner_core.errors import QPrunerError
from qpruner_core.worker import main

if __name__ == "__main__":
    try:
        main()
    except QPrunerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
