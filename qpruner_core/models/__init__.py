"""Load: from a folder or hub id to a model in memory. Importing this package loads no torch; its
modules do.

`architectures` stays torch-free all the way down, so that the browser side can ask it for layouts.
"""

import logging

# bitsandbytes warns at its import of an optional kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
