"""Puts the scripts of the demo on the import path, as running them does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "assets" / "demo"))
